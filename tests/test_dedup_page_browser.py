"""The review page of `dedup` in a real browser: nothing fetched, no error, marks end up in the saved decisions."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_dedup_page import HOSTILE, identity, make_member, make_page, make_video, visible

from vsim_fast.report.duplicates import ReviewGroup, ReviewMember, write_review_page

SAVED = "Saved: put decisions.json beside this page for the next run."
pytestmark = pytest.mark.needs_browser


@pytest.fixture
def open_page(browser, tmp_path):
    """Writes a page, opens it from its file, and at the end demands that nothing went wrong and nothing was fetched."""
    contexts, requests, complaints = [], [], []

    def open_(data, *, width: int = 1280, scheme: str = "light"):
        write_review_page(tmp_path / "report.html", data)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def save(page) -> dict:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions").click()
    assert download.value.suggested_filename == "decisions.json"
    return json.loads(download.value.path().read_text())


def states(page, group: int) -> list[str]:
    return page.locator(f"#group-{group} .state").all_text_contents()


def test_marks_are_saved_as_decisions(open_page):
    """Group 1 of the page is videos 3, 4, 5; group 2 is 0, 1, 2. The medoids are kept."""
    page = open_page(make_page(groups=2, members=2))
    assert page.locator("#totals").text_content() == "4 files could go, 16 MB."
    page.get_by_role("button", name="Not a duplicate: clip_4.mp4").click()
    page.get_by_role("button", name="Keep this: clip_1.mp4").click()
    assert page.locator("#marks").text_content() == "1 not a duplicate, 1 to keep. Not saved."
    assert states(page, 1) == ["Suggested to keep", "Stays: not a duplicate", "Could go"]
    assert states(page, 2) == ["Could go: another is kept", "Kept: your mark", "Could go: another is kept"]
    assert page.locator("#group-2 .why:visible").count() == 0, "the suggestion and its reasons no longer apply"
    assert page.locator("#totals").text_content() == "3 files could go, 10 MB."
    assert page.locator(".index .marked").all_text_contents() == ["1 not", "1 kept"]
    assert page.locator(".index .frees").all_text_contents() == ["6 MB", "4 MB"]
    assert save(page) == {
        "schema_version": 1,
        "not_duplicates": [{"a": identity(4), "b": identity(3)}],
        "keep": [identity(1)],
    }
    assert page.locator("#marks").text_content() == "1 not a duplicate, 1 to keep. " + SAVED
    page.get_by_role("button", name="Keep this: clip_1.mp4").click()  # and back
    assert save(page)["keep"] == []


def test_marks_by_keyboard_alone(open_page):
    page = open_page(make_page(groups=1, members=1))
    button = page.get_by_role("button", name="Not a duplicate: clip_1.mp4")
    for _ in range(20):
        page.keyboard.press("Tab")
        if button.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert states(page, 1) == ["Stays: nothing left to compare", "Stays: not a duplicate"]
    assert page.locator("#totals").text_content() == "No file could go."


def test_without_the_suggested_one_nothing_goes(open_page):
    group = make_page(groups=1, members=2).groups[0]
    first = dataclasses.replace(group.members[0], keep=True)
    group = ReviewGroup(dataclasses.replace(group.medoid, keep=False), [first, group.members[1]], 0.9)
    page = open_page(make_page(groups=[group]))
    assert states(page, 1) == ["Could go", "Suggested to keep", "Could go"]
    page.locator(".reject").first.click()
    assert states(page, 1) == [
        "Stays until the next run suggests anew", "Stays: not a duplicate", "Stays until the next run suggests anew",
    ]  # fmt: skip


def test_decisions_in_force_are_shown_kept_and_can_be_withdrawn(open_page):
    away = {"a": identity(70), "b": identity(71)}
    decisions = {"not_duplicates": [{"a": identity(3), "b": identity(5)}, away], "keep": [identity(99)]}
    page = open_page(make_page(groups=2, decisions=decisions))
    assert page.locator("#marks").text_content() == "1 not a duplicate."
    assert states(page, 1)[2] == "Stays: not a duplicate"
    got = save(page)
    assert got["keep"] == [identity(99)]
    assert got["not_duplicates"] == [away, {"a": identity(5), "b": identity(3)}]
    page.get_by_role("button", name="Not a duplicate: clip_5.mp4").click()
    page.get_by_role("button", name="Withdraw").first.click()
    assert save(page) == {"schema_version": 1, "not_duplicates": [], "keep": [identity(99)]}


def test_a_saved_file_reads_back_as_the_same_marks(open_page):
    page = open_page(make_page(groups=2))
    page.locator(".reject").nth(1).click()
    page.locator(".keep").nth(2).click()
    saved = save(page)
    assert save(open_page(make_page(groups=2, decisions=saved))) == saved


def test_marks_survive_a_reload(open_page):
    page = open_page(make_page(groups=1))
    page.locator(".keep").nth(1).click()
    save(page)  # else the browser asks whether to leave
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert states(page, 1)[1] == "Kept: your mark"


def test_pictures_and_strip_of_a_pair(open_page):
    """A clip of 4 s that is seconds 5 to 8 of 12: the picture of each match, and lines where the seconds lie."""
    query, ref = make_video(1, frames=4), make_video(2, frames=12)
    member = make_member(query, matches=[(i, i + 5, 0.9) for i in range(4)], query_coverage=1.0, ref_coverage=1 / 3)
    page = open_page(make_page(groups=[ReviewGroup(ReviewMember(ref, True, ""), [member], 0.9)]))
    pair = page.locator(".pair")
    assert pair.locator(".frames figcaption").all_text_contents() == ["similarity 0.90"] * 4
    assert pair.locator(".picture span").all_text_contents() == [
        "0.5 s", "5.5 s", "1.5 s", "6.5 s", "2.5 s", "7.5 s", "3.5 s", "8.5 s",
    ]  # fmt: skip
    for image in pair.locator("img").all():
        image.evaluate("image => image.decode()")
    data = json.loads(page.locator("#data").text_content())
    shown = pair.locator("img").evaluate_all("images => images.map((image) => image.src.split(',')[1])")
    rows = [[0, 5], [1, 6], [2, 7], [3, 8]]
    sides = [data["videos"][data["pairs"][0][side]]["pictures"] for side in ("query", "ref")]
    assert shown == [data["pictures"][side[str(k)]] for row in rows for side, k in zip(sides, row, strict=True)]

    box = pair.locator(".drawing svg").evaluate("svg => svg.viewBox.baseVal.width")
    second = (box - 92 - 20) / 12
    lines = pair.locator(".match").evaluate_all("nodes => nodes.map((n) => [n.x1.baseVal.value, n.x2.baseVal.value])")
    assert lines == [pytest.approx([92 + (i + 0.5) * second, 92 + (j + 0.5) * second], abs=0.01) for i, j in rows]
    bars = "nodes => nodes.map((n) => [n.x.baseVal.value, n.width.baseVal.value])"
    found = pair.locator(".explained").evaluate_all(bars)
    assert found == [pytest.approx([92, 4 * second], abs=0.01), pytest.approx([92 + 5 * second, 4 * second], abs=0.01)]
    assert pair.locator(".readout").text_content() == "4 matched pairs of frames, similarity 0.90 to 0.90."
    assert "33 % found" in pair.locator(".drawing").text_content()
    pair.locator("figure").nth(2).hover()
    assert pair.locator(".readout").text_content() == "2.50 s is 7.50 s of the reference, similarity 0.90"


def test_what_was_masked_stays_grey(open_page):
    """Content frames from 20 s on: the black intro before them is not said to be found."""
    late = make_video(1, frames=4, duration_seconds=24.0, frame_seconds=[20.5, 21.5, 22.5, 23.5])
    member = make_member(late, matches=[(i, i, 0.9) for i in range(4)])
    page = open_page(make_page(groups=[ReviewGroup(ReviewMember(make_video(2, frames=4), True, ""), [member], 0.9)]))
    width = page.locator(".drawing svg").evaluate("svg => svg.viewBox.baseVal.width")
    first = page.locator(".explained").first.evaluate("node => node.x.baseVal.value")
    assert (first - 92) / (width - 92 - 20) * 24 == pytest.approx(19.75, abs=0.01)


def test_pictures_come_as_groups_come_near(open_page):
    page = open_page(make_page(groups=30, members=2))
    assert 0 < page.locator("img").count() < 30 * 2 * 12
    assert page.locator("#group-30 img").count() == 0
    page.locator(".index a").nth(29).click()
    page.wait_for_selector("#group-30 img")
    assert page.locator("#group-30").evaluate("node => node.getBoundingClientRect().top") < 900
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".members img").count() == 30 * 2 * 12


def test_the_list_filters_groups(open_page):
    page = open_page(make_page(groups=4, members=1))
    page.locator(".reject").first.click()
    page.get_by_label("Name").fill("CLIP_3")
    assert page.locator(".group:visible").count() == 1
    assert page.locator("#filtered").text_content() == "1 of 4 groups shown."
    page.get_by_label("Name").fill("")
    for which, count in (("marked", 1), ("unmarked", 3), ("all", 4)):
        page.get_by_label("Show").select_option(which)
        assert page.locator(".index tbody tr:visible").count() == count
    save(page)


def test_hostile_names_are_text_and_survive_the_download(open_page):
    group = ReviewGroup(ReviewMember(make_video(0, path=HOSTILE), True, HOSTILE), [make_member(make_video(1))], 0.9)
    page = open_page(make_page(groups=[group], title=HOSTILE))
    assert page.locator("h1").text_content() == visible(HOSTILE)
    page.locator(".reject").click()
    assert save(page)["not_duplicates"] == [{"a": identity(1), "b": identity(0, HOSTILE)}]


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (900, "light"), (480, "dark"), (360, "light")]
)
def test_the_page_fits(open_page, width, scheme):
    long = make_video(1, path="/clips/" + "a" * 120 + ".mp4")
    related = [(make_video(7), make_member(long, verdict="shares a part", orientation="mirrored"))]
    data = make_page(groups=1, related=related, failed=[(long.path, "x" * 200)])
    page = open_page(data, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for facts in page.locator(".facts").all():  # the group clips what reaches out of it
        box = facts.bounding_box()
        assert box["x"] + box["width"] <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(
    "page",
    [
        make_page(groups=0),
        make_page(groups=1, members=0),
        make_page(groups=0, related=[(make_video(0, frames=1), make_member(make_video(1, frames=1)))]),
        make_page(groups=0, related=[(make_video(0, frames=0), make_member(make_video(1, thumbnails=[]), matches=[]))]),
        make_page(groups=0, decisions={"keep": [identity(5)]}),
    ],
    ids=["empty", "alone", "one-frame", "no-frames", "only-decisions"],
)
def test_the_page_works_on_sparse_input(open_page, page):
    opened = open_page(page)
    assert opened.locator(".pair svg[role=img]").count() == len(page.related)
    assert opened.locator("#save").count() == (1 if page.groups or page.decisions else 0)
