"""Whatever is killed, cut off, lost or full: the next run finds it, makes that again, and touches nothing else."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from small_store import SETTINGS, done, files, key_of, path_of, tensors

from vsim_fast.errors import OutputError, UsageError
from vsim_fast.feature_store import Failed, Store

COUNT = 4
RUN = """
import os, sys
from pathlib import Path
import numpy as np
from vsim_fast.feature_store import Done, Store, file_digest
root, count = Path(sys.argv[1]), int(sys.argv[2])
with Store(root / "store", write=True, settings={}) as store:
    store.forget(store.verify(root, content=False))
    paths = [f"/v/{n}.mp4" for n in range(count)]
    keys = [f"{n:032x}-{n}" for n in range(count)]
    names = store.names(paths, [str(n // 2) for n in range(count)])
    rows = []
    for n, state in enumerate(store.states(paths, keys)):
        facts = {"n": n}
        file = f"{names[n]}.bin"
        if state.status != "done":
            store.begin([paths[n]])
            stored = store.write_features(keys[n], {"embedding": np.full(300, n, np.float32)}, facts)
        elif file not in state.outputs:
            stored = state.feature_file
        else:
            continue
        (root / "part").write_bytes(bytes([n]) * 5000)
        os.replace(root / "part", root / file)
        rows.append(Done(keys[n], paths[n], facts, stored, {file: file_digest(root / file)}))
        if len(rows) == 3 or n == count - 1:
            store.record(rows)
            store.end(row.path for row in rows)
            os.write(1, "".join(f"{row.key}\\n" for row in rows).encode())
            rows = []
"""


def run(root: Path, count: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RUN, str(root), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def results(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """What a user has of it; not the ledger, which may tell the same in another order."""
    kept = ("store/features", "store/embeddings", "store/settings")
    return {n: told for n, told in files(root).items() if n.startswith(kept) or (n.endswith("bin"))}


def test_runs_killed_at_any_moment_lose_nothing(tmp_path):
    count, moments = 60, random.Random(7)
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    with run(tmp_path / "calm", count) as calm:
        calm.communicate()
    root, recorded, before = tmp_path / "killed", set(), {}
    for _ in range(8):
        with run(root, count) as killed:
            for _ in range(moments.randrange(3)):
                recorded.add(killed.stdout.readline().strip())
            for _ in range(moments.randrange(30_000)):
                pass
            killed.kill()
            recorded |= set(killed.stdout.read().split("\n")[:-1])
        recorded.discard("")
        if recorded:
            reader = Store(root / "store")
            assert {video.key for video in reader.videos()} >= recorded and reader.notes == []
            keys = sorted(recorded)
            states = reader.states([f"/v/{int(key.split('-')[1])}.mp4" for key in keys], keys)
            assert all(state.status == "done" and len(state.outputs) == 1 for state in states)
            now = results(root)
            whole = {state.feature_file.file for state in states} | {name for state in states for name in state.outputs}
            whole = {name for name in now if name.removeprefix("store/") in whole}
            assert len(whole) == 2 * len(keys)
            assert {name: now[name] for name in before} == before
            before = {name: now[name] for name in whole}
    with run(root, count) as last:
        last.communicate()
    found, calm = results(root), results(tmp_path / "calm")
    assert {name: data for name, (*_, data) in found.items()} == {name: data for name, (*_, data) in calm.items()}
    assert {name: found[name] for name in before} == before
    assert list(Store(root / "store").verify(root)) == []
    assert not any(".vsim-partial-" in path.name for path in root.rglob("*"))


@pytest.fixture
def whole(tmp_path):
    """A store of COUNT videos in `whole/`, closed."""
    root = tmp_path / "whole"
    root.mkdir()
    with Store(root / "store", write=True, settings=SETTINGS) as store:
        store.names([path_of(n) for n in range(COUNT)], ["same"] * COUNT)
        store.record([done(store, n, root) for n in range(COUNT)])
        store.record([Failed("bad", "/videos/bad.mp4", "failed", "no video stream")])
    return root


def work(root: Path) -> tuple[list[str], list[str]]:
    """What any run does: find what is damaged, make what is missing; returns the names and the notes."""
    with Store(root / "store", write=True, settings=SETTINGS) as store:
        store.forget(store.verify(root, content=False))
        paths, keys = [path_of(n) for n in range(COUNT)], [key_of(n) for n in range(COUNT)]
        states = store.states(paths, keys)
        store.record([done(store, n, root, s.feature_file) for n, s in enumerate(states) if not s.outputs])
        return store.names(paths, ["same"] * COUNT), store.notes


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["emptied", "cut in half", "one byte short"])
def test_any_file_may_be_cut_off(whole, tmp_path, share):
    before = files(whole)
    names, _ = work(whole)
    passing = ("store/lock", "store/in_flight")
    assert {n: t for n, t in files(whole).items() if n not in passing} == {
        n: t for n, t in before.items() if n not in passing
    }  # nothing to do, nothing changed
    for victim, (_, _, data) in before.items():
        if not data:
            continue
        root = tmp_path / "copy"
        shutil.copytree(whole, root)
        os.truncate(root / victim, int(share * (len(data) - 1)))
        harmed = files(root)
        assert work(root)[0] == names, victim
        found = files(root)
        reordered = ("ledger", "embeddings.")  # a video that is made again comes last
        assert {n: t[2] for n, t in found.items() if not any(name in n for name in reordered)} == {
            n: t[2] for n, t in before.items() if not any(name in n for name in reordered)
        }, victim
        changed = {n for n in before if ("features/" in n or "_embedding" in n) and found[n] != harmed[n]}
        if "ledger" in victim:  # it alone knew of the outputs: they are written again, the same
            assert not any("features/" in n for n in changed)
            aside = sorted(set(found) - set(before))
            assert aside == ["store/ledger.damaged-1.sqlite"] and found[aside[0]][2] == harmed[victim][2]
        elif "features/" in victim:
            assert victim in changed and changed - {victim} <= {f"{int(victim.split('/')[-1][:32])}_embedding.npy"}
        else:
            assert changed == {victim} & set(changed), victim
        with Store(root / "store") as store:
            assert list(store.verify(root)) == [] and store.notes == []
            assert [video.name for video in sorted(store.videos())] == names
            for video, vector in zip(*store.embeddings(), strict=True):
                assert (vector == tensors(video.facts["n"])["embedding"].numpy()).all()
        shutil.rmtree(root)


@pytest.mark.parametrize("lost", ["", "settings.json", "paths.jsonl"])
@pytest.mark.parametrize("layout", ["safetensors", "npy"])
def test_a_lost_ledger_is_made_again_from_the_feature_files(tmp_path, lost, layout):
    folder = tmp_path / "store"
    paths, keys = [path_of(n) for n in range(3)], [key_of(n) for n in range(3)]
    with Store(folder, write=True, settings=SETTINGS, layout=layout) as store:
        names = store.names(paths, ["same"] * 3)
        store.record([done(store, n) for n in range(3)])
        expected = store.states(paths, keys), store.videos()
    (folder / "ledger.sqlite").unlink()
    if lost:
        (folder / lost).unlink()
    os.truncate(next((folder / "features").rglob("*.[sn][ap][fy]*")), 60)  # of one video, which must be made again
    before = files(folder)
    reader = Store(folder, settings=SETTINGS)
    assert len(reader) == 2 and reader.notes[0].startswith("ledger.sqlite: missing; read from the feature files, the")
    assert files(folder) == before
    with Store(folder, write=True, settings=SETTINGS) as store:
        assert store.notes[0] == "ledger.sqlite: missing; made again from the feature files"
        assert "1 feature files that no run recorded are damaged; they are made again" in store.notes
        states = store.states(paths, keys)
        assert sorted(state.status for state in states) == ["done", "done", "new"]
        assert all(s in (e, e._replace(status="new")) for s, e in zip(states, expected[0], strict=True) if s.facts)
        if lost != "paths.jsonl":
            assert store.names(paths, ["other"] * 3) == names
            assert all(video in expected[1] for video in store.videos()) and len(store.videos()) == 2
    with Store(folder) as store:
        assert store.settings == SETTINGS and store.notes == []


def test_a_damaged_ledger_of_unknown_settings_is_not_guessed_at(whole):
    folder = whole / "store"
    (folder / "settings.json").unlink()
    (folder / "ledger.sqlite").write_bytes(b"no database" * 1000)
    before = {name: told for name, told in files(folder).items() if name != "lock"}
    with pytest.raises(UsageError, match="give the settings"):
        Store(folder, write=True)
    assert {name: told for name, told in files(folder).items() if name != "lock"} == before
    with Store(folder, write=True, settings={"others": 1}) as store:  # nothing here is of these
        assert len(store) == 0


def test_a_run_killed_in_mid_commit_is_read_as_of_before_it(whole, tmp_path):
    root = tmp_path / "killed"
    with Store(whole / "store", write=True) as store, pytest.raises(ZeroDivisionError):
        store._ledger.database.execute("pragma cache_size = 1")  # so that changes reach the file before the commit
        with store._ledger.writing() as database:
            database.executemany("insert into meta values (?, ?)", ((f"m{n}", "1" * 500) for n in range(300)))
            database.execute("delete from contents")
            shutil.copytree(whole, root)  # what a kill at this moment leaves
            raise ZeroDivisionError
    plain = sqlite3.connect(f"file:{root}/store/ledger.sqlite?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError):
        plain.execute("select * from contents")
    plain.close()
    (root / "store" / "lock").write_text("")
    before = files(root)
    assert "store/ledger.sqlite-journal" in before
    with Store(root / "store") as reader:
        assert len(reader) == COUNT and reader.meta("m1") is None and reader.notes == []
    assert files(root) == before
    with Store(root / "store", write=True) as store:
        assert len(store) == COUNT and store.notes == []
    assert "store/ledger.sqlite-journal" not in files(root)


def test_a_stale_journal_is_not_played_into_a_new_ledger(whole):
    folder = whole / "store"
    (folder / "ledger.sqlite").rename(folder / "ledger.sqlite-journal")
    with Store(folder, write=True) as store:
        assert len(store) == COUNT and "ledger.sqlite-journal: moved to ledger.damaged-1.sqlite-journal" in store.notes


def test_features_written_and_not_recorded_are_taken_over(folder, store):
    done(store, 1)
    partial = folder / "features" / "00" / ".x.vsim-partial-1-1"
    partial.write_bytes(b"half")
    (folder / "features" / "00" / ".y.vsim-partial-1-1").mkdir()
    store._release()  # as when it is killed
    with Store(folder, write=True, settings=SETTINGS) as again:
        assert again.notes == ["1 feature files that no run recorded are whole; taken over"]
        assert again.states([path_of(1)], [key_of(1)])[0].facts == {"n": 1}
        assert again.videos() == []  # until it is known which file has this content
        again.note_key(path_of(1), key_of(1), (1, 1, 1))
        again.flush()
        assert [video.paths for video in again.videos()] == [(path_of(1),)]
    assert [path.name[0] for path in partial.parent.iterdir()] == ["0"]


def test_what_a_killed_run_had_in_hand_is_known(folder, store):
    paths = ["/a\n+b", "/c", "/\udcff", "/d"]
    store.begin(paths)
    store.end(["/c"])
    assert store.abandoned() == [] and Store(folder).status()["in_flight"] == ["/a\n+b", r"/\xff", "/d"]
    store._release()  # as when it is killed
    os.truncate(folder / "in_flight", (folder / "in_flight").stat().st_size - 2)
    with Store(folder, write=True, settings=SETTINGS) as again:
        assert again.abandoned() == ["/a\n+b", "/c", r"/\xff", "/d"]  # when in doubt
        again.end(["/a\n+b"])
        again._release()
        with Store(folder, write=True, settings=SETTINGS) as third:
            assert third.abandoned() == ["/c", r"/\xff", "/d"]
    assert Store(folder).abandoned() == [] and (folder / "in_flight").stat().st_size == 0


def test_a_full_disk_is_one_line_and_the_ledger_stays_right(folder, store, monkeypatch):
    store.record([done(store, 0)])
    rows = [done(store, n) for n in range(1, 200)]
    (pages,) = store._ledger.database.execute("pragma page_count").fetchone()
    store._ledger.database.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(OutputError, match=r"ledger\.sqlite: database or disk is full; free space or write elsewhere"):
        store.record(rows)
    assert len(store) == 1 and len(Store(folder)) == 1
    store._ledger.database.execute("pragma max_page_count = 1000000")

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, use in {"_log": lambda: store.record(rows[:1]), "_flights": lambda: store.begin(["/a"])}.items():
        with monkeypatch.context() as patch, pytest.raises(OutputError, match=rf"{folder}/.*: the disk is full"):
            patch.setattr(store, name, Full())
            use()
    assert len(store) == 1
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"embeddings\..*: the disk is full"):
        patch.setattr(os, "fsync", lambda _: Full().write(b""))
        store.flush()
    store.record(rows)
    store.flush()
    assert len(Store(folder)) == 200 == len(Store(folder).embeddings()[1])
    assert tensors(1).keys() == store.features(key_of(1)).keys()
