from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F

from vsim_fast import image_quality
from vsim_fast.errors import EncoderError, UsageError, VsimError
from vsim_fast.image_quality import Lpips, psnr, ssim

pytestmark = pytest.mark.usefixtures("one_thread")  # small pictures


def picture(height, width, *, count=1, seed=0):
    """float32 [count, 3, height, width] in 0..1: smooth areas, edges and texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, height // 16), max(2, width // 16), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    edges = F.interpolate((coarse > 0.7).float(), (height, width), mode="nearest")
    return (0.6 * smooth + 0.3 * edges + 0.1 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1)


def noisy(pictures, sigma, seed=1):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return (pictures + sigma * noise).clamp(0, 1)


def ssim_oracle(a, b):
    """The definition, in float64, with the whole 11x11 window and every moment on its own."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)
    x, y = a.double(), b.double()
    mx, my, xx, yy, xy = (F.conv2d(v, window, groups=3) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    places = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    places = places / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))
    return places.mean((1, 2, 3))


CASES = {
    "noise": lambda a: noisy(a, 0.05),
    "another": lambda a: picture(*a.shape[2:], count=len(a), seed=7),
    "inverted": lambda a: 1 - a,
    "brighter": lambda a: (a + 0.2).clamp(0, 1),
    "blurred": lambda a: F.avg_pool2d(F.pad(a, (2, 2, 2, 2), mode="replicate"), 5, 1),
}


@pytest.mark.parametrize("shape", [(11, 11), (12, 40), (63, 47), (130, 200)], ids=str)
@pytest.mark.parametrize("change", CASES)
def test_ssim_matches_the_definition(shape, change, monkeypatch):
    monkeypatch.setitem(image_quality.BLOCK_PIXELS, "cpu", 1 << 13)  # several blocks, a short last one
    a = picture(*shape, count=2)
    b = CASES[change](a)
    assert torch.allclose(ssim(a, b).double(), ssim_oracle(a, b), rtol=0, atol=1e-5)
    assert torch.allclose(ssim(a, b), ssim(b, a), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.03])
def test_ssim_keeps_its_precision_on_flat_pictures(level, sigma):
    """Where the variance is far below the squared mean, float32 moments of the pictures themselves would lose it."""
    a = torch.full((1, 3, 96, 96), level)
    for b in (noisy(a, sigma), (a * 0.98 + 0.01)):
        assert torch.allclose(ssim(a, b).double(), ssim_oracle(a, b), rtol=0, atol=1e-5)
    x, y = noisy(a, sigma), noisy(a, sigma, seed=2)
    assert torch.allclose(ssim(x, y).double(), ssim_oracle(x, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", CASES)
def test_ssim_equals_scikit_image(change):
    metrics = pytest.importorskip("skimage.metrics")
    a = picture(120, 171)
    b = CASES[change](a)
    x, y = (v[0].permute(1, 2, 0).double().numpy() for v in (a, b))
    theirs = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
    )
    assert ssim(a, b).item() == pytest.approx(theirs, abs=1e-5)
    assert psnr(a, b).item() == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)


def test_equal_pictures_are_exactly_equal():
    a = picture(150, 133, count=2)
    assert psnr(a, a.clone()).tolist() == [math.inf] * 2
    assert ssim(a, a.clone()).tolist() == [1.0] * 2


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 9, 7)
    b = a.clone()
    b[0] += 0.1
    b[1, 0, 0, 0] = 1
    assert psnr(a, b).tolist() == pytest.approx([20, 10 * math.log10(3 * 9 * 7)], abs=1e-4)


def test_pictures_of_a_batch_do_not_mix():
    a = picture(40, 50, count=3)
    b = torch.stack((noisy(a[0], 0.1), a[1], noisy(a[2], 0.01)))
    for measure in (psnr, ssim):
        alone = torch.cat([measure(x[None], y[None]) for x, y in zip(a, b, strict=True)])
        assert torch.equal(measure(a, b), alone)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_bytes_and_halves_and_strides_give_the_same(measure):
    a = (picture(61, 45) * 255).round()
    b = (noisy(a / 255, 0.05) * 255).round()
    truth = measure(a / 255, b / 255)
    as_stored = [v.byte().contiguous(memory_format=torch.channels_last) for v in (a, b)]  # as pictures come
    assert torch.allclose(measure(*as_stored), truth, atol=1e-5)
    assert torch.allclose(measure(as_stored[0], b / 255), truth, atol=1e-5)
    assert torch.allclose(measure((a / 255).double(), (b / 255).double()), truth, atol=1e-5)
    assert torch.allclose(measure((a / 255).half(), (b / 255).half()), truth, rtol=1e-2)
    assert as_stored[0].dtype == torch.uint8 and torch.equal(as_stored[0], a.byte()), "the input is left as it was"


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_inputs_are_left_alone(measure):
    a, b = picture(30, 30), picture(30, 30, seed=3)
    kept = a.clone(), b.clone()
    measure(a, b)
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])


