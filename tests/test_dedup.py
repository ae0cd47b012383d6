"""`dedup`: groups, what is computed again and what is not, bad members, links, decisions, two sets."""

from __future__ import annotations

import csv
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import cheap_copies
import numpy as np
import pytest
from motion_clips import write_variant

from vsim_fast.copies import SIGNALS
from vsim_fast.deduplication import DedupResult, dedup, pairing, reading
from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, UsageError
from vsim_fast.models import Scene

RATE, SECONDS = 12, 3


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu", image_size=84)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two scenes, a smaller copy of the first, one frame of it, a black clip and a file that is no video."""
    folder = tmp_path_factory.mktemp("made")
    times, rate = np.arange(RATE * SECONDS) / RATE, Fraction(RATE)
    for seed, name in enumerate("ab"):
        scene = Scene(seed)
        frames = [scene.frame(n / 2) for n in range(len(times))]
        write_variant(folder / f"{name}.mp4", "original", frames, times, rate)
        if name == "a":
            write_variant(folder / "a_small.mp4", "reencoded", frames, times, rate)
            write_variant(folder / "one.mp4", "original", frames[:1], times[:1], rate)
    write_variant(folder / "black.mp4", "original", [np.zeros_like(frames[0])] * 12, times[:12], rate)
    (folder / "bad.mp4").write_bytes(bytes(range(256)) * 64)
    return folder


@pytest.fixture
def take(made, tmp_path, monkeypatch):
    """Copies files into a new working directory, `name` or `name=new name`."""
    monkeypatch.chdir(tmp_path)

    def copied(*names: str) -> Path:
        for name in names:
            source, _, target = name.partition("=")
            path = Path(target or f"v/{source}")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / source, path)
        return Path("v")

    return copied


class Calls:
    """How many videos were read, pairs compared, and features loaded since the last look."""

    def __init__(self, monkeypatch):
        cheap_copies.use(monkeypatch)
        self.read, self.pairs = 0, 0
        read, score = reading.read_copy_video, pairing.score_pairs

        def counted_read(*arguments, **options):
            self.read += 1
            return read(*arguments, **options)

        def counted_score(load, pairs, **options):
            self.pairs += len(pairs)
            return score(load, pairs, **options)

        monkeypatch.setattr(reading, "read_copy_video", counted_read)
        monkeypatch.setattr(pairing, "score_pairs", counted_score)

    def take(self) -> tuple[int, int]:
        counts = self.read, self.pairs
        self.read = self.pairs = 0
        return counts


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


@pytest.fixture
def run(encoder, calls):
    """`dedup` of v/ into out/."""

    def call(paths=("v",), output_dir="out", **options) -> DedupResult:
        return dedup(paths, output_dir=output_dir, encoder=encoder, **options)

    return call


def groups(result):
    return [{Path(m.path).name for m in group.members} for group in result.groups]


