"""The store of a large batch: nothing lost by a kill, nothing overwritten, readers beside a writer, damage found."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_store import SETTINGS, done, files, key_of, tensors

import vsim_fast
from vsim_fast.errors import OutputError, UsageError
from vsim_fast.feature_store import DamagedFeatures, Done, Failed, Problem, State, Store, stamp
from vsim_fast.feature_store.pairs import FeatureStore


def test_it_is_public():
    assert vsim_fast.Store is Store


def test_what_is_recorded_comes_back(folder, store, tmp_path):
    rows = [done(store, n, tmp_path) for n in range(3)]
    store.record(rows)
    store.record([Failed("k9", "/videos/9.mp4", "failed", "no video stream")])
    store.record([Failed(None, "/videos/8.mp4", "failed", "permission denied", remembered=False)])
    store.set_meta("last_run", {"done": 3})
    paths = [row.path for row in rows] + ["/videos/9.mp4", "/videos/8.mp4", "/videos/7.mp4"]
    keys = [row.key for row in rows] + ["k9", None, "k7"]
    for opened in (store, Store(folder)):
        states = opened.states(paths, keys)
        assert states[1] == State("done", None, 0, rows[1].outputs, rows[1].feature_file, '{"n": 1}')
        assert [state.status for state in states] == ["done"] * 3 + ["failed", "new", "new"]
        assert [state.reason for state in states[3:]] == ["no video stream", "permission denied", None]
        assert len(opened) == 3 and opened.meta("last_run") == {"done": 3} and opened.meta("no") is None
        assert opened.settings == SETTINGS and opened.notes == []
        status = opened.status()
        assert (status["videos"], status["files"], status["failed"]) == (3, 3, 2)
        assert [failure["path"] for failure in status["failures"]] == ["/videos/8.mp4", "/videos/9.mp4"]
        assert status["writer"]["pid"] == os.getpid() and status["last_run"] == {"done": 3}
        found = opened.features(rows[2].key)
        assert {name: array.dtype.str for name, array in found.items()} == {
            "embedding": "<f4", "featureless": "|b1", "pooled": "<f2", "pts_seconds": "<f8"
        }  # fmt: skip
        for name, tensor in tensors(2).items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
        assert opened.states(paths[:1], [keys[1]])[0].outputs == {}  # of this content, but another path
        with pytest.raises(KeyError, match="holds no features of k9"):
            opened.features("k9")


def test_names_are_for_ever_and_collide_on_no_file_system(folder, store):
    paths = ["/x/a.mp4", "/y/a.mp4", "/z/A.mp4", "/x/b.mp4", "rel/a.mp4", "/x/\udcff.mp4", "/x/" + "ü" * 120 + ".mp4"]
    stems = ["a", "a", "A", "b", "a", "\udcff", "ü" * 120]
    names = store.names(paths, stems)
    assert names[0] == "a" and names[3] == "b" and names[5] == r"\xff" and len(names[6].encode()) <= 180
    assert [name[:2] for name in names[1:3]] == ["a~", "A~"] and len(names[1]) == len("a~") + 8
    assert len({name.casefold() for name in names}) == len(names)
    assert store.names(["/new/b.mp4", *paths[::-1]], ["b", *stems[::-1]])[1:] == names[::-1]
    assert store.names(["/u/é.mp4", "/v/é.mp4"], ["é", "é"])[1].startswith("é~")  # composed or not
    assert store.names([os.path.abspath("rel/a.mp4"), "rel/../rel/a.mp4"], ["a", "a"]) == [names[4]] * 2
    assert store.names(["s3://b//a.mp4"], ["a"]) != [names[0]]
    store.close()
    with Store(folder, write=True, settings=SETTINGS) as again:
        assert again.names(paths, stems) == names
        taken = again.names(["/t/x.mp4"], ["a~" + names[1][2:]])  # a stem that looks like a name given before
        assert taken[0] not in names and taken[0].startswith(names[1] + "~")


def test_a_key_is_known_while_its_file_is_the_same(folder, store, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "\udcff", "gone")]
    for path in paths:
        path.write_bytes(b"1")
    assert store.known_keys(paths) == [None] * 4
    for path in paths:
        store.note_key(path, f"k{path.name[-1:].encode(errors='replace').decode()}", stamp(path))
    for opened in (store, None):
        if opened is None:  # they are kept by the end of the run
            store.close()
            opened = Store(folder)
        assert opened.known_keys(paths) == ["ka", "kb", "k?", "ke"]
    paths[0].write_bytes(b"22")
    paths[3].unlink()
    os.replace(paths[1], tmp_path / "c")
    (tmp_path / "b").write_bytes(b"1")
    assert opened.known_keys(paths) == [None, None, "k?", None]


def test_an_edited_file_has_no_outputs_of_before(store, tmp_path):
    row = done(store, 1, tmp_path)
    store.record([row])
    assert store.states([row.path], [row.key])[0].outputs == row.outputs
    store.note_key(row.path, "other", stamp(tmp_path))
    store.flush()
    assert store.states([row.path], ["other"])[0].status == "new"
    state = store.states([row.path], [row.key])[0]
    assert state.status == "done" and state.outputs == {}
    assert store.videos() == []  # no file has this content now


def test_strikes_count_per_content_and_end_with_success(store, tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    assert [store.add_strike(path, "killed by signal 11") for _ in range(2)] == [1, 2]
    assert store.states([path], [None]) == [State("new", "killed by signal 11", 2)]
    store.note_key(path, "k", stamp(path))
    assert store.add_strike(path, "killed by signal 6") == 1 and store.states([path], ["k"])[0].strikes == 1
    assert store.add_strike(path, "killed by signal 6") == 2
    store.record([Failed("k", str(path), "quarantined", "killed its worker twice")])
    assert store.states([path], ["k"]) == [State("quarantined", "killed its worker twice", 2)]
    assert store.status()["quarantined"] == 1 and store.status()["failures"][0]["strikes"] == 2
    store.record([Done("k", str(path), {}, store.write_features("k", tensors(), {}))])
    assert store.states([path], ["k"])[0].strikes == 0 and store.states([path], [None]) == [State("new")]
    assert store.status()["failures"] == []


def test_many_are_recorded_in_one_transaction_or_not_at_all(folder, store):
    rows = [done(store, n) for n in range(3)]
    store.note_key("/noted", "k", (1, 2, 3))
    with pytest.raises(sqlite3.Error):
        store.record(iter([*rows, Failed("k", "/a", "failed", "\udcff", object())]))
    assert len(store) == 0 and store.states([rows[0].path], [rows[0].key])[0].status == "new"
    store.record(iter(rows))
    assert len(Store(folder)) == 3
    assert Store(folder)._ledger.read("select key from paths where path = '/noted'") == [("k",)]


def test_a_second_writer_is_refused_and_told_of_the_first(folder, store):
    told = rf"in use by another run \(process {os.getpid()} on .+, since \d{{4}}-.*: .*\); wait for it"
    before = files(folder)
    with pytest.raises(OutputError, match=told):
        Store(folder, write=True, settings=SETTINGS)
    assert files(folder) == before
    assert Store(folder).status()["writer"]["pid"] == os.getpid()
    store.close()
    assert Store(folder).status()["writer"] is None
    (folder / "lock").write_text('{"pid": 1, "host": "elsewhere", "since": "then", "command": "vsim"}')
    assert Store(folder).status()["writer"] is None
    Store(folder, write=True).close()


def test_a_killed_run_leaves_no_lock_though_its_workers_live(folder):
    script = (
        "import os, sys; from vsim_fast.feature_store import Store\n"
        "store = Store(sys.argv[1], write=True, settings={})\n"
        "if not os.fork(): os.write(1, b'!'); os.read(0, 1); os._exit(0)\n"
        "os.wait()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script, folder], env=environment, **pipes) as run:
        assert run.stdout.read(1) == b"!"  # the worker runs
        with pytest.raises(OutputError, match=rf"process {run.pid} on"):
            Store(folder, write=True)
        run.kill()
        run.wait()
        Store(folder, write=True).close()
        run.stdin.write(b"!")  # the worker ends


def test_a_reader_works_beside_a_writer_and_changes_no_file(folder, store):
    store.record([done(store, 0)])
    before = files(folder)
    reader = Store(folder)
    with store._ledger.writing() as database:  # in the middle of a transaction
        database.execute("delete from contents")
        assert len(reader) == 1 and reader.status()["videos"] == 1 and len(reader.embeddings()[0]) == 1
        database.execute("insert into meta values ('a', '1')")
        assert reader.meta("a") is None
        during = files(folder)
        assert {name for name in during if during[name] != before.get(name)} <= {"ledger.sqlite-journal"}
        database.execute("rollback")
        database.execute("begin")
    reader.frame_vectors(), list(reader.verify(folder)), reader.videos(), reader.features(key_of(0))
    reader.close()
    assert files(folder) == before
    uses = {
        "record": [[]], "begin": [[]], "forget": [[]], "set_meta": ["a", 1], "names": [["/new"], ["new"]],
        "add_strike": ["a", "b"], "flush": [],
    }  # fmt: skip
    for name, arguments in uses.items():
        with pytest.raises(UsageError, match="opened for reading"):
            getattr(Store(folder), name)(*arguments)
    assert files(folder) == before


def test_there_is_nothing_to_read(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(OutputError, match="there is no feature store here"):
            Store(folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Store(tmp_path / "file" / "store", write=True, settings={})
    with pytest.raises(UsageError, match="give the settings"):
        Store(tmp_path / "new", write=True)


def untouched(folder):
    return {name: told for name, told in files(folder).items() if name != "lock"}


def test_other_settings_are_refused_with_what_differs(folder, store):
    store.record([done(store, 0)])
    store.close()
    before = untouched(folder)
    other = {"encoder": {"spec": "timm:x", "image_size": 224}, "sampling": {"fps": 2.0}, "new": None, "keep": ["cls"]}
    told = (
        r'other settings \(encoder\.spec "builtin", now "timm:x"; keep \["pooled"\], now \["cls"\]; '
        r"sampling\.fps 1\.0, now 2\.0\); take another folder"
    )
    for write in (True, False):
        with pytest.raises(UsageError, match=told):
            Store(folder, write=write, settings=other)
    (folder / "ledger.sqlite").unlink()
    before.pop("ledger.sqlite")
    with pytest.raises(UsageError, match=told):  # settings.json remembers, too
        Store(folder, write=True, settings=other)
    assert untouched(folder) == before


def test_another_version_or_another_ledger_is_refused(folder, store):
    store.close()
    path = folder / "ledger.sqlite"
    data = path.read_bytes()
    told = {
        "version": (60, r"made by vsim_fast 0\.1\.0 \(schema 7\), this is vsim_fast .* \(schema 1\); use that version"),
        "kind": (68, r"this is not the ledger of a feature store; take another folder"),
    }
    for place, message in told.values():
        path.write_bytes(data[:place] + b"\0\0\0\7" + data[place + 4 :])
        before = untouched(folder)
        for write in (True, False):
            with pytest.raises(OutputError, match=message):
                Store(folder, write=write, settings=SETTINGS)
        assert untouched(folder) == before


def test_dedup_does_not_remove_the_ledger_of_another_store(folder, store):
    store.close()
    before = untouched(folder)
    with pytest.raises(OutputError, match="the ledger of another kind of store"):
        FeatureStore(folder)
    assert untouched(folder) == before


def test_embeddings_are_mapped_from_one_file_that_grows(folder, store):
    def given(numbers):
        return np.stack([tensors(n)["embedding"].numpy() for n in numbers])

    assert store.embeddings()[1].shape[0] == 0
    store.record([done(store, n) for n in (3, 1)])
    np.testing.assert_array_equal(store.embeddings()[1], given([3, 1]))
    store.flush()
    (path,) = folder.glob("embeddings.*.npy")
    inode = path.stat().st_ino
    earlier = Store(folder).embeddings()[1]
    assert isinstance(earlier, np.memmap)
    store.record([done(store, 2)])
    videos, vectors = Store(folder).embeddings()  # of before the flush
    assert [video.key for video in videos] == [key_of(n) for n in (3, 1, 2)]
    np.testing.assert_array_equal(vectors, given([3, 1, 2]))
    store.close()
    videos, vectors = Store(folder).embeddings()
    assert isinstance(vectors, np.memmap) and path.stat().st_ino == inode
    np.testing.assert_array_equal(vectors, given([3, 1, 2]))
    np.testing.assert_array_equal(np.load(path), given([3, 1, 2]))
    np.testing.assert_array_equal(earlier, given([3, 1]))
    with Store(folder, write=True) as store:
        features = {"embedding": tensors(9)["embedding"]}
        store.record([Done(key_of(1), "/videos/1.mp4", {}, store.write_features(key_of(1), features, {}))])
    np.testing.assert_array_equal(Store(folder).embeddings()[1], given([3, 9, 2]))


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are listed on Linux")
def test_gathering_embeddings_holds_no_file_mapped(folder, store, monkeypatch):
    """A process may hold some 65,000 mappings; the next feature file would seem damaged."""
    from vsim_fast.feature_store import embeddings

    mapped, stacked = [], embeddings._stacked

    def spy(rows, *width):
        mapped.append(Path("/proc/self/maps").read_text().count(str(folder / "features")))
        return stacked(rows, *width)

    monkeypatch.setattr(embeddings, "_stacked", spy)
    store.record([done(store, n) for n in range(5)])
    store.flush()
    assert store.embeddings()[1].shape[0] == 5 and mapped and set(mapped) == {0}


@pytest.mark.parametrize("harm", ["rows cut off", "lines cut off", "no rows", "garbage"])
def test_a_damaged_embedding_file_is_made_again(folder, store, harm):
    store.record([done(store, n) for n in range(3)])
    expected = np.array(store.embeddings()[1])
    store.close()
    (path,), (lines,) = folder.glob("embeddings.*.npy"), folder.glob("embeddings.*.rows")
    whole = path.read_bytes()
    if harm == "lines cut off":
        os.truncate(lines, lines.stat().st_size - 5)
    elif harm == "garbage":
        path.write_bytes(b"\xff" * len(whole))
    else:
        os.truncate(path, 150 if harm == "rows cut off" else 10)
    np.testing.assert_array_equal(Store(folder).embeddings()[1], expected)
    Store(folder, write=True).close()
    assert path.read_bytes() == whole


def test_a_video_with_damaged_features_has_no_vectors(folder, store):
    rows = [done(store, n) for n in range(4)]
    store.record(rows[:2])
    store.flush()
    store.record(rows[2:])
    for n in (1, 2):  # the embedding of the first of them is in the file already
        os.truncate(folder / rows[n].feature_file.file, 200)
    videos, _ = store.embeddings()
    assert [video.key for video in videos] == [key_of(n) for n in (0, 1, 3)] and "damaged features" in store.notes[0]
    frames, number, pts_seconds = store.frame_vectors()
    assert frames.dtype == np.float16 and number.tolist() == [0] * 3 + [2] * 3 and pts_seconds.tolist() == [1, 2, 3] * 2
    np.testing.assert_allclose(np.linalg.norm(frames.astype(np.float32), axis=1), 1, atol=1e-3)
    with pytest.raises(DamagedFeatures):
        store.features(key_of(2))


def test_verify_finds_and_forget_mends(folder, store, tmp_path):
    rows = [done(store, n, tmp_path) for n in range(6)]
    store.record(rows)
    assert list(store.verify(tmp_path)) == list(store.verify(tmp_path, content=False)) == []
    os.truncate(folder / rows[0].feature_file.file, 100)
    (folder / rows[1].feature_file.file).unlink()
    with open(folder / rows[2].feature_file.file, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\xfe")
    os.truncate(tmp_path / "3_embedding.npy", 7)
    (tmp_path / "4_embedding.npy").unlink()
    (tmp_path / "5_embedding.npy").write_bytes(b"x" * 100)
    cheap = list(store.verify(tmp_path, content=False))
    assert [(p.kind, p.key, p.reason) for p in cheap] == [
        ("features", key_of(0), f"100 bytes, {rows[0].feature_file.size:,} were written"),
        ("features", key_of(1), "missing"),
        ("output", key_of(3), "7 bytes, 100 were written"),
        ("output", key_of(4), "missing"),
    ]
    found = list(Store(folder).verify(tmp_path))
    assert [p for p in found if p not in cheap] == [
        Problem("features", key_of(2), None, rows[2].feature_file.file, found[2].reason),
        Problem("output", key_of(5), "/videos/5.mp4", "5_embedding.npy", "the checksum does not fit"),
    ]
    assert "the checksum does not fit" in found[2].reason
    store.forget(found)
    states = store.states([row.path for row in rows], [row.key for row in rows])
    assert [(state.status, len(state.outputs)) for state in states] == [("new", 0)] * 3 + [("done", 0)] * 3
    store.record([done(store, n, tmp_path) for n in range(6)])
    assert list(store.verify(tmp_path)) == []


def test_verify_takes_folders_of_npy(folder):
    with Store(folder, write=True, settings=SETTINGS, layout="npy") as store:
        row = done(store, 0)
        store.record([row])
        assert list(store.verify()) == [] and set(store.features(row.key)) == set(tensors())
        os.truncate(folder / row.feature_file.file / "pooled.npy", 130)
        for content in (True, False):
            assert [p.kind for p in store.verify(content=content)] == ["features"]
        store.forget(store.verify())
        store.record([done(store, 0)])
        assert list(store.verify()) == []


@pytest.mark.parametrize("layout", ["npz", None])
def test_an_unknown_layout(folder, layout):
    with pytest.raises(UsageError, match="layout must be"):
        Store(folder, write=True, settings={}, layout=layout)


def test_opening_a_store_imports_no_torch():
    code = "import sys; from vsim_fast import Store; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "False"
