"""What a job's file is known by: its content key, and the stamp that says it has not changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vsim_fast.batch.jobs import Job
from vsim_fast.errors import VsimError
from vsim_fast.feature_store import Stamp, content_key, stamp
from vsim_fast.remote import Cache, is_url
from vsim_fast.video.probe import gate

ASKING_THREADS = 16


class Identity:
    """Of files, folders of images, and URLs, which are fetched into a bounded cache for it.

    Args:
        folder, max_bytes, allow_private: of the `Cache`, which is made when the first URL comes.
    """

    def __init__(self, folder: Path, max_bytes: int, *, allow_private: bool = False):
        self._folder, self._options = folder, dict(max_bytes=max_bytes, allow_private=allow_private)
        self._cache: Cache | None = None
        self._stamps: dict[str, Stamp | None] = {}

    def stamp(self, path: str) -> Stamp:
        """As the file is now.  Raises: OSError."""
        if not is_url(path):
            return stamp(path)
        if (found := self._stamps.get(path)) is None:
            raise FileNotFoundError(path)
        return found

    def ask(self, paths: Iterable[str]) -> None:
        """Have the stamps of URLs ready, many at a time; those that give none stay without."""
        urls = [path for path in paths if is_url(path)]
        if urls:
            self._open()
            with ThreadPoolExecutor(ASKING_THREADS, "vsim-stamps") as pool:
                self._stamps = dict(zip(urls, pool.map(self._remote_stamp, urls), strict=True))

    def __call__(self, job: Job) -> tuple[str, Stamp | None]:
        """Content key and stamp, from any thread; a URL's copy stays while the job holds it.

        Raises: OpenError: what the gate refuses, or cannot be fetched.  VsimError.  OSError.
        """
        if is_url(job.path):
            job.file = str(job.held.enter_context(self._open().local(job.path)))
            gate(job.file)
            return content_key(job.file), self._stamps.get(job.path)
        gate(job.path)
        before = stamp(job.path)
        return content_key(job.path), before

    def _open(self) -> Cache:
        if self._cache is None:
            self._cache = Cache(self._folder, **self._options)
        return self._cache

    def _remote_stamp(self, url: str) -> Stamp | None:
        try:
            text = self._cache.stamp(url)
        except VsimError:
            return None  # told when it is fetched
        if text is None:
            return None
        return Stamp(0, int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1, 0)