def rows(path="out/pairs.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_copies_are_grouped_and_everything_is_written(take, run):
    take("a.mp4", "a_small.mp4", "b.mp4")
    result = run(min_score=0)
    assert result.status == "complete" and groups(result) == [{"a.mp4", "a_small.mp4"}]
    assert result.counts == {
        "videos": 3, "pairs": 3, "pairs_computed": 3, "pairs_listed": 3, "features_computed": 3, "ok": 3,
        "blank": 0, "failed": 0, "alias": 0,
    }  # fmt: skip
    assert sorted(os.listdir("out")) == ["features", "groups.json", "pairs.csv", "report.html", "summary.json"]
    (group,) = json.loads(Path("out/groups.json").read_text())["groups"]
    assert set(group) == {"medoid", "members"} and set(group["members"][0]) == {"path", "score", "keep", "reason"}
    assert group["medoid"] == group["members"][0]["path"] and group["members"][0]["score"] == 1
    members = {member["path"]: member for member in group["members"]}
    assert members["v/a.mp4"]["keep"] and not members["v/a_small.mp4"]["keep"]
    assert members["v/a_small.mp4"]["reason"] == "144x108 against 240x180"
    assert members["v/a.mp4"]["reason"].startswith("240x180 against 144x108")
    found = rows()
    assert list(found[0]) == [
        "query_id", "ref_id", "score", "content", "order", "coverage", "query_coverage", "ref_coverage", "orientation",
        "verdict", *SIGNALS,
    ]  # fmt: skip
    assert (found[0]["query_id"], found[0]["ref_id"]) == ("v/a.mp4", "v/a_small.mp4")
    scores = [float(row["score"]) for row in found]
    assert scores == sorted(scores, reverse=True) and len({(r["query_id"], r["ref_id"]) for r in found}) == 3
    assert "nan" not in Path("out/pairs.csv").read_text()
    saved = json.loads(Path("out/summary.json").read_text())
    assert saved["counts"] == result.counts and saved["outputs"] == result.outputs and "pairs" not in saved
    assert saved["encoder"]["spec"] == "builtin" and saved["thresholds"] and saved["timings"]["total"] > 0
    assert {file["path"]: file["decoder"] for file in saved["files"]}["v/b.mp4"] == "pyav"


def test_running_again_computes_nothing_and_writes_the_same(take, run, calls):
    take("a.mp4", "a_small.mp4", "b.mp4")
    run()
    first = {name: Path("out", name).read_bytes() for name in ("pairs.csv", "groups.json")}
    assert calls.take() == (3, 3)
    result = run()
    assert calls.take() == (0, 0) and (result.counts["features_computed"], result.counts["pairs_computed"]) == (0, 0)
    assert {name: Path("out", name).read_bytes() for name in first} == first


def test_only_what_is_new_is_computed(take, run, calls):
    take("a.mp4", "b.mp4")
    run()
    assert calls.take() == (2, 1)
    take("a_small.mp4")
    run()
    assert calls.take() == (1, 2)
    os.rename("v/b.mp4", "v/0.mp4")
    os.makedirs("v/sub")
    os.rename("v/a.mp4", "v/sub/c.mp4")
    result = run()
    assert calls.take() == (0, 0) and groups(result) == [{"c.mp4", "a_small.mp4"}]
    with open("v/0.mp4", "ab") as file:
        file.write(b"edited")
    run()
    assert calls.take() == (1, 2)
    os.remove("v/0.mp4")
    assert groups(run()) == [{"c.mp4", "a_small.mp4"}] and calls.take() == (0, 0)
    run(orientations="none")
    assert calls.take() == (2, 1)


def test_a_lower_bound_computes_what_was_kept_as_a_score_alone(take, run, calls, monkeypatch):
    monkeypatch.setattr("vsim_fast.feature_store.pairs.KEEP_FROM", 2)
    take("a.mp4", "b.mp4", "a_small.mp4")
    assert run(min_score=1).counts["pairs_listed"] == 0
    calls.take()
    result = run(min_score=0)
    assert calls.take() == (0, 2) and result.counts["pairs_listed"] == 3
    run(min_score=0)
    assert calls.take() == (0, 0)


def test_pairs_are_listed_from_a_score_on_and_the_best_of_each_video(take, run):
    take("a.mp4", "a_small.mp4", "b.mp4")
    run(min_score=0.9)
    assert [(row["query_id"], row["ref_id"]) for row in rows()] == [("v/a.mp4", "v/a_small.mp4")]
    run(min_score=0, top=1)
    assert len(rows()) == 2 and "v/b.mp4" in {rows()[1]["query_id"], rows()[1]["ref_id"]}


def test_bad_members_are_recorded_and_the_rest_is_done(take, run, calls):
    take("a.mp4", "a_small.mp4", "bad.mp4", "black.mp4", "one.mp4")
    Path("v/empty.mp4").touch()
    os.mkfifo("v/pipe.mp4")
    result = run(["v", "v/pipe.mp4", "gone.mp4"], min_score=0)
    files = {file.path: file for file in result.files}
    assert result.status == "partial" and {path: file.status for path, file in files.items()} == {
        "v/a.mp4": "ok", "v/a_small.mp4": "ok", "v/bad.mp4": "failed", "v/black.mp4": "blank", "v/empty.mp4": "failed",
        "v/one.mp4": "ok", "v/pipe.mp4": "failed", "gone.mp4": "failed",
    }  # fmt: skip
    assert files["v/empty.mp4"].reason == "the file is empty" and files["gone.mp4"].reason == "no such file or folder"
    assert files["v/pipe.mp4"].reason == "must be a regular file, not a pipe, socket or device"
    assert files["v/black.mp4"].reason == "black or featureless throughout"
    assert result.counts["pairs"] == len(rows()) == 3  # the one-frame video is compared, the black one is not
    assert calls.take()[0] == 5
    again = run(["v"])
    assert calls.take() == (0, 0)
    (bad,) = [file for file in again.files if file.path == "v/bad.mp4"]
    assert bad.status == "failed" and bad.reason.endswith("(an earlier run; --retry-failed reads it again)")
    run(["v"], retry_failed=True)
    assert calls.take() == (1, 0)


def test_links_are_named_and_not_counted(take, run):
    take("a.mp4", "b.mp4")
    os.link("v/a.mp4", "v/hard.mp4")
    os.symlink("a.mp4", "v/0_soft.mp4")
    result = run()
    assert result.status == "complete" and result.groups == [] and result.counts["videos"] == 2
    aliases = {file.path: file.reason for file in result.files if file.status == "alias"}
    assert aliases == {path: "the same file as v/a.mp4" for path in ("v/hard.mp4", "v/0_soft.mp4")}


def test_equal_names_and_equal_bytes_in_different_folders(take, run, calls):
    take("a.mp4=v/x/clip.mp4", "b.mp4=v/y/clip.mp4", "a.mp4=v/z/clip.mp4")
    result = run(min_score=0)
    assert calls.take() == (2, 2)  # the pair of equal contents is compared once, too
    (group,) = result.groups
    assert [member.path for member in group.members] == ["v/x/clip.mp4", "v/z/clip.mp4"]
    assert [member.reason for member in group.members] == [
        "the first of equals", "the same bytes as the one to keep",
    ]  # fmt: skip
    assert len(rows()) == 3


def test_two_sets_give_matches_and_no_groups(take, run, calls):
    take("a.mp4=refs/a.mp4", "b.mp4=refs/b.mp4", "a_small.mp4=queries/s.mp4", "a.mp4=queries/same.mp4")
    result = run(["queries", "refs/b.mp4"], against=["refs"], min_score=0)
    assert calls.take() == (3, 5) and result.counts["pairs"] == 5 and result.groups == []
    assert {(row["query_id"], row["ref_id"]) for row in rows()} == {
        (q, r) for q in ("queries/s.mp4", "queries/same.mp4", "refs/b.mp4") for r in ("refs/a.mp4", "refs/b.mp4")
    } - {("refs/b.mp4", "refs/b.mp4")}  # fmt: skip
    assert [(m.query, m.ref, m.verdict) for m in result.matches] == [
        ("queries/same.mp4", "refs/a.mp4", "duplicate"), ("queries/s.mp4", "refs/a.mp4", "duplicate"),
    ]  # fmt: skip
    assert "groups.json" not in os.listdir("out")
    run(["queries"], against=["refs"], min_score=0)
    assert calls.take() == (0, 0)
    run(["queries"], against=["refs"], min_score=0, top=1)
    assert [row["query_id"] for row in rows()] == ["queries/same.mp4", "queries/s.mp4"]
    run(["refs", "queries"], min_score=0)
    assert len(rows()) == 6


def test_an_output_of_another_kind_of_run_does_not_stay(take, run):
    take("a.mp4", "b.mp4")
    run()
    run(["v/a.mp4"], against=["v/b.mp4"])
    assert "groups.json" not in os.listdir("out")
    run()
    assert "groups.json" in os.listdir("out")


def test_without_a_folder_nothing_is_written_and_the_rows_come_back(take, run):
    take("a.mp4", "a_small.mp4")
    result = run(output_dir=None, min_score=0)
    ((query, ref, scores),) = result.pairs
    assert (query, ref) == ("v/a.mp4", "v/a_small.mp4") and scores.duplicate and os.listdir() == ["v"]


def test_fewer_than_two_videos_is_an_error_with_the_first_reason(take, run):
    take("a.mp4", "bad.mp4")
    with pytest.raises(CorruptVideo, match=r"1 of 2 videos can be read, nothing to compare; v/bad.mp4: "):
        run()
    os.link("v/a.mp4", "v/b.mp4")
    with pytest.raises(CorruptVideo, match=r"1 of 1 .* v/b.mp4 is the same file as v/a.mp4"):
        run(["v/a.mp4", "v/b.mp4"])
    with pytest.raises(CorruptVideo, match="1 of 2 videos can be read"):
        run(["v/a.mp4"], against=["v/bad.mp4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be 1 or more, got 0"),
        ({"min_score": 1.5}, "min_score must be in 0..1, got 1.5"),
        ({"min_score": float("nan")}, "min_score must be in 0..1, got nan"),
        ({"orientations": "some"}, "orientations must be one of none, mirror, all, got 'some'"),
        ({"paths": ["out2"]}, "no videos in out2"),
        ({"output_dir": "v"}, "v holds videos to compare, and the output folder is not searched"),
        ({"paths": []}, "no videos in nothing"),
        ({"noise": ["v", "gone.mp4"]}, "noise: gone.mp4: no such file or folder"),
        ({"decisions": "gone.json"}, "decisions gone.json: cannot be read"),
    ],
)
def test_bad_arguments_leave_nothing(take, run, options, message):
    take("a.mp4", "a_small.mp4")
    with pytest.raises(UsageError, match=message):
        run(**options)
    assert os.listdir() == ["v"]


