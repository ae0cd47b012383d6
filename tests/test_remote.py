"""Remote files: what a URL stands for, and the cache. Served from memory and by a server on this machine."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from vsim_fast import remote
from vsim_fast.errors import OpenError, OutputError, UsageError, VsimError
from vsim_fast.remote import Cache, _http


@pytest.fixture
def memory():
    """The file system behind memory://, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def copies(cache: Cache) -> list[str]:
    """Contents of the cache's folder, partial files too."""
    return sorted(path.read_text() for path in cache.folder.iterdir() if path.name != ".lock")


def test_urls_are_told_from_paths():
    assert remote.is_url("s3://b/a.mp4") and remote.is_url("ftp://h/x")
    assert not any(map(remote.is_url, ("a.mp4", "/a://b", "c:/x", "C://x", "a:b", Path("x"))))
    assert remote.file_name("https://h/v/a%20b.mp4?sig=x/y#z") == "a b.mp4"
    assert remote.file_name("s3://b/v/a?b#c.mp4") == "a?b#c.mp4"


def test_expand(memory):
    for name in ("/v/a.mp4", "/v/sub/b.mkv", "/v/.hidden/c.mp4", "/v/.d.mp4", "/w/a.mp4", "/vv"):
        memory.pipe_file(name, b"x")
    below = [("memory://v/a.mp4", "a.mp4"), ("memory://v/sub/b.mkv", "sub/b.mkv")]
    assert remote.expand("memory://v") == remote.expand("memory://v/") == below
    assert remote.expand("memory://v/*") == remote.expand("memory://v/**") == below
    assert remote.expand("memory://*/a.mp4") == [("memory://v/a.mp4", "v/a.mp4"), ("memory://w/a.mp4", "w/a.mp4")]
    assert remote.expand("memory://v/*.webm") == remote.expand("memory://x") == []
    assert remote.expand("memory://w/a.mp4") == [("memory://w/a.mp4", None)]


def test_a_copy_is_made_once_and_again_when_the_file_changed(memory, tmp_path):
    cache = Cache(tmp_path / "c", 100)
    memory.pipe_file("/v/a.MP4", b"one")
    with cache.local("memory://v/a.MP4") as first, cache.local("memory://v/a.MP4") as again:
        assert first == again and first.read_bytes() == b"one" and first.suffix == ".mp4"
    inode, stamp = first.stat().st_ino, cache.stamp("memory://v/a.MP4")
    with Cache(tmp_path / "c", 100).local("memory://v/a.MP4") as path:
        assert path.stat().st_ino == inode
    memory.pipe_file("/v/a.MP4", b"two")
    assert cache.stamp("memory://v/a.MP4") != stamp
    with cache.local("memory://v/a.MP4") as path:
        assert path.read_bytes() == b"two"


def test_local_files_by_url(tmp_path):
    (tmp_path / "a b.mp4").write_bytes(b"x" * (9 << 20))  # more than one chunk
    with Cache(tmp_path / "c", 10 << 20).local(f"file://{tmp_path}/a b.mp4") as path:
        assert path.stat().st_size == 9 << 20 and path.parent == tmp_path / "c"


def test_what_was_used_longest_ago_goes_first_and_nothing_in_use(memory, tmp_path):
    cache = Cache(tmp_path, 10)
    for name in "abcde":
        memory.pipe_file(f"/{name}", name.encode() * 4)
    for name in "ab":
        with cache.local(f"memory://{name}"):
            pass
    with cache.local("memory://a"):
        pass
    with cache.local("memory://c") as path:
        assert copies(cache) == ["aaaa", "cccc"]
        with cache.local("memory://d"), cache.local("memory://e"):  # three in use are more than fit
            assert copies(cache) == ["cccc", "dddd", "eeee"] and path.exists()
    with cache.local("memory://a"):
        assert copies(cache) == ["aaaa", "eeee"]


def test_files_of_others_in_the_folder_are_left_alone(memory, tmp_path):
    (tmp_path / "mine.mp4").write_text("m" * 50)
    memory.pipe_file("/a", b"a" * 10)
    with Cache(tmp_path, 10).local("memory://a"):
        assert copies(Cache(tmp_path, 10)) == ["a" * 10, "m" * 50]


def test_what_a_killed_process_left_is_removed(memory, tmp_path):
    cache = Cache(tmp_path, 10)
    memory.pipe_file("/a", b"aa")
    memory.pipe_file("/b", b"bb")
    with cache.local("memory://a") as path:
        pass
    path.rename(f"{path}.partial")
    with cache.local("memory://b"):
        assert copies(cache) == ["bb"]


