"""The page of a compared video: what it holds, and in a real browser what it shows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_report import HOSTILE, Page, decode, page_data, require_closed

from vsim_fast.report import PairPage, pair_page, thumbnail, write_pair_page

browser_test = pytest.mark.needs_browser
GRID = (3, 5)
GREYS = {"video": 200, "reference": 60, "before": 30, "frame": 120, "after": 220}


def make_page(*, count: int = 40, names: tuple[str, ...] = ("video", "reference"), **changes) -> PairPage:
    """Frames 100, 102 …, 25 a second; rows 7 and 23 stick out; every third row has even grey pictures and a map."""
    rng = np.random.default_rng(0)
    rows = np.arange(count)
    distance = 0.01 + 0.002 * rng.random(count)
    distance[[7 % count, 23 % count]] = 0.2, 0.3
    shown = sorted({*range(0, count, 3), 7 % count, 23 % count})
    psnr = 40 - 100 * distance
    psnr[min(5, count - 1)] = np.inf
    maps = np.linspace(0, 1, len(shown))[:, None, None] * np.ones(GRID)
    maps[:, 1, 2] = 1.2
    fields = dict(
        title="clip.mp4", verdict="Two frames stand out.", notes=["The reference is longer."], random_weights=False,
        facts={"Video": {"path": "clip.mp4"}, "Settings": {"image_size": 518, "resize": None}}, frames=100 + 2 * rows,
        times=rows / 25, curves={"patch_distance": distance, "psnr": psnr}, labels={"psnr": "In dB."},
        worst=[23 % count, 7 % count], expected=np.full(count, 0.011), shown=shown,
        pictures={name: [thumbnail(np.full((54, 96, 3), GREYS[name], np.uint8))] * len(shown) for name in names},
        maps=maps,
    )  # fmt: skip
    return PairPage(**fields | changes)


def bare(**changes) -> PairPage:
    """Curves alone."""
    return make_page(**dict(shown=[], pictures={}, maps=None, worst=[], expected=None, notes=[], facts={}) | changes)


def test_the_page_is_well_formed_closed_and_self_contained(tmp_path):
    result = write_pair_page(tmp_path / "report.html", make_page())
    text = (tmp_path / "report.html").read_text()
    assert result == {"bytes": len(text.encode()), "curve_frames": 40, "shown_frames": 16}
    page = Page(text)
    require_closed(page, text)
    for tag, attributes in page.tags:
        assert not {"style", "href", "srcset"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
    table = re.search(r'<table class="numbers">(.*?)</table>', text, re.S).group(1)
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", table)[5:10] == ["146", "0.92 s", "0.3000", "10.00", "0.0110"]


def test_the_page_escapes_every_text(tmp_path):
    hostile = "</script><script>alert(1)</script>" + HOSTILE
    curve = np.zeros(40)
    page = make_page(
        title=HOSTILE, verdict=hostile, notes=[hostile], facts={hostile: {hostile: hostile}}, curves={hostile: curve},
        labels={hostile: hostile},
    )  # fmt: skip
    page.pictures = {hostile: page.pictures["video"], HOSTILE: page.pictures["reference"]}
    write_pair_page(tmp_path / "report.html", page)
    text = (tmp_path / "report.html").read_text()
    parsed = Page(text)
    assert HOSTILE in parsed.text["h1"]
    assert sum(tag == "script" for tag, _ in parsed.tags) == 2
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert page_data(text)["main"] == hostile


def test_the_page_holds_the_values(tmp_path):
    page = make_page()
    write_pair_page(tmp_path / "report.html", page)
    data = page_data((tmp_path / "report.html").read_text())
    assert data["frames"] == page.frames.tolist()
    distance = page.curves["patch_distance"].astype("f4")
    np.testing.assert_array_equal(decode(data["curves"][0]["values"], "<f4"), distance)
    assert np.isnan(decode(data["curves"][1]["values"], "<f4")[5]), "infinite decibels are not drawn"
    codes = decode(data["heat"]["codes"], "u1").astype(float).reshape(len(page.shown), *GRID)
    # rounding the root to 1 / 255 moves a value near the top by 1 / 255 of it
    np.testing.assert_allclose((codes / 255) ** 2 * data["heat"]["most"], page.maps, atol=1.2 / 255)
    assert len(data["pictures"]["reference"]) == len(page.shown)


def test_a_long_curve_keeps_its_peaks(tmp_path):
    rng = np.random.default_rng(0)
    count = 200_000
    curves = {"patch_distance": rng.random(count), "psnr": rng.random(count)}
    curves["psnr"][:90_000] = np.nan
    for row in (5, 77_777, count - 2):
        curves["patch_distance"][row] = 9.0 + row
    curves["psnr"][150_001] = -5.0
    page = bare(
        count=count, frames=np.arange(count), times=np.arange(count) / 60, curves=curves, labels={},
        worst=[123_456, 77_777], expected=np.zeros(count),
    )  # fmt: skip
    result = write_pair_page(tmp_path / "report.html", page)
    text = (tmp_path / "report.html").read_text()
    data = page_data(text)
    kept = np.array(data["frames"])
    assert result["curve_frames"] == len(kept) <= 4 * pair_page.CURVE_BUCKETS + 4
    assert result["bytes"] < 1_000_000
    assert {0, 5, 77_777, 123_456, 150_001, count - 2, count - 1} <= set(kept.tolist())
    assert [kept[k] for k in data["worst"]] == [123_456, 77_777]
    for entry, curve in zip(data["curves"], curves.values(), strict=True):
        np.testing.assert_array_equal(decode(entry["values"], "<f4"), curve[kept].astype("f4"))
    assert np.diff(kept).max() < 2 * count / pair_page.CURVE_BUCKETS
    assert f"{len(kept):,} of 200,000 frames" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(times=np.zeros(39)), r"times must be \[40\] as frames, got shape \(39,\)"),
        (dict(curves={"a": np.zeros((40, 1))}), r"a must be \[40\]"),
        (dict(curves={}), "needs a frame and a curve, got 40 frames and 0 curves"),
        (dict(expected=np.zeros(3)), r"expected must be \[40\]"),
        (dict(worst=[40]), r"worst must be rows in 0..39, got 40"),
        (dict(shown=[2, 1], maps=None, pictures={}), "shown must rise"),
        (dict(pictures={"video": []}), "pictures of 'video' must be 16"),
        (dict(maps=np.zeros((2, 3, 5))), r"maps must be \[16, Hp, Wp\]"),
    ],
)
def test_the_page_rejects_what_does_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_pair_page(tmp_path / "report.html", make_page(**changes))
    assert list(tmp_path.iterdir()) == []


# ---- in the browser


@pytest.fixture
def open_page(browser, tmp_path):
    """Writes a page, opens it, and at the end demands that nothing went wrong and nothing was fetched."""
    contexts, requests, complaints = [], [], []

    def open_(content: PairPage, *, width: int = 1280, scheme: str = "light"):
        write_pair_page(tmp_path / "report.html", content)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    open_.complaints = complaints
    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def spot(page, row: int, frames: int = 40) -> dict[str, float]:
    """Where a row lies in the curve, which leaves 56 px on the left and 12 px on the right."""
    box = page.locator("#chart").bounding_box()
    return {"x": 56 + row / (frames - 1) * (box["width"] - 68), "y": box["height"] / 2}


def readout(page) -> str:
    return page.locator("#readout").text_content()


def seen(page, selector: str) -> int:
    """Grey, to tens, of the picture that is visible there."""
    grey = page.eval_on_selector(selector, """box => {
      const image = [...box.querySelectorAll("img")].find((item) => !item.hidden);
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 1;
      const context = canvas.getContext("2d");
      context.drawImage(image, 40, 20, 1, 1, 0, 0, 1, 1);
      return context.getImageData(0, 0, 1, 1).data[0];
    }""")  # fmt: skip
    return round(grey, -1)


def heat_pixel(page, row: int, column: int) -> list[int]:
    return page.eval_on_selector("#heated canvas", """(heat, [x, y]) => {
      const canvas = document.createElement("canvas");
      const context = canvas.getContext("2d");
      context.drawImage(heat, 0, 0);
      return [...context.getImageData(x, y, 1, 1).data];
    }""", [column, row])  # fmt: skip


@browser_test
def test_the_curve_scrubs(open_page):
    page = open_page(make_page())
    assert readout(page) == "Frame 146 at 0.92 s: patch distance 0.3000, psnr 10.00", "starts at the worst"
    page.locator("#chart").hover(position=spot(page, 7))
    assert readout(page) == "Frame 114 at 0.28 s: patch distance 0.2000, psnr 20.00"
    assert page.locator("#shown-text").text_content() == "Frame 114 at 0.28 s"
    page.locator("#chart").hover(position=spot(page, 5))
    assert readout(page).endswith("psnr –")
    assert page.locator("#shown-text").text_content() == "Frame 112 at 0.24 s, the nearest with pictures"
    page.mouse.move(2, 2)
    assert readout(page).startswith("Frame 146 "), "back to where it was"
    page.locator("#chart").click(position=spot(page, 31))
    page.mouse.move(2, 2)
    assert readout(page).startswith("Frame 162 "), "a click stays"
    page.mouse.move(*(page.locator("#chart").bounding_box()[key] + spot(page, 2)[key] for key in "xy"))
    page.mouse.down()
    page.mouse.move(*(page.locator("#chart").bounding_box()[key] + spot(page, 12)[key] for key in "xy"))
    page.mouse.up()
    page.mouse.move(2, 2)
    assert readout(page).startswith("Frame 124 "), "so does the end of a drag"


@browser_test
def test_the_keyboard_moves(open_page):
    page = open_page(make_page())
    for key, expected in (
        ("ArrowRight", 148), ("ArrowRight", 154), ("ArrowLeft", 148), ("Shift+ArrowRight", 150), ("PageUp", 146),
        ("PageUp", 114), ("PageUp", 114), ("ArrowLeft", 112), ("Shift+ArrowLeft", 110),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert readout(page).startswith(f"Frame {expected} "), key
    page.locator("#chart").focus()
    page.keyboard.press("End")
    assert readout(page).startswith("Frame 178 ")
    page.keyboard.press("ArrowRight")
    assert readout(page).startswith("Frame 178 "), "stops at the end"
    page.locator("#previous").click()
    assert readout(page).startswith("Frame 172 ")


@browser_test
def test_a_worst_frame_leads_there(open_page):
    page = open_page(make_page())
    tiles = page.locator("#worst button")
    assert tiles.all_inner_texts() == ["Frame 146, 0.92 s\n0.3000", "Frame 114, 0.28 s\n0.2000"]
    assert page.locator("#chart circle.worst").count() == 2
    tiles.nth(1).click()
    assert readout(page).startswith("Frame 114 ")
    assert tiles.nth(1).get_attribute("class") == "current"
    assert page.locator("#worst .current").count() == 1


@browser_test
def test_holding_flips_the_pictures(open_page):
    page = open_page(make_page())
    assert [seen(page, f"#panels figure:nth-child({k})") for k in (1, 2, 3)] == [200, 60, 200]
    caption = page.locator("#flipped figcaption")
    page.keyboard.down("f")
    assert (seen(page, "#flipped"), caption.text_content()) == (60, "Reference")
    page.keyboard.up("f")
    assert (seen(page, "#flipped"), caption.text_content()) == (200, "Video")
    page.locator("button.flip").hover()
    page.mouse.down()
    assert (seen(page, "#flipped"), caption.text_content()) == (60, "Reference")
    page.mouse.move(2, 2)
    page.mouse.up()
    assert seen(page, "#flipped") == 200, "let go of anywhere"
    small = page.locator("#flipped").bounding_box()["width"]
    page.locator("#enlarge").click()
    assert page.locator("#flipped").bounding_box()["width"] > 2 * small


@browser_test
def test_a_triplet_flips_to_either_neighbour(open_page):
    page = open_page(make_page(names=("before", "frame", "after")))
    assert [seen(page, f"#panels figure:nth-child({k})") for k in (1, 2, 3, 4)] == [30, 120, 220, 120]
    for key, grey in (("f", 30), ("g", 220)):
        page.keyboard.down(key)
        assert seen(page, "#flipped") == grey
        page.keyboard.up(key)
    assert seen(page, "#flipped") == 120


@browser_test
def test_the_heat_shows_its_values(open_page):
    content = make_page()
    page = open_page(content)
    page.locator("#worst button").nth(1).click()
    s = content.shown.index(7)
    assert page.locator("#heat-text").text_content() == "Patch distance: up to 1.2000 at row 1, col 2"
    assert heat_pixel(page, 1, 2)[3] == round(0.85 * 255)
    box = page.locator("#heated canvas").bounding_box()
    page.locator("#heated canvas").hover(position={"x": 0.1 * box["width"], "y": 0.9 * box["height"]})
    text = page.locator("#heat-text").text_content()
    assert text.endswith("row 2, col 0")
    assert float(text.split()[2]) == pytest.approx(content.maps[s, 2, 0], abs=0.004)

    def opacity() -> str:
        return page.eval_on_selector("#heated canvas", "canvas => getComputedStyle(canvas).opacity")

    page.locator("#opacity").fill("30")
    assert opacity() == "0.3"
    page.locator("#opacity").press("ArrowLeft")
    assert opacity() == "0.29", "the slider keeps its own keys"
    assert readout(page).startswith("Frame 114 ")


@browser_test
def test_the_heat_scale_switches(open_page):
    content = make_page()
    content.maps[:, 1, 2] = 0.6
    content.maps[-1] = 2.0
    page = open_page(content)
    page.locator("#worst button").nth(1).click()
    assert page.locator("#high").text_content() == "2.0000"
    faint = heat_pixel(page, 1, 2)
    page.locator("#scale button", has_text="this frame").click()
    assert float(page.locator("#high").text_content()) == pytest.approx(0.6, abs=0.01)
    assert heat_pixel(page, 1, 2)[3] > faint[3]
    assert heat_pixel(page, 1, 2)[3] == round(0.85 * 255)


@browser_test
def test_another_curve_can_be_chosen(open_page):
    page = open_page(make_page())
    assert page.locator("#chart .expected").count() == 1
    first = page.locator("#chart .curve").get_attribute("d")
    page.locator(".choice button", has_text="psnr").click()
    assert page.locator("#chart .curve").get_attribute("d") != first
    assert page.locator("#chart .curve").get_attribute("d").count("M") == 2, "a gap where it is undefined"
    assert page.locator("#chart .expected").count() == 0
    assert page.locator(".meaning:visible").all_text_contents() == ["In dB."]


@browser_test
def test_zoom_follows_the_frame(open_page):
    page = open_page(make_page())
    whole = page.locator("#chart .curve").get_attribute("d").count("L")
    page.locator("#zoom-in").click()
    assert page.locator("#chart .curve").get_attribute("d").count("L") < 0.7 * whole
    centre = page.locator("#chart").bounding_box()["width"] / 2
    page.locator("#chart").hover(position={"x": centre + 22, "y": 90})
    assert readout(page).startswith("Frame 146 "), "it is in the middle"
    page.mouse.move(2, 2)
    page.keyboard.press("PageUp")
    assert float(page.locator("#chart .pointer").get_attribute("cx")) >= 56, "a frame outside is brought inside"
    page.keyboard.press("-")
    assert page.locator("#chart .curve").get_attribute("d").count("L") == whole
    assert page.locator("#zoom-out").is_disabled()


@browser_test
def test_a_hostile_file_name_is_shown_as_text(open_page):
    page = open_page(make_page(title=HOSTILE, notes=[HOSTILE], facts={HOSTILE: {HOSTILE: HOSTILE}}))
    assert page.locator("h1").text_content() == HOSTILE
    assert page.title().startswith(HOSTILE)
    assert page.locator("img[onerror]").count() == 0


@browser_test
def test_the_policy_blocks_a_script_that_is_not_ours(open_page):
    page = open_page(make_page())
    ran = page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.intruder = true";
      document.body.append(script);
      return window.intruder === true;
    }""")
    assert not ran
    assert "Content Security Policy" in open_page.complaints.pop()


