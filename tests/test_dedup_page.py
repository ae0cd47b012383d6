"""The review page of `dedup`: escaping, policy, numbers, pictures and decisions; no browser needed."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import subprocess
import sys

import pytest
from PIL import Image
from test_report import Page, page_data, require_closed

from vsim_fast.report import duplicates
from vsim_fast.report.duplicates import ReviewGroup, ReviewMember, ReviewPage, ReviewVideo, visible, write_review_page

HOSTILE = "a\"'><script>alert(1)</script>\n\u202egpj.exe\udcff&amp;.mp4"
THRESHOLDS = {"score": 0.5, "content": 0.6, "order": 0.45, "coverage": 0.7}


def picture(video: int, frame: int) -> bytes:
    """JPEG in a colour of its own."""
    out = io.BytesIO()
    Image.new("RGB", (160, 90), (40 * video % 256, 4 * frame % 256, 128)).save(out, "JPEG")
    return out.getvalue()


def make_video(number: int, frames: int = 10, **changes) -> ReviewVideo:
    fields = dict(
        key=f"key-{number}", path=f"/clips/folder {number}/clip_{number}.mp4", width=1280, height=720,
        duration_seconds=float(frames), fps=30.0, codec="h264", bit_rate=1_000_000 * (number + 1),
        size_bytes=1_000_000 * (number + 1), frame_seconds=[t + 0.5 for t in range(frames)],
        thumbnails=[picture(number, t) for t in range(frames)],
    )  # fmt: skip
    return ReviewVideo(**fields | changes)


def make_member(video: ReviewVideo, *, keep: bool = False, matches=None, **changes) -> ReviewMember:
    if matches is None:
        matches = [(t, t, 0.9) for t in range(len(video.frame_seconds))]
    fields = dict(
        score=0.9, content=0.92, order=0.81, coverage=1.0, query_coverage=1.0, ref_coverage=0.995, verdict="duplicate",
        why="content 0.92 ≥ 0.60", matches=matches,
    )  # fmt: skip
    return ReviewMember(video, keep, "smaller file", **fields | changes)


def make_page(groups: int | list[ReviewGroup] = 2, members: int = 2, **changes) -> ReviewPage:
    """These groups, or so many of 1 + `members` videos, the least sure first; the medoid is kept."""
    made = groups if isinstance(groups, list) else []
    for g in range(groups if isinstance(groups, int) else 0):
        videos = [make_video(g * (members + 1) + k) for k in range(members + 1)]
        others = [make_member(video) for video in videos[1:]]
        made.append(ReviewGroup(ReviewMember(videos[0], True, "higher bit rate"), others, 0.6 + 0.3 * g / groups))
    return ReviewPage(**dict(title="Duplicates in /clips", groups=made, thresholds=THRESHOLDS) | changes)


def write(tmp_path, page: ReviewPage) -> tuple[str, dict]:
    size = write_review_page(tmp_path / "report.html", page)
    raw = (tmp_path / "report.html").read_bytes()
    assert size == len(raw)
    text = raw.decode()
    Page(text)  # well formed
    return text, page_data(text)


def words(text: str, selector: str) -> list[str]:
    """The text of each element of this class or tag that holds no other of its kind."""
    found = re.findall(rf'<(\w+)[^>]*class="{selector}"[^>]*>(.*?)</\1>', text, re.S)
    return [" ".join(re.sub("<[^>]+>", "", inner).split()) for _, inner in found]


def test_page_is_closed_and_self_contained(tmp_path):
    text, _ = write(tmp_path, make_page())
    page = Page(text)
    require_closed(page, text)
    for tag, attributes in page.tags:
        assert not {"style", "src", "srcset"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")


def test_every_text_is_escaped_and_decisions_keep_the_exact_path(tmp_path):
    video = make_video(0, path=HOSTILE, codec=HOSTILE, notes=[HOSTILE], key=HOSTILE)
    other = make_video(1)
    member = make_member(other, verdict=HOSTILE, why=HOSTILE, orientation=HOSTILE)
    entry = {"key": "gone", "path": HOSTILE}
    text, data = write(
        tmp_path,
        make_page(
            groups=[ReviewGroup(ReviewMember(video, True, HOSTILE), [member], 0.9)], related=[(video, member)],
            failed=[(HOSTILE, HOSTILE)], skipped=[(HOSTILE, HOSTILE)], settings={HOSTILE: HOSTILE}, title=HOSTILE,
            encoder={HOSTILE: [HOSTILE]}, notes=[HOSTILE], timings={HOSTILE: 1.0},
            decisions={"not_duplicates": [{"a": entry, "b": entry}], "keep": [entry]},
        ),
    )  # fmt: skip
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "alert(1)" not in page.text["script"]
    assert "\u202e" not in text, "nothing turns the direction of what follows"
    assert visible(HOSTILE) in page.text["h1"]
    assert r"\n\u202egpj.exe\udcff&amp;.mp4" in page.text["h1"]
    assert data["videos"][0]["path"] == data["videos"][0]["key"] == HOSTILE
    assert data["earlier"]["keep"] == [entry]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Ω – 日本 é.mp4", None), ("می‌خواهم.mp4", None), ("a\tb\x7f", r"a\tb\x7f"), ("x\u2066y", r"x\u2066y"), ("", None)],
)
def test_visible(text, shown):
    assert visible(text) == (text if shown is None else shown)


def test_the_verdict_counts(tmp_path):
    page = make_page(groups=2, members=2, failed=[("a.mp4", "broken")], skipped=[("b.mp4", "x"), ("c.mp4", "y")])
    text, _ = write(tmp_path, dataclasses.replace(page, video_count=40))
    assert words(text, "verdict") == [
        "40 videos: 2 groups of duplicates with 6 videos. 4 could go, which would free 16 MB. "
        "1 file could not be read. 2 files skipped."
    ]
    assert "A duplicate needs score at least 0.50, content at least 0.60, order at least 0.45" in text


def test_no_video_goes_where_none_is_kept(tmp_path):
    page = make_page(groups=1)
    group = page.groups[0]
    group = dataclasses.replace(group, medoid=dataclasses.replace(group.medoid, keep=False))
    text, _ = write(tmp_path, dataclasses.replace(page, groups=[group]))
    assert words(text, "verdict") == ["1 group of duplicates with 3 videos. None is suggested to go."]


def test_the_surest_group_comes_first(tmp_path):
    text, data = write(tmp_path, make_page(groups=3))
    certainties = [float(value) for value in re.findall(r"certainty ([\d.]+)", text)]
    assert certainties == sorted(certainties, reverse=True)
    assert [data["videos"][group["medoid"]]["key"] for group in data["groups"]] == ["key-6", "key-3", "key-0"]
    for group in data["groups"]:
        assert {data["pairs"][p]["ref"] for p in group["pairs"]} == {group["medoid"]}
        assert group["suggested"] == [group["medoid"]]


def test_scores_say_what_they_mean(tmp_path):
    member = make_member(make_video(1), order=0.2, coverage=0.7, query_coverage=0.7, ref_coverage=0.999, content=None)
    text, _ = write(tmp_path, make_page(groups=[ReviewGroup(ReviewMember(make_video(0), True, ""), [member], 0.9)]))
    assert words(text, "value") == ["–", "0.20", "0.70"]
    assert words(text, "words") == [
        "not computed", "in reversed order · below 0.45", "70 % of this, 99 % of that · passes 0.70",
    ]  # fmt: skip
    assert re.findall(r'class="amount" y="2" width="([\d.]+)"', text) == ["0.0", "20.0", "70.0"]
    assert re.findall(r'class="limit" x1="([\d.]+)"', text) == ["60.0", "45.0", "70.0"]


def better(**changes) -> dict[str, str]:
    return {fact.name: fact.better for fact in duplicates._facts(make_video(0, **changes), make_video(0))}


def test_the_better_fact_is_marked_and_near_ties_are_not():
    none = dict.fromkeys(("Picture", "Length", "Bit rate", "Frame rate", "Codec", "Size"), "")
    assert better() == none
    assert better(duration_seconds=10.2, fps=29.97) == none, "200 ms of 10 s decide nothing"
    assert better(width=1920, height=1080, duration_seconds=9) == none | {"Picture": "query", "Length": "ref"}
    assert better(bit_rate=900_000)["Bit rate"] == "ref"
    assert better(bit_rate=900_000, codec="av1")["Bit rate"] == "", "of other codecs it says nothing"
    assert better(bit_rate=None, size_bytes=5) == none


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        ("_bytes", 999, "999 bytes"), ("_bytes", 1000, "1 kB"), ("_bytes", 999_600, "1 MB"),
        ("_bytes", 1_234_567, "1.23 MB"), ("_bytes", 5 * 10**15, "5,000 TB"),
        ("_bit_rate", 14_000, "14 kbit/s"), ("_bit_rate", None, "–"),
        ("_seconds", 5.049, "5.05 s"), ("_seconds", 59.999, "60.00 s"), ("_seconds", 139.4, "2:19 min"),
        ("_seconds", 3599.7, "1:00:00 h"), ("_seconds", float("nan"), "–"), ("_percent", 0.996, "99 %"),
        ("_percent", 1.0, "100 %"), ("_percent", 0.254, "25 %"), ("_percent", None, "–"),
        ("_rate", 29.97003, "29.97 fps"), ("_number", float("inf"), "–"),
        ("_split", "/clips/a.mp4", ("/clips/", "a.mp4")), ("_split", "a.mp4", ("", "a.mp4")),
        ("_split", "/a.mp4", ("/", "a.mp4")), ("_split", "/clips/", ("", "/clips/")),
    ],
)  # fmt: skip
def test_numbers_for_reading(function, value, shown):
    assert getattr(duplicates, function)(value) == shown


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(60, 6, [5, 15, 25, 35, 45, 55]), (3, 6, [0, 1, 2]), (1, 6, [0]), (0, 6, []), (9, 0, [])],
)  # fmt: skip
def test_matches_are_chosen_evenly(count, most, expected):
    assert duplicates._spread(range(count), most) == expected


def test_each_shown_picture_is_stored_once(tmp_path):
    page = make_page(groups=1, members=3)
    _, data = write(tmp_path, page)
    shown = {(pair[side], match[k]) for pair in data["pairs"] for k, side in enumerate(("query", "ref"))
             for match in pair["shown"]}  # fmt: skip
    assert len(data["pictures"]) == len(shown) == 4 * 6, "the medoid's six serve all three comparisons"
    videos = [member.video for group in page.groups for member in (group.medoid, *group.members)]
    for v, frame in shown:
        stored = base64.b64decode(data["pictures"][data["videos"][v]["pictures"][str(frame)]])
        assert stored == videos[v].thumbnails[frame]


def test_the_budget_of_pictures_lowers_the_pairs_shown(tmp_path, monkeypatch):
    each = -(-len(picture(0, 0)) // 3) * 4
    for budget, most in ((12 * each, 6), (7 * each, 3), (2 * each, 1), (each, 0)):
        monkeypatch.setattr(duplicates, "PICTURE_BYTES", budget + 40)
        text, data = write(tmp_path, make_page(groups=1, members=1))
        assert [len(pair["shown"]) for pair in data["pairs"]] == [most]
        assert sum(map(len, data["pictures"])) <= budget + 40
        assert ("No pictures" in text) == (most == 0)
        assert len(data["pairs"][0]["matches"]) == 10, "the strip stays whole"


def test_two_hundred_groups_stay_within_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "PICTURE_BYTES", 6 * 2**20)
    page = make_page(groups=200, members=4)
    text, data = write(tmp_path, page)
    assert len(data["groups"]) == 200
    assert sum(map(len, data["pictures"])) <= 6 * 2**20
    rest = len(text) - sum(map(len, data["pictures"]))
    assert rest / len(data["videos"]) < 6000, "bytes per video beside its pictures"


@pytest.mark.parametrize("count", [0, 1])
def test_few_matches(tmp_path, count):
    member = make_member(make_video(1, frames=12), matches=[(3, 7, 0.8)][:count], query_coverage=float("nan"))
    text, data = write(tmp_path, make_page(groups=[ReviewGroup(ReviewMember(make_video(0), True, ""), [member], 0.3)]))
    shown = data["pairs"][0]["shown"]
    assert shown == [[3, 7, 0.8]] if count else [match[2] for match in shown] == [None] * 6
    assert data["pairs"][0]["coverage"] == [None, 0.995]
    assert "– of this, 99 % of that" in text


@pytest.mark.parametrize(
    "page",
    [
        ReviewPage(title="", groups=[]),
        make_page(groups=0, failed=[("a.mp4", "broken")], video_count=0),
        make_page(groups=1, members=0),
        make_page(groups=0, related=[(make_video(0, frames=1), make_member(make_video(1, frames=1)))]),
        make_page(groups=0, related=[(make_video(0, frames=0), make_member(make_video(1, thumbnails=[]), matches=[]))]),
        make_page(groups=0, related=[(make_video(0, width=0, duration_seconds=0.0), make_member(make_video(1)))]),
    ],
    ids=["empty", "all-failed", "alone", "one-frame", "no-frames", "no-size"],
)  # fmt: skip
def test_sparse_pages(tmp_path, page):
    text, data = write(tmp_path, page)
    assert len(data["groups"]) == len(page.groups)
    if not page.groups:
        assert "duplicates found." in words(text, "verdict")[0]


def test_a_match_outside_the_video_is_refused(tmp_path):
    member = make_member(make_video(1), matches=[(2, 10, 0.5)])
    group = ReviewGroup(ReviewMember(make_video(0), True, ""), [member], 0.5)
    with pytest.raises(ValueError, match=r"clip_1.mp4 must name frames below 10.*clip_0.mp4, got \(2, 10\)"):
        write_review_page(tmp_path / "report.html", make_page(groups=[group]))
    assert list(tmp_path.iterdir()) == []


def identity(number: int, path: str | None = None) -> dict[str, str]:
    return {"key": f"key-{number}", "path": path or f"/clips/folder {number}/clip_{number}.mp4"}


def test_decisions_in_force_are_marks_or_stay_beside(tmp_path):
    """Group 0 of the page is videos 3, 4, 5, the surer one; group 1 is 0, 1, 2."""
    moved = identity(4, "/elsewhere/renamed.mp4")
    decisions = {
        "schema_version": 1,
        "not_duplicates": [
            {"a": identity(3), "b": moved}, {"a": identity(2), "b": identity(0)}, {"a": identity(1), "b": identity(2)},
            {"a": identity(3), "b": identity(0)}, {"a": identity(77), "b": identity(78)},
        ],
        "keep": [identity(5), identity(99)],
    }  # fmt: skip
    text, data = write(tmp_path, make_page(groups=2, decisions=decisions))
    assert data["marks"]["not_duplicates"] == [0, 3], "either way round, wherever the file is now"
    assert [data["videos"][v]["key"] for v in data["marks"]["keep"]] == ["key-5"]
    assert data["earlier"] == {"not_duplicates": decisions["not_duplicates"][2:], "keep": [identity(99)]}
    assert text.count('class="withdraw"') == 4


def test_byte_identical_files_share_a_key_and_differ_by_path(tmp_path):
    videos = [make_video(k, key="same") for k in range(3)]
    group = ReviewGroup(ReviewMember(videos[0], True, ""), [make_member(v) for v in videos[1:]], 1.0)
    paths = [{"key": "same", "path": video.path} for video in videos]
    unknown = {"key": "same", "path": "/gone.mp4"}
    decisions = {"not_duplicates": [{"a": paths[0], "b": paths[2]}], "keep": [paths[1], unknown]}
    _, data = write(tmp_path, make_page(groups=[group], decisions=decisions))
    assert data["marks"] == {"not_duplicates": [1], "keep": [1]}
    assert data["earlier"]["keep"] == [unknown], "one of three, and the page cannot tell which"


def test_importing_the_pages_is_light():
    code = "import sys, vsim_fast.report; print([m for m in ('matplotlib', 'jinja2', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("changes", "order", "coverage"),
    [
        ({"order": 0.5}, "no order in common · below 0.60", "99 % of this, 98 % of that · passes 0.50"),
        ({"order": 0.1}, "in reversed order · below 0.60", "99 % of this, 98 % of that · passes 0.50"),
        ({"order": 0.9, "ref_coverage": 0.03}, "in the same order · passes 0.60",
         "99 % of this, 3 % of that · one is below 0.50"),
    ],
)  # fmt: skip
def test_a_part_and_a_still_are_told_in_words(tmp_path, changes, order, coverage):
    member = make_member(make_video(1), **({"query_coverage": 0.99, "ref_coverage": 0.98, "coverage": 0.99} | changes))
    page = make_page(groups=[ReviewGroup(ReviewMember(make_video(0), True, ""), [member], 0.9)])
    text, _ = write(tmp_path, dataclasses.replace(page, thresholds={"order": 0.6, "coverage": 0.5}))
    assert words(text, "words")[1:] == [order, coverage]