def test_the_output_folder_is_not_searched(take, run):
    take("a.mp4", "a_small.mp4", "b.mp4=v/out/old.mp4")
    assert run(output_dir="v/out").counts["videos"] == 2


def test_noise_must_not_be_among_the_data(take, run, calls):
    take("a.mp4", "b.mp4", "a.mp4=noise/n.mp4")
    with pytest.raises(UsageError, match=r"noise/n.mp4 has the content of v/a.mp4"):
        run(noise=["noise"])
    shutil.copy("v/b.mp4", "noise/n.mp4")
    take("a_small.mp4")
    os.rename("v/b.mp4", "noise/n.mp4")
    calls.take()
    assert run(noise=["noise"]).settings["noise"] == ["noise/n.mp4"]
    assert calls.take() == (3, 1)
    run(noise=["noise"])
    assert calls.take() == (0, 0)
    shutil.copy("v/a_small.mp4", "noise/n.mp4")
    with pytest.raises(UsageError, match=r"v/a.mp4 is shown in noise/n.mp4"):
        run(["v/a.mp4", "noise/../v/a.mp4"], noise=["noise"])


def decide(result: DedupResult, *, apart=(), keep=()):
    keys = {Path(file.path).name: {"key": file.key, "path": file.path} for file in result.files}
    return {
        "schema_version": 1,
        "not_duplicates": [{"a": keys[a], "b": keys[b]} for a, b in apart],
        "keep": [keys[name] for name in keep],
    }


