"""`find_videos`: folders, patterns, lists, links, odd names. The files need be no videos: nothing is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from vsim_fast.errors import UsageError
from vsim_fast.inputs import Alias, Missing, find_videos, folder_key, folder_stamp, path_id


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
        ("l.txt", "notes.txt", "v/notes.txt: a list must name videos, this is a list \\(v/l.txt, line 1\\)"),
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


def test_a_skipped_folder_is_not_entered(tree):
    assert find_videos(["v"], skip_folders=["v/sub/deep", "not/there"]).files == ["v/a.mkv", "v/b.MP4", "v/sub/a.mkv"]


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


@pytest.mark.parametrize(
    ("paths", "include", "exclude", "expected"),
    [
        (["v"], ["*.mkv"], [], ["v/a.mkv", "v/sub/a.mkv"]),
        (["v"], ["*.mp4"], [], ["v/b.MP4"]),
        (["v"], ["*.MKV", "*.m2ts"], [], ["v/a.mkv", "v/sub/a.mkv", "v/sub/deep/c.m2ts"]),
        (["v"], [], ["a.*"], ["v/b.MP4", "v/sub/deep/c.m2ts"]),
        (["v"], ["a*"], ["sub/*.mkv"], ["v/a.mkv"]),
        (["v"], ["sub/**"], [], ["v/sub/a.mkv", "v/sub/deep/c.m2ts"]),
        (["v"], [], ["/sub/*"], ["v/a.mkv", "v/b.MP4"]),
        (["v"], [], ["deep/"], ["v/a.mkv", "v/b.MP4", "v/sub/a.mkv"]),
        (["v/"], [], ["**/deep"], ["v/a.mkv", "v/b.MP4", "v/sub/a.mkv"]),
        (["v/sub"], ["*/*"], [], ["v/sub/deep/c.m2ts"]),
        (["v/*"], [], ["sub"], ["v/a.mkv", "v/b.MP4"]),
        (["v/*"], ["sub/*.mkv"], [], ["v/sub/a.mkv"]),
        (["v/*/*.mkv", "v"], [], ["sub"], ["v/a.mkv", "v/b.MP4"]),
        (["v/**/*.mkv"], ["sub/*"], [], ["v/sub/a.mkv"]),
        (["**/a.*"], ["v/*"], [], ["v/a.mkv"]),
        (["v/b.MP4", "v/sub"], ["*.mkv"], [], ["v/b.MP4", "v/sub/a.mkv"]),
        (["v/l.csv"], ["./sub/*"], [], ["v/sub/a.mkv"]),
        (["v/l.csv"], [], ["a*"], ["v/b.MP4", "v/sub/deep/c.m2ts"]),
        (["v/l.csv"], [], ["sub"], ["v/a.mkv", "v/b.MP4", "v/sub/deep/c.m2ts"]),
    ],
)
def test_patterns_choose_from_what_is_found(tree, paths, include, exclude, expected):
    Path("v/l.csv").write_text("a.mkv\nb.MP4\nsub/a.mkv\nsub/*/c.m2ts\n")  # the last is searched below sub
    assert find_videos(paths, include=include, exclude=exclude).files == expected


def test_patterns_that_leave_nothing_are_named(tree):
    with pytest.raises(UsageError, match=r"no videos in v .*; 4 left out by include and exclude"):
        find_videos(["v"], include=["*.webm"])
    with pytest.raises(UsageError, match=r"exclude must hold patterns like .* got an empty one"):
        find_videos(["v"], exclude=["*.mkv", "/"])


LIST_LINES = {
    "l.txt": (b"a.mkv\n\xff\0junk" + b"x" * 200 + b"\n  # note\ngone.mp4\nl.csv\nsub\nx*.mkv\n" + b"y" * 300 + b"\n", [
        (os.fsdecode(b"\xff\0junk" + b"x" * 74), "no path: it holds a null character (v/l.txt, line 2)"),
        ("v/gone.mp4", "no such file or folder (v/l.txt, line 4)"),
        ("v/l.csv", "a list must name videos, this is a list (v/l.txt, line 5)"),
        ("v/x*.mkv", "no video matches this pattern (v/l.txt, line 7)"),
        ("v/" + "y" * 300, "File name too long (v/l.txt, line 8)"),
    ]),
    "l.csv": (b'size,file\n1,a.mkv\n2\n3,"no\nfile"\n4,\n5,sub\n', [
        ("2", "the row has nothing in column file (v/l.csv, line 3)"),
        ("v/no\nfile", "no such file or folder (v/l.csv, line 5)"),
        ("4,", "the row has nothing in column file (v/l.csv, line 6)"),
    ]),
    "m.csv": (b'a.mkv\n"gone.mp4\nsub\n' + b"z" * 140_000 + b"\n", [
        ("v/gone.mp4", "no such file or folder (v/m.csv, line 2)"),
        ("z" * 80, "no row of a csv: field larger than field limit (131072) (v/m.csv, line 4)"),
    ]),
    "l.json": (b'["a.mkv", 7, {"path": "x"}, "q\\u0000", "sub"]', [
        ("7", "must be text between quotes (v/l.json, entry 2)"),
        ('{"path": "x"}', "must be text between quotes (v/l.json, entry 3)"),
        ("q\0", "no path: it holds a null character (v/l.json, entry 4)"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", LIST_LINES)
def test_lines_that_are_no_path_are_recorded_and_stop_nothing(tree, name):
    Path("v/l.csv").write_bytes(LIST_LINES["l.csv"][0])
    content, missing = LIST_LINES[name]
    Path("v", name).write_bytes(content)
    found = find_videos([f"v/{name}"])
    assert found.files == ["v/a.mkv", "v/sub/a.mkv", "v/sub/deep/c.m2ts"]
    assert found.missing == [Missing(*entry) for entry in missing]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"\0\1\n\0\n", "no entry of this list can be read; line 1: no path"),
        (
            "l.csv",
            b"size,path\n1\n2\n",
            "no entry of this list can be read; line 2: the row has nothing in column path",
        ),
        ("l.json", b"[1, 2]", "no entry of this list can be read; entry 1: must be text"),
        ("l.json", b"[" * 100_000, "a list of videos must be JSON"),
        ("l.json", "[\u00e9".encode("utf-16"), "a list of videos must be JSON"),
    ],
)
def test_a_list_of_which_nothing_can_be_read_is_an_error(tree, name, content, message):
    Path("v", name).write_bytes(content)
    with pytest.raises(UsageError, match=f"^v/{name}: {message}"):
        find_videos(["v", f"v/{name}"])


@pytest.fixture
def frames(tree) -> Path:
    for name in (
        "movie/1.png", "movie/2.PNG", "movie/notes.txt", "movie/masks/1.webp", "sub/deep/1.jpg", "sub/1.jpg", "e/x.gif",
    ):  # fmt: skip
        path = tree / "v" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tree


def test_a_folder_of_images_is_a_video_if_no_video_is_below_it(frames):
    images = ["v/movie", "v/movie/masks"]
    assert find_videos(["v"]).files == ALL
    assert find_videos(["v"], images=True).files == ["v/a.mkv", "v/b.MP4", *images, *ALL[2:]]
    assert find_videos(["v/movie/"], images=True).files == images
    assert find_videos(["v/movie/", "v/**/mo*", "v/mo*"], images=True).files == images
    assert find_videos(["v"], images=True, include=["m*"], exclude=["masks"]).files == ["v/movie"]
    assert find_videos(["v/movie"], images=True, exclude=["m*"]).files == ["v/movie"]  # named outright
    Path("v/l.txt").write_text("movie\nsub/deep\n")
    assert find_videos(["v/l.txt"], images=True).files == [*images, "v/sub/deep/c.m2ts"]
    assert find_videos(["v/l.txt"], images=True, exclude=["movie"]).files == ["v/movie/masks", "v/sub/deep/c.m2ts"]
    os.symlink("movie", "v/0")
    assert find_videos(["v"], images=True).aliases == []  # no folder is entered twice
    with pytest.raises(UsageError, match="no videos in v/e"):
        find_videos(["v/e"], images=True)


def test_a_folder_of_images_is_known_by_its_images(frames):
    key, stamp = folder_key("v/movie"), folder_stamp("v/movie")
    Path("v/movie/notes.txt").write_text("more")
    os.rename("v/movie", "v/other")
    assert (folder_key("v/other/"), folder_stamp("v/other")) == (key, stamp)
    status = os.stat("v/other/1.png")
    os.rename("v/other/1.png", "v/other/3.png")
    assert folder_key("v/other") != key and folder_stamp("v/other") != stamp
    os.rename("v/other/3.png", "v/other/1.png")
    assert (folder_key("v/other"), folder_stamp("v/other")) == (key, stamp)
    Path("v/other/1.png").write_text("movie/1.pnG")
    os.utime("v/other/1.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert folder_key("v/other") != key and folder_stamp("v/other") != stamp
    with pytest.raises(OSError):
        folder_key("v/gone")


def test_urls_are_taken_or_expanded(tree):
    memory = fsspec.filesystem("memory")
    for name in ("/box/a.mp4", "/box/sub/b.MKV", "/box/notes.txt", "/box/c[1].mp4", "/box/raw"):
        memory.pipe_file(name, b"x")
    urls = ["s3://b/x.mp4", "https://h/v?id=3", "memory://box/c[1].mp4", "memory://box/raw", f"file://{tree}/v/a%2emkv"]
    schemes = "s3://, gs://, memory://, file://, http://, https://"
    (tree / "l.txt").write_text("\n".join([*urls, "file://elsewhere/a.mp4", "ftp://h/v/", "memory://none/"]))
    found = find_videos(["l.txt", "v/a.mkv"])
    assert found.files == [*urls[:4], str(tree / "v/a.mkv")] and found.sets == [[0, 1, 2, 3, 4]]
    assert found.missing == [
        Missing("file://elsewhere/a.mp4", "a file URL must name this machine, not 'elsewhere' (l.txt, line 6)"),
        Missing("ftp://h/v/", f"ftp:// is not read here, but {schemes} (l.txt, line 7)"),
        Missing("memory://none/", "no video is below this or matches it (l.txt, line 8)"),
    ]  # fmt: skip
    below = ["memory://box/a.mp4", "memory://box/c[1].mp4", "memory://box/sub/b.MKV"]
    assert find_videos(["memory://box/", "memory://box/*.mp4"]).files == below
    assert find_videos(["memory://box"], exclude=["sub"]).files == below[:2]
    assert find_videos(["memory://box/*"], include=["*.mkv"]).files == below[2:]
    memory.rm("/box", recursive=True)
    with pytest.raises(UsageError, match="no videos in memory://box/"):
        find_videos(["memory://box/"])


def test_a_link_to_itself_is_passed_over(tree):
    os.symlink("loop.mp4", "v/loop.mp4")
    os.symlink("round", "v/round")
    assert find_videos(["v"]).files == ALL
