"""http(s) with the standard library: to public addresses only, capped in time, each redirect checked like a new URL."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from vsim_fast.errors import OpenError

PORTS = {"http": 80, "https": 443}
CHUNK = 1 << 20
SILENCE_SECONDS = 30.0
"""Longest wait for the next bytes."""
MAX_REDIRECTS = 5
SAFE = "/%:=&+$,;@!'()*~?"
"""What stays as it is in a URL's path and query; the rest, such as spaces, is quoted."""
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out so far; outside of it some addresses count as global that stand for others."""


class Answer(NamedTuple):
    size: int | None
    stamp: str | None
    """Entity tag and time, without a tag time and size; None when the server gives neither tag nor time."""
    chunks: Iterator[bytes]


@contextmanager
def opened(url: str, *, allow_private: bool, max_seconds: float, head: bool = False) -> Iterator[Answer]:
    """The answer to a GET; with `head` one byte is asked for, as servers that refuse HEAD do not refuse that.

    Proxies are not used: behind one, addresses could not be checked.
    Raises: OpenError.
    """
    ends, kind, at = time.monotonic() + max_seconds, urlsplit(url).scheme, url
    for _ in range(MAX_REDIRECTS + 1):
        with ExitStack() as stack:
            with _reported(url, ends):
                response = _requested(at, head, allow_private, ends, stack)
            if response.status not in REDIRECTS:
                yield _answer(url, response, head, ends)
                return
            at = urljoin(at, response.getheader("Location", ""))
        if urlsplit(at).scheme != kind:
            raise OpenError(url, f"it redirects from {kind} to another scheme, {at!r}; name that address itself")
    raise OpenError(url, f"it redirects more than {MAX_REDIRECTS} times")


def _requested(at: str, head: bool, allow_private: bool, ends: float, stack: ExitStack) -> http.client.HTTPResponse:
    parts = urlsplit(at)
    if parts.username is not None:
        raise ValueError("a URL must not hold a user name or password")
    if not parts.hostname:
        raise ValueError(f"no host in {at!r}")
    connection = _Connection(parts.scheme, parts.hostname, parts.port, allow_private, ends)
    stack.callback(connection.finish)
    path = quote(parts.path or "/", safe=SAFE, errors="surrogateescape")
    query = f"?{quote(parts.query, safe=SAFE, errors='surrogateescape')}" if parts.query else ""
    headers = {"User-Agent": "vsim_fast", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    connection.request("GET", path + query, headers=headers | ({"Range": "bytes=0-0"} if head else {}))
    return stack.enter_context(connection.getresponse())


def _answer(url: str, response: http.client.HTTPResponse, head: bool, ends: float) -> Answer:
    if response.status not in ((200, 206) if head else (200,)):
        raise OpenError(url, f"the server says {response.status} {response.reason}")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise OpenError(url, "the server sends it compressed, unasked")
    size = response.getheader("Content-Length")
    if response.status == 206:
        size = response.getheader("Content-Range", "").rpartition("/")[2]
    size = int(size) if size and size.isdecimal() else None
    tag, modified = response.getheader("ETag"), response.getheader("Last-Modified")
    stamp = f"{tag} {modified}" if tag else f"{modified} {size}" if modified else None
    return Answer(size, stamp, _chunks(url, response, ends))


def _chunks(url: str, response: http.client.HTTPResponse, ends: float) -> Iterator[bytes]:
    with _reported(url, ends):
        while chunk := response.read(CHUNK):
            yield chunk
    _require_time(url, ends)  # a connection that was cut off may look like the end


@contextmanager
def _reported(url: str, ends: float) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        _require_time(url, ends)
        raise OpenError(url, f"it cannot be fetched: {error or type(error).__name__}") from error


def _require_time(url: str, ends: float) -> None:
    if time.monotonic() >= ends:
        raise OpenError(url, "it takes longer than allowed")


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, and not looked up again; shut down when its time is over."""

    def __init__(self, kind: str, host: str, port: int | None, allow_private: bool, ends: float):
        self.default_port = PORTS[kind]
        super().__init__(host, port or self.default_port)  # without a port it would look for one in an IPv6 address
        self._secure, self._allow_private, self._ends = kind == "https", allow_private, ends
        self._guard: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self._connected()
        self._guard = self.sock.dup()  # shuts the connection down below TLS, too
        self._timer = threading.Timer(self._ends - time.monotonic(), self._cut)
        self._timer.daemon = True
        self._timer.start()
        if self._secure:
            self.sock = _tls().wrap_socket(self.sock, server_hostname=self.host)

    def _connected(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not self._allow_private and not is_public(address[0]):
                raise OSError(f"{self.host} has the address {address[0]}, which is not public; that must be allowed")
        problem = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(0.001, min(SILENCE_SECONDS, self._ends - time.monotonic())))
                connection.connect(address)
                connection.settimeout(SILENCE_SECONDS)
                return connection
            except OSError as error:
                connection.close()
                problem = error
        raise problem

    def _cut(self) -> None:
        with suppress(OSError):
            self._guard.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Not `close`, which is called when the header has come and the body is still on its way."""
        self.close()
        if self._guard is not None:
            self._timer.cancel()
            self._timer.join()
            self._guard.close()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public internet, and so is an IPv4 address that it carries."""
    number = ipaddress.ip_address(address)
    if number.version == 4:
        return number.is_global and not number.is_multicast
    carried = number.ipv4_mapped or number.sixtofour or (number.teredo and number.teredo[1])
    if number in NAT64:
        carried = ipaddress.ip_address(int(number) & 0xFFFFFFFF)
    return is_public(str(carried)) if carried else number.is_global and number in UNICAST