def test_decisions_are_honoured(take, run, calls):
    take("a.mp4", "a_small.mp4", "b.mp4")
    decisions = decide(run(), keep=["a_small.mp4"])
    Path("out/decisions.json").write_text(json.dumps(decisions))
    result = run()
    assert [m.path for m in result.groups[0].members if m.keep] == ["v/a_small.mp4"]
    assert result.decisions == decisions
    os.rename("v/a.mp4", "v/renamed.mp4")
    Path("own.json").write_text(json.dumps(decide(result, apart=[("a_small.mp4", "a.mp4")])))
    assert run(decisions="own.json").groups == []
    calls.take()
    os.remove("v/renamed.mp4")
    assert run(decisions="own.json").notes == ["1 of 2 videos named in the decisions are not among these"]
    assert calls.take() == (0, 0)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: Input should be an object"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
        ('{"keep": [{"path": "x"}]}', "keep.0.key: Field required"),
        ('{"not_duplicates": [{"a": {"key": "k"}}]}', "not_duplicates.0.b: Field required"),
        ('{"delete": []}', "delete: Extra inputs are not permitted"),
    ],
)
def test_bad_decisions_are_named(take, run, content, field):
    take("a.mp4", "a_small.mp4")
    os.mkdir("out")
    Path("out/decisions.json").write_text(content)
    with pytest.raises(UsageError, match=f"decisions out/decisions.json: {field}"):
        run()