def test_a_copy_in_use_by_another_process_stays(memory, tmp_path):
    cache = Cache(tmp_path, 4)
    memory.pipe_file("/a", b"aaaa")
    memory.pipe_file("/b", b"bbbb")
    with cache.local("memory://a") as path:
        pass
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pickle.loads(pickle.dumps(cache)).local("memory://b"):
            assert copies(cache) == ["aaaa", "bbbb"]
        other.communicate("\n")
    memory.pipe_file("/c", b"cccc")
    with cache.local("memory://c"):
        assert copies(cache) == ["cccc"]


def test_many_threads_on_a_small_cache(memory, tmp_path, monkeypatch):
    cache, fetched = Cache(tmp_path, 64), []
    for n in range(13):
        memory.pipe_file(f"/{n}.mp4", bytes([65 + n]) * 16)
    opened = memory.open
    monkeypatch.setattr(type(memory), "open", lambda self, url, *a, **k: fetched.append(url) or opened(url, *a, **k))

    def read(n: int) -> bool:
        with cache.local(f"memory://{n}.mp4") as path:
            return path.read_bytes() == bytes([65 + n]) * 16

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [0] * 40))
        assert fetched == ["memory://0.mp4"]
        assert all(pool.map(read, [n * 7 % 12 for n in range(200)]))
    with cache.local("memory://12.mp4"):  # copies in use may take more; the next one makes room
        assert sum(map(len, copies(cache))) <= 64


def test_a_copy_that_came_since_it_was_looked_for_is_taken(memory, tmp_path, monkeypatch):
    memory.pipe_file("/a", b"a")
    held, inodes = Cache._held, []

    def first_fetched_by_another(self, path):
        monkeypatch.setattr(Cache, "_held", held)
        with Cache(tmp_path, 10).local("memory://a") as path:
            inodes.append(path.stat().st_ino)

    monkeypatch.setattr(Cache, "_held", first_fetched_by_another)
    with Cache(tmp_path, 10).local("memory://a") as path:
        assert [path.stat().st_ino] == inodes and copies(Cache(tmp_path, 10)) == ["a"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://gone.mp4", "no such file"),
        ("memory://v", "a folder"),
        ("memory://v/big.mp4", "11 bytes are more than the 10 of the cache"),
        ("ftp://h/a.mp4", "ftp:// is not read here, but s3://"),
        ("simplecache::memory://v/a.mp4", "is not read here"),
        ("http://user:pass@h/a.mp4", "must not hold a user name"),
        ("http://h:99999/a.mp4", "Port out of range"),
        ("http:///a.mp4", "no host"),
    ],
)
def test_what_cannot_be_fetched_says_why_and_leaves_nothing(memory, tmp_path, url, message):
    memory.pipe_file("/v/big.mp4", b"x" * 11)
    cache = Cache(tmp_path, 10)
    for call in (cache.stamp, lambda url: cache.local(url).__enter__()):
        with pytest.raises(OpenError, match=message) as error:
            call(url)
        assert error.value.path == url
    assert copies(cache) == []


def test_a_file_that_vanishes_breaks_off_or_changes_while_fetched(memory, tmp_path, monkeypatch):
    cache = Cache(tmp_path, 1 << 20)
    info = type(memory).info
    for happens, message in (
        (lambda: memory.rm("/a"), "no such file"),
        (lambda: memory.pipe_file("/a", b"other"), "it changed while it was fetched, 5 times"),
    ):
        memory.pipe_file("/a", b"x" * 100)

        def info_before(self, path, happens=happens, **options):
            facts = info(self, path, **options)
            happens()
            return facts

        with monkeypatch.context() as patch, pytest.raises(OpenError, match=message):
            patch.setattr(type(memory), "info", info_before)
            with cache.local("memory://a"):
                pass
    short = info(memory, "/a") | {"size": 6}
    monkeypatch.setattr(type(memory), "info", lambda self, path, **options: short)
    with pytest.raises(OpenError, match="ended early: 5 of 6 bytes"), cache.local("memory://a"):
        pass
    assert copies(cache) == []


