from __future__ import annotations

import errno
import os
import re

import numpy as np
import pytest

from vsim_fast import store
from vsim_fast.errors import OutputError, UsageError
from vsim_fast.store import ArrayWriter, OutputFolder, atomic_path


@pytest.mark.parametrize("key", [None, "position_similarities"], ids=["npy", "npz"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("rows", [7, 4, 0], ids=["all-rows", "short", "none"])
def test_array_writer_equals_numpy(tmp_path, key, compress, rows):
    array = np.random.default_rng(0).random((7, 3, 5), dtype=np.float32)
    path = tmp_path / "a.npz"
    with ArrayWriter(path, array.shape, "float32", key=key, compress=compress) as writer:
        for start in range(0, rows, 3):
            writer.write(array[start : min(start + 3, rows)])
    loaded = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(loaded[key] if key else loaded, array[:rows])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


def test_array_writer_casts_and_rejects_wrong_blocks(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (2, 4), "float16") as writer:
        writer.write(np.ones((2, 4), dtype=np.float32))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write(np.ones((1, 4)))
    assert np.load(tmp_path / "a.npy").dtype == np.float16


def test_folder_commits_together_and_in_order(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with OutputFolder(tmp_path) as out:
        out.file("old.txt").write_text("new")
        out.file("summary.json").write_text("{}")
        assert (tmp_path / "old.txt").read_text() == "old"
        assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "old.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.txt", "summary.json"]


def test_folder_keeps_what_was_there_when_the_run_fails(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), OutputFolder(tmp_path) as out:
        out.file("old.txt").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


def test_folder_removes_what_a_killed_run_left(tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    (tmp_path / f"{store.PARTIAL}{pid}").mkdir()
    (tmp_path / f"{store.PARTIAL}{os.getppid()}").mkdir()  # its process still runs
    with OutputFolder(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [f"{store.PARTIAL}{os.getppid()}"]


def test_folder_rejects_names_that_leave_it(tmp_path):
    with OutputFolder(tmp_path) as out, pytest.raises(UsageError, match="must not leave"):
        out.file("../x")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        OutputFolder(tmp_path / "file")


def test_folder_refuses_more_than_the_free_disk(tmp_path):
    with OutputFolder(tmp_path) as out, pytest.raises(OutputError, match="--reduce stats"):
        out.require_space(1 << 60)


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    monkeypatch.setattr(store, "SYNC_EVERY", 1)
    with (
        pytest.raises(OutputError, match=f"^{re.escape(str(tmp_path / 'a.npz'))}: the disk is full"),
        OutputFolder(tmp_path) as out,
        ArrayWriter(out.file("a.npz"), (4, 4), "float32", key="a") as writer,
    ):
        writer.write(np.zeros((4, 4), np.float32))
    assert not list(tmp_path.iterdir())


def test_atomic_path_renames_or_removes(tmp_path):
    with atomic_path(tmp_path / "a.json") as partial:
        partial.write_text("1")
        assert not (tmp_path / "a.json").exists()
    with pytest.raises(KeyError), atomic_path(tmp_path / "b.json") as partial:
        partial.write_text("1")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folder_translates_refusals_of_the_system(tmp_path):
    with pytest.raises(OutputError, match="disk is full"), OutputFolder(tmp_path / "o"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "o").exists()
