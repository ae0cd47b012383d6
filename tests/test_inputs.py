"""`find_videos`: folders, patterns, lists, links, odd names. The files need be no videos: nothing is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vsim_fast.errors import UsageError
from vsim_fast.inputs import Alias, Missing, find_videos, path_id


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A folder of small files, and the working directory in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.MP4", "a.mkv", "notes.txt", "sub/a.mkv", "sub/deep/c.m2ts", ".hidden/d.mp4", ".e.mp4", "f.bin"):
        path = tmp_path / "v" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" + name.encode())
    return tmp_path


ALL = ["v/a.mkv", "v/b.MP4", "v/sub/a.mkv", "v/sub/deep/c.m2ts"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["v"], ALL),
        (["v/"], ALL),
        (["v/b.MP4", "v"], ["v/b.MP4", "v/a.mkv", "v/sub/a.mkv", "v/sub/deep/c.m2ts"]),
        (["v/./b.MP4", "v/b.MP4"], ["v/./b.MP4"]),
        (["v/f.bin", "v/.e.mp4"], ["v/f.bin", "v/.e.mp4"]),
        (["v/*.mkv"], ["v/a.mkv"]),
        (["v/*"], ALL),
        (["v/**"], ALL),
        (["v/**/*.mkv"], ["v/a.mkv", "v/sub/a.mkv"]),
        (["**/a.*"], ["v/a.mkv", "v/sub/a.mkv"]),
        (["v/*.bin"], ["v/f.bin"]),
        (["v/**/deep/*"], ["v/sub/deep/c.m2ts"]),
    ],
)
def test_what_paths_stand_for(tree, paths, expected):
    found = find_videos(paths)
    assert found.files == expected and found.sets == [list(range(len(expected)))]
    assert found.aliases == found.missing == []


def test_absolute_patterns_give_absolute_names(tree):
    assert find_videos([tree / "v/**/*.mkv"]).files == [str(tree / "v/a.mkv"), str(tree / "v/sub/a.mkv")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "# a comment\n\n  a.mkv\r\nsub\n"),
        ("l.csv", "size,Path\n1,a.mkv\n2,sub\n"),
        ("l.csv", "a.mkv,1\n\nsub,2\n"),
        ("l.json", '["a.mkv", "sub"]'),
        ("l.json", '\ufeff{"videos": ["a.mkv", "sub/**/*.*"]}'),
    ],
)
def test_list_files_are_relative_to_themselves(tree, name, content):
    (tree / "v" / name).write_text(content)
    assert find_videos([f"v/{name}"]).files == ["v/a.mkv", "v/sub/a.mkv", "v/sub/deep/c.m2ts"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", "{", "l.json: a list of videos must be JSON"),
        ("l.json", '{"videos": 3}', 'l.json: a list of videos must be \\["path", ...\\]'),
        ("l.txt", "notes.txt", "l.txt: a list must name videos, got the list 'v/notes.txt'"),
        ("l.txt", "", "no videos in v/l.txt"),
    ],
)
def test_bad_list_files_are_named(tree, name, content, message):
    (tree / "v" / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        find_videos([f"v/{name}"])


def test_links_are_named_and_their_file_is_taken_once(tree):
    os.link("v/b.MP4", "v/z_hard.mp4")
    os.symlink("b.MP4", "v/0_soft.mp4")
    os.symlink("../v", "v/sub/cycle")
    os.symlink("sub", "v/again")
    os.symlink("gone.mp4", "v/broken.mp4")
    found = find_videos(["v"])
    assert sorted(found.files) == ALL
    assert found.aliases == [Alias("v/0_soft.mp4", "v/b.MP4"), Alias("v/z_hard.mp4", "v/b.MP4")]
    assert sorted(find_videos(["v/**/*.mkv"]).files) == ["v/a.mkv", "v/sub/a.mkv"]
    found = find_videos(["v/0_soft.mp4", "v/broken.mp4"])
    assert found.files == ["v/0_soft.mp4"] and found.missing == [Missing("v/broken.mp4", "a link to nothing")]


def test_a_link_to_a_folder_elsewhere_is_followed(tree):
    os.makedirs("w")
    os.symlink("../v/sub", "w/here")
    assert find_videos(["w"]).files == ["w/here/a.mkv", "w/here/deep/c.m2ts"]
    found = find_videos(["w", "v"])
    assert found.files == ["v/sub/a.mkv", "v/sub/deep/c.m2ts", "v/a.mkv", "v/b.MP4"]
    assert found.aliases[0] == Alias("w/here/a.mkv", "v/sub/a.mkv")


def test_two_sets_share_files(tree):
    found = find_videos(["v/sub"], ["v"])
    assert found.files == ["v/sub/a.mkv", "v/sub/deep/c.m2ts", "v/a.mkv", "v/b.MP4"]
    assert found.sets == [[0, 1], [2, 3, 0, 1]]


def test_what_is_missing_is_recorded(tree):
    found = find_videos(["v/a.mkv", "v/gone.mp4", "v/*.webm"])
    assert found.files == ["v/a.mkv"]
    assert found.missing == [
        Missing("v/gone.mp4", "no such file or folder"), Missing("v/*.webm", "no video matches this pattern"),
    ]  # fmt: skip


@pytest.mark.parametrize("paths", [[], ["v/.hidden/x"], ["empty"], ["v/*.webm"]])
def test_no_video_is_an_error_that_names_what_was_searched(tree, paths):
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no videos in .*\*\.mp4, .*\*\.m2ts") as error:
        find_videos(["v"], paths)
    assert all(path in str(error.value) for path in paths)


def test_names_that_are_no_text_survive(tree):
    name = os.fsdecode(b"v/\xff\n.mp4")
    Path(name).write_bytes(b"\0")
    (tree / "v/l.txt").write_bytes(b"b.MP4\n")
    assert name in find_videos(["v"]).files
    assert path_id(name) == "v/\\xff\n.mp4"


def test_an_excluded_folder_is_not_entered(tree):
    assert find_videos(["v"], exclude=["v/sub/deep", "not/there"]).files == ["v/a.mkv", "v/b.MP4", "v/sub/a.mkv"]


def test_typescript_is_no_transport_stream(tree):
    Path("v/x.ts").write_text("export const x = 1\n")
    Path("v/y.ts").write_bytes(b"G\x40\0\x10")
    assert find_videos(["v/sub", "v"]).files[-1] == "v/y.ts"
    assert "v/x.ts" not in find_videos(["v"]).files


def test_a_folder_that_may_not_be_entered_is_recorded(tree, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = find_videos(["v"])
    assert found.files == ALL[:3] and found.missing == [Missing("v/sub/deep", "Permission denied")]