def test_the_cache_refuses_what_it_cannot_use(memory, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="max_bytes must be above 0, got 0"):
        Cache(tmp_path, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Cache(tmp_path / "file", 1)
    memory.pipe_file("/a", b"x")
    monkeypatch.setattr(os, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="the disk is full"), Cache(tmp_path, 1).local("memory://a"):
        pass
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind):
    package = remote.PACKAGES[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(VsimError, match=rf"{kind}:// needs the package {package}: pip install 'vsim_fast\[remote\]'"):
        Cache(tmp_path, 1).stamp(f"{kind}://b/a.mp4")


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts whole files it sent."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in body() if callable(body) else [body]:
                self.wfile.write(part)
        except OSError:
            pass  # the client had enough

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server on this machine: `answers` by path, `asked`, `url`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.asked, server.url = {}, [], f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_http(server, tmp_path):
    server.answers["/v/a%20b.mp4?key=1"] = (200, {"ETag": '"1"', "Content-Length": "3"}, b"one")
    cache = Cache(tmp_path, 100, allow_private=True)
    for _ in range(2):
        with cache.local(f"{server.url}/v/a b.mp4?key=1") as path:
            assert path.read_bytes() == b"one" and path.suffix == ".mp4"
    assert [asked for _, asked in server.asked] == ["bytes=0-0", None, "bytes=0-0"]
    server.answers["/v/a%20b.mp4?key=1"] = (200, {"ETag": '"2"', "Content-Length": "3"}, b"two")
    with cache.local(f"{server.url}/v/a b.mp4?key=1") as path:
        assert path.read_bytes() == b"two"


def test_http_without_anything_to_go_by_is_fetched_each_time(server, tmp_path):
    server.answers["/a"] = (200, {}, b"one")
    cache = Cache(tmp_path, 100, allow_private=True)
    assert cache.stamp(f"{server.url}/a") is None
    for _ in range(2):
        with cache.local(f"{server.url}/a") as path:
            assert path.read_bytes() == b"one"
    assert [asked for _, asked in server.asked].count(None) == 2
    server.answers["/b"] = (200, {}, b"b" * 98)  # its size comes with it
    with cache.local(f"{server.url}/b"):
        assert copies(cache) == ["b" * 98]
    server.answers["/c"] = (206, {"Last-Modified": "now", "Content-Range": "bytes 0-0/101"}, b"c")
    with pytest.raises(OpenError, match="101 bytes are more than the 100"):
        cache.stamp(f"{server.url}/c")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, b""), "the server says 404 Not Found"),
        ((200, {"Content-Encoding": "gzip"}, b""), "compressed"),
        ((200, {"Content-Length": "101", "ETag": "x"}, b""), "101 bytes are more than the 100 of the cache"),
        ((200, {"ETag": "x"}, b"x" * 101), "101 bytes are more than the 100 of the cache"),
        ((200, {"Content-Length": "20", "ETag": "x"}, b"x" * 10), "it ended early: 10 of 20 bytes"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "redirects from http to another scheme, 'file:///etc/passwd'"),
        ((302, {"Location": "https://h/"}, b""), "redirects from http to another scheme"),
        ((301, {"Location": "/a"}, b""), "redirects more than 5 times"),
    ],
)
def test_http_refusals(server, tmp_path, answer, message):
    server.answers["/a"] = answer
    cache = Cache(tmp_path, 100, allow_private=True)
    with pytest.raises(OpenError, match=message), cache.local(f"{server.url}/a"):
        pass
    assert copies(cache) == []


def test_http_only_from_public_addresses_and_so_for_redirects(server, tmp_path, monkeypatch):
    server.answers |= {
        "/a": (302, {"Location": "/b"}, b""),
        "/b": (200, {"ETag": "x"}, b"b"),
        "/inside": (302, {"Location": server.url.replace("127.0.0.1", "127.0.0.2")}, b""),
    }
    cache = Cache(tmp_path, 100)
    for host in (
        server.url,
        server.url.replace("127.0.0.1", "localhost"),
        "http://2130706433",
        "http://[::ffff:7f00:1]",
        "http://[::1]",
    ):
        with pytest.raises(OpenError, match="which is not public"):
            cache.stamp(f"{host}/b")
    assert server.asked == []
    monkeypatch.setattr(_http, "is_public", lambda address: address == "127.0.0.1")
    with cache.local(f"{server.url}/a") as path:
        assert path.read_bytes() == b"b"
    with pytest.raises(OpenError, match=r"127\.0\.0\.2 has the address 127\.0\.0\.2, which is not public"):
        cache.stamp(f"{server.url}/inside")


def test_every_address_of_a_name_must_be_public(tmp_path, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.215.14", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(OpenError, match=r"h\.example has the address 10\.0\.0\.7"):
        Cache(tmp_path, 1).stamp("http://h.example/a.mp4")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("64:ff9b::5db8:d70e", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fd00::1", False), ("::ffff:10.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::a00:1", False),
        ("ff02::1", False), ("::ffff:7f00", False), ("fe80::1%eth0", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert _http.is_public(address) is public


def test_http_that_dribbles_is_cut_off(server, tmp_path):
    done = threading.Event()

    def dribble():
        while not done.wait(0.02):
            yield b"x"

    server.answers["/a"] = (200, {"ETag": "x"}, dribble)
    cache = Cache(tmp_path, 100_000, allow_private=True, max_seconds=0.3)
    with pytest.raises(OpenError, match="takes longer than allowed"), cache.local(f"{server.url}/a"):
        pass
    done.set()
    assert copies(cache) == []