def test_nothing_of_an_empty_batch():
    empty = torch.zeros(0, 3, 20, 20)
    assert psnr(empty, empty).shape == ssim(empty, empty).shape == (0,)


def test_nan_is_seen():
    a = picture(40, 40)
    b = a.clone()
    b[0, 1, 20, 20] = math.nan
    assert psnr(a, b).isnan().all() and ssim(a, b).isnan().all()


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_rejects_what_it_cannot_compare(measure):
    a = picture(20, 30)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 20, 30\) and \(1, 3, 30, 20\)"):
        measure(a, a.transpose(2, 3))
    with pytest.raises(ValueError, match=r"b must be \[B, 3, H, W\], got shape \(3, 20, 30\)"):
        measure(a, a[0])
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        measure(a[:, :1], a[:, :1])
    with pytest.raises(TypeError, match=r"a must be uint8 or floating point, got torch\.int64"):
        measure(a.long(), a)


def test_ssim_rejects_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 64x10"):
        ssim(picture(10, 64), picture(10, 64))
    assert psnr(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).item() == 0


@pytest.mark.needs_cuda
def test_cuda_matches_cpu():
    a = picture(300, 400, count=2)
    b = noisy(a, 0.05)
    for measure in (psnr, ssim):
        assert torch.allclose(measure(a.cuda(), b.cuda()).cpu(), measure(a, b), rtol=0, atol=1e-5)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def save_random_trunk(hub, net):
    """Weights of a random network where the downloaded ones would lie."""
    import torchvision

    names = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
    url = getattr(torchvision.models, image_quality.TRUNKS[net]).IMAGENET1K_V1.url
    path = hub / url.rsplit("/", 1)[1]
    features = getattr(torchvision.models, names[net])(weights=None).features
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("net", ["alex", "squeeze"])  # vgg builds for a second what the others show as well
def test_lpips_equals_the_package(hub, net):
    lpips = pytest.importorskip("lpips")
    path = save_random_trunk(hub, net)
    a = picture(70, 90, count=2)
    b = noisy(a, 0.1)
    before = torch.get_rng_state()
    ours = Lpips(net)
    assert torch.equal(torch.get_rng_state(), before), "building it leaves torch's random numbers alone"
    with warnings.catch_warnings(action="ignore"):  # it calls torchvision in an old way
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # not random, it would download
    state = torch.load(path, weights_only=True)
    theirs.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in theirs.net.state_dict()})
    with torch.no_grad():
        expected = theirs(2 * a - 1, 2 * b - 1).flatten()
    assert expected.min() > 1e-4
    assert torch.allclose(ours(a, b), expected, rtol=1e-5, atol=0)
    assert torch.allclose(Lpips(net, trunk=path)(a, b), expected, rtol=1e-5, atol=0)
    assert ours(a, a).tolist() == [0, 0]
    least = image_quality.LEAST_SIDE[net]
    assert ours(*[picture(least, least, seed=s) for s in (0, 1)]).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {least}x{least} pixels, got 90x{least - 1}"):
        ours(a[:, :, : least - 1], b[:, :, : least - 1])


def test_lpips_names_what_is_missing(hub, tmp_path):
    pytest.importorskip("lpips")
    with pytest.raises(EncoderError, match=r"hub/checkpoints/alexnet\S+: no such file; LPIPS \(alex\) needs it"):
        Lpips()
    with pytest.raises(EncoderError, match="no such checkpoint file"):
        Lpips(trunk=tmp_path / "gone.pth")
    path = save_random_trunk(hub, "squeeze")
    with pytest.raises(EncoderError, match="of the 10 tensors of alex are missing"):
        Lpips("alex", trunk=path)
    state = torch.load(save_random_trunk(hub, "alex"), weights_only=True)
    state["features.0.weight"] = state["features.0.weight"][:, :, :5]
    torch.save(state, tmp_path / "misshapen.pth")
    with pytest.raises(EncoderError, match=r"not the weights of alex .*0\.weight"):
        Lpips("alex", trunk=tmp_path / "misshapen.pth")


def test_lpips_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(VsimError, match=r"pip install 'vsim_fast\[lpips\]'"):
        Lpips()
    with pytest.raises(UsageError, match="one of alex, vgg, squeeze, got 'resnet'"):
        Lpips("resnet")
