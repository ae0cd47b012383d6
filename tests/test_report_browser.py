"""report.html in a real browser: nothing fetched, no error, and the numbers it shows are the right ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_report import HOSTILE, exact_cosines, make_data

from vsim_fast.report import write_report

pytestmark = pytest.mark.needs_browser
GRID, FRAMES = (6, 8), 7
P = GRID[0] * GRID[1]


@pytest.fixture
def open_report(browser, tmp_path):
    """Writes a report, opens it, and at the end demands that nothing went wrong and nothing was fetched."""
    contexts, requests, complaints = [], [], []

    def open_(data, *, width: int = 1280, scheme: str = "light"):
        result = write_report(tmp_path / "report.html", data)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        return page, result

    open_.complaints = complaints
    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def data():
    return make_data(frames=FRAMES, grid=GRID, dim=160)


def centre(page, selector: str, p: int) -> dict[str, float]:
    """Where patch p lies inside the element."""
    box = page.locator(selector).bounding_box()
    row, column = divmod(p, GRID[1])
    return {"x": (column + 0.5) / GRID[1] * box["width"], "y": (row + 0.5) / GRID[0] * box["height"]}


def click_patch(page, selector: str, p: int) -> None:
    page.locator(selector).click(position=centre(page, selector, p))


def read_cosine(page, selector: str, p: int) -> float:
    page.locator(selector).hover(position=centre(page, selector, p))
    text = page.locator("#hover-text").text_content()
    assert f"patch {p} (" in text
    return float(re.search(r"cosine (-?[\d.]+)$", text).group(1))


def pixels(page, selector: str) -> str:
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def test_a_click_shows_the_cosines_of_that_patch(open_report, data):
    page, result = open_report(data)
    exact = exact_cosines(data.shown_patches).reshape(FRAMES, P, FRAMES, P)
    bound = result["explorer_max_error"] + 6e-4  # and three decimals
    before = pixels(page, "#query canvas"), pixels(page, ".tile:nth-child(2) canvas")
    click_patch(page, "#query", 10)
    assert page.locator("#query-text").text_content() == "Frame 3 at 1.50 s, patch 10 (row 1, col 2)"
    assert pixels(page, "#query canvas") != before[0]
    assert pixels(page, ".tile:nth-child(2) canvas") != before[1]
    for p in (0, 10, 23, P - 1):
        assert read_cosine(page, "#query", p) == pytest.approx(exact[3, 10, 3, p], abs=bound)
        assert read_cosine(page, ".tile:nth-child(6) .frame", p) == pytest.approx(exact[3, 10, 5, p], abs=bound)

    click_patch(page, ".tile:nth-child(1) .frame", 33)  # any patch of any frame
    assert page.locator("#query-text").text_content() == "Frame 0 at 0.00 s, patch 33 (row 4, col 1)"
    shown = page.locator(".tile p span:last-child").all_text_contents()
    np.testing.assert_allclose([float(value) for value in shown], exact[0, 33, :, 33], atol=bound)
    assert shown[0] == "1.000"
    assert page.locator("#chart circle.dot:not(.pointer):not(.current)").count() == FRAMES


def test_a_click_answers_at_once_at_full_size(open_report):
    """24 frames of 32×32 patches at the highest rank: under 100 ms a click."""
    patches = torch.randn(24, 1024, 160) * torch.arange(1, 161) ** -0.7
    page, _ = open_report(make_data(frames=24, grid=(32, 32), patches=patches))
    milliseconds = page.evaluate("""() => {
      const box = document.getElementById("query"), area = box.getBoundingClientRect();
      const times = [0.1, 0.3, 0.5, 0.7, 0.9].map((part) => {
        const start = performance.now();
        const point = { clientX: area.left + part * area.width, clientY: area.top + 9 };
        box.dispatchEvent(new MouseEvent("click", point));
        return performance.now() - start;
      });
      return times.sort((a, b) => a - b)[2];
    }""")
    assert milliseconds < 100


def test_the_keyboard_moves_patch_and_frame(open_report, data):
    page, _ = open_report(data)
    page.locator("#query").focus()
    for key, expected in (
        ("ArrowRight", "Frame 3 at 1.50 s, patch 29 (row 3, col 5)"),
        ("ArrowUp", "Frame 3 at 1.50 s, patch 21 (row 2, col 5)"),
        ("ArrowLeft", "Frame 3 at 1.50 s, patch 20 (row 2, col 4)"),
        ("ArrowDown", "Frame 3 at 1.50 s, patch 28 (row 3, col 4)"),
        ("PageDown", "Frame 4 at 2.00 s, patch 28 (row 3, col 4)"),
        ("PageUp", "Frame 3 at 1.50 s, patch 28 (row 3, col 4)"),
    ):
        page.keyboard.press(key)
        assert page.locator("#query-text").text_content() == expected
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert "(row 3, col 7)" in page.locator("#query-text").text_content(), "stops at the edge"


def test_the_frame_map_reads_out_and_keeps_a_pair(open_report, data):
    page, _ = open_report(data)
    canvas = page.locator("#similarity-plot canvas")
    box = canvas.bounding_box()
    spot = {"x": (1 + 0.5) / FRAMES * box["width"], "y": (5 + 0.5) / FRAMES * box["height"]}
    canvas.hover(position=spot)
    value = float(page.locator("#pair-value").text_content())
    assert value == pytest.approx(data.frame_similarity[5, 1].item(), abs=1e-4)
    canvas.click(position=spot)
    page.mouse.move(2, 2)
    assert page.locator("#pair-a figcaption").text_content() == "Frame 5 at 2.50 s"
    assert page.locator("#pair-b figcaption").text_content() == "Frame 1 at 0.50 s"
    current = page.locator("#strip .current").evaluate_all("nodes => nodes.map((node) => node.dataset.index)")
    assert current == ["1", "5"]
    canvas.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#pair-a figcaption").text_content() == "Frame 6 at 3.00 s"


def test_the_colour_scale_switches(open_report, data):
    page, _ = open_report(data)
    before = pixels(page, "#similarity-plot canvas")
    page.locator("#similarity-scale button", has_text="min to max").click()
    low = float(page.locator("#similarity-scale .low").text_content())
    assert low == pytest.approx(data.frame_similarity.min().item(), abs=0.006)
    assert pixels(page, "#similarity-plot canvas") != before
    page.locator("#similarity-scale button", has_text="0 to 1").click()
    assert pixels(page, "#similarity-plot canvas") == before


def test_the_position_map_shows_its_values_and_leads_to_the_explorer(open_report, data):
    page, _ = open_report(data)
    click_patch(page, "#position", 13)
    text = page.locator("#position-text").text_content()
    assert float(text.split(": ")[1]) == pytest.approx(float(data.position_mean.flatten()[13]), abs=1e-4)
    assert "patch 13 (row 1, col 5)" in page.locator("#query-text").text_content()


def test_a_frame_of_the_strip_leads_to_the_explorer(open_report, data):
    page, _ = open_report(data)
    page.locator("#strip button[data-index='6']").click()
    assert page.locator("#query-text").text_content().startswith("Frame 6 at 3.00 s")


def test_a_hostile_file_name_is_shown_as_text(open_report):
    page, _ = open_report(make_data(title=HOSTILE, notes=[HOSTILE], settings={HOSTILE: HOSTILE}, flagged={0: HOSTILE}))
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator(".notes li").text_content() == HOSTILE
    assert page.title().startswith(HOSTILE)
    assert page.locator("img[onerror]").count() == 0


def test_the_policy_blocks_a_script_that_is_not_ours(open_report, data):
    page, _ = open_report(data)
    ran = page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.intruder = true";
      document.body.append(script);
      return window.intruder === true;
    }""")
    assert not ran
    assert "Content Security Policy" in open_report.complaints.pop()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (800, "light"), (390, "dark")])
def test_the_page_fits(open_report, data, width, scheme):
    page, _ = open_report(data, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(
    "changes",
    [
        dict(frames=1),
        dict(thumbnails=[]),
        dict(shown_index=[], shown_patches=torch.zeros(0, 20, 40)),
        dict(patches=torch.zeros(6, 20, 40)),
    ],
    ids=["one-frame", "no-pictures", "no-features", "all-zero"],
)
def test_the_page_works_on_sparse_input(open_report, changes):
    page, _ = open_report(make_data(**changes))
    if page.locator("#query").count():
        page.locator("#query").click(position={"x": 5, "y": 5})
        assert page.locator("#query-text").text_content().endswith("patch 0 (row 0, col 0)")
    assert page.locator("canvas").count() > 0 or page.locator(".empty").count() > 0