@browser_test
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (800, "light"), (390, "dark")])
def test_the_page_fits(open_page, width, scheme):
    page = open_page(make_page(names=("before", "frame", "after")), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@browser_test
def test_a_portrait_video_fits_the_window(open_page):
    content = make_page()
    tall = [thumbnail(np.zeros((160, 90, 3), np.uint8))] * len(content.shown)
    content.pictures = {"video": tall, "reference": tall}
    page = open_page(content)
    page.wait_for_function("document.getElementById('panels').style.getPropertyValue('--ratio')")
    page.locator("#enlarge").click()
    box = page.locator("#flipped img:visible").bounding_box()
    assert 600 < box["height"] < 700
    assert box["height"] == pytest.approx(box["width"] * 16 / 9, abs=2)


@browser_test
def test_a_long_video_answers_at_once(open_page):
    """200,000 frames and four curves: a move over the curve takes under 20 ms."""
    rng = np.random.default_rng(0)
    count = 200_000
    page = open_page(
        bare(
            count=count, frames=np.arange(count), worst=range(0, count, 20_000), labels={},
            curves={name: rng.random(count) for name in ("patch_distance", "cosine_distance", "psnr", "ssim")},
        )
    )  # fmt: skip
    milliseconds = page.evaluate("""() => {
      const box = document.getElementById("chart"), area = box.getBoundingClientRect();
      const start = performance.now();
      for (let k = 0; k < 20; k++)
        box.dispatchEvent(new PointerEvent("pointermove", { clientX: area.left + 60 + 40 * k, clientY: area.top + 9 }));
      return (performance.now() - start) / 20;
    }""")
    assert milliseconds < 20
    page.keyboard.press("PageDown")
    assert readout(page).startswith("Frame 20000 ")


@browser_test
@pytest.mark.parametrize(
    "content",
    [
        bare(count=1),
        make_page(count=1),
        make_page(curves={"patch_distance": np.zeros(40)}, maps=np.zeros((16, *GRID))),
        make_page(curves={"psnr": np.full(40, np.nan)}, expected=np.full(40, np.nan)),
        make_page(worst=[], expected=None),
        make_page(pictures={}, maps=None),
        make_page(maps=None),
        make_page(pictures={}),
        make_page(names=("video",)),
        bare(count=25),
        make_page(random_weights=True, facts={"Empty": {}}),
    ],
    ids=[
        "one-frame-bare", "one-frame", "all-zero", "all-nan", "no-worst", "no-pictures", "no-maps", "maps-alone",
        "one-picture", "bare", "random-weights",
    ],
)  # fmt: skip
def test_the_page_works_on_sparse_input(open_page, content):
    page = open_page(content)
    page.locator("#chart").hover(position={"x": 70, "y": 50})
    assert readout(page).startswith("Frame 10")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown")
    page.keyboard.press("f")
    page.locator("#zoom-in").click(force=True)
    assert "NaN" not in page.locator("#chart").inner_html()
    assert "NaN" not in page.locator("main").inner_text()
    if not len(content.worst):
        assert "No frame stands out." in page.locator("main").inner_text()
    if not content.pictures:
        assert "No pictures were kept." in page.locator("main").inner_text()