def test_an_interrupted_run_goes_on_where_it_was(take, run, calls, monkeypatch):
    take("a.mp4", "a_small.mp4", "b.mp4", "one.mp4")
    read, score = reading.read_copy_video, pairing.score_pairs

    def interrupted_read(path, *arguments, **options):
        if path.endswith("b.mp4"):
            raise KeyboardInterrupt
        return read(path, *arguments, **options)

    def interrupted_score(*arguments, **options):
        for n, row in enumerate(score(*arguments, **options)):
            if n == 2:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reading, "read_copy_video", interrupted_read)
        run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairing, "score_pairs", interrupted_score)
        run()
    assert calls.take() == (4, 6) and "summary.json" not in os.listdir("out")
    run()
    assert calls.take() == (0, 4)


@pytest.mark.parametrize("harm", ["cut off", "garbage", "bit flipped", "removed", "made by another version"])
def test_damaged_features_are_made_again(take, run, calls, harm):
    take("a.mp4", "a_small.mp4")
    first = run()
    calls.take()
    for path in Path("out/features").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        if harm == "removed":
            path.unlink()
        elif harm == "bit flipped":
            data[-1000] ^= 1
            path.write_bytes(data)
        elif harm == "made by another version":
            path.write_bytes(data.replace(rb"\"format\":1", rb"\"format\":0"))
        else:
            path.write_bytes(data[:-9] if harm == "cut off" else b"\xff" * len(data))
    take("b.mp4")  # so that features are needed
    result = run()
    assert calls.take() == (3, 2) and groups(result) == groups(first) and result.status == "complete"
    assert len(result.notes) == (0 if harm == "removed" else 2)
    assert all(note.endswith("; made again") for note in result.notes)


@pytest.mark.parametrize("harm", [b"", b"no database" * 1000, "cut off", "version"])
def test_a_damaged_ledger_is_begun_anew(take, run, calls, harm):
    take("a.mp4", "a_small.mp4", "b.mp4")
    first = run()
    path = Path("out/features/ledger.sqlite")
    data = path.read_bytes()
    path.write_bytes(
        {"cut off": data[: len(data) // 2], "version": data[:60] + b"\0\0\0\7" + data[64:]}.get(harm, harm)
    )
    calls.take()
    result = run()
    assert calls.take() == (0, 3) and groups(result) == groups(first)
    assert len(result.notes) == 1 and result.notes[0].startswith("ledger.sqlite: ")


def test_a_file_that_changes_while_it_is_read_is_not_kept(take, run, monkeypatch):
    take("a.mp4", "a_small.mp4", "b.mp4")
    read = reading.read_copy_video

    def growing(path, *arguments, **options):
        video = read(path, *arguments, **options)
        if path.endswith("b.mp4"):
            with open(path, "ab") as file:
                file.write(b"more")
        return video

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_copy_video", growing)
        result = run()
    assert [file.reason for file in result.files if file.status == "failed"] == [
        "it changed while it was read; run again"
    ]
    assert run().status == "complete"


def test_names_that_are_no_text_survive(take, run):
    take("a.mp4", "b.mp4")
    os.rename("v/a.mp4", os.fsdecode(b'v/<\xff\n",.mp4'))
    run(min_score=0)
    assert rows()[0]["query_id"] == 'v/<\\xff\n",.mp4'


def test_a_pair_seen_from_the_other_side(take, run):
    take("a.mp4", "a_small.mp4")
    scores = run(output_dir=None, min_score=0).pairs[0].scores
    scores = scores._replace(orientation="turned 90", query_coverage=0.2, matches=[(0, 5, 0.5), (1, 2, 0.75)])
    other = pairing.swapped(scores)
    assert other.matches == [(2, 1, 0.75), (5, 0, 0.5)] and other.orientation == "turned 270"
    assert other.ref_coverage == 0.2 and pairing.swapped(other) == scores
