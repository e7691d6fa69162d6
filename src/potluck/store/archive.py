"""A copy of a run at an fsspec URL: S3, GCS, another disk. Needs the extra ``archive``.

    URL/RUN/store/ab/abcd…              content by digest
    URL/RUN/journal/000000000042-…      records from sequence 42 on, framed as in a peer's journal

Nothing that stands there is written a second time, so several peers may archive to one URL. A stretch of the
journal is put there after the content that it speaks of, so whatever is there can be gone on from.
"""

from __future__ import annotations

import importlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from potluck.errors import CorruptData, StoreError, UsageError
from potluck.store.copies import STORE, Copy
from potluck.store.journal import NAME, frame, read_frames
from potluck.wire.codec import digest as digest_of

STRETCH_BYTES = 8 << 20
"""About how much of the journal one file holds at most."""


class Archive:
    """One run at an fsspec URL. Synchronous and slow: never called from a loop or a training thread.

    Raises:
        UsageError: fsspec, or what the URL's protocol needs, is not installed, or there is no such protocol.
        StoreError: the other side refuses, in any method.
    """

    def __init__(self, url: str, run: str) -> None:
        self.where = f"{url.rstrip('/')}/{run}"
        self._fs, self._root = _open(self.where)

    def put(self, digest: str, raw: bytes) -> None:
        """Keep content under its digest, unless it is there."""
        path = self._content(digest)
        with _in_words(self.where, "write to"):
            if not self._fs.exists(path) or self._fs.size(path) != len(raw):
                self._write(path, raw)

    def read(self, digest: str) -> bytes | None:
        """Content as it is there, unverified; None if it is not."""
        with _in_words(self.where, "read from"):
            try:
                raw: bytes = self._fs.cat_file(self._content(digest))
            except FileNotFoundError:
                return None
            return raw

    def digests(self) -> set[str]:
        """All content that is there, unverified."""
        with _in_words(self.where, "look into"):
            paths = self._fs.find(f"{self._root}/{STORE}") if self._fs.exists(f"{self._root}/{STORE}") else []
        return {path.rpartition("/")[2] for path in paths}

    def last(self) -> tuple[int, bytes]:
        """The last whole record of the journal there, and its sequence; 0 if there is none."""
        for _, _, path in sorted(self._stretches(), key=lambda stretch: stretch[1], reverse=True):
            whole = deque(self._whole(path), maxlen=1)
            if whole:
                return whole[0]
        return 0, b""

    def append(self, records: Iterable[tuple[int, bytes]]) -> None:
        """Write records that follow the last one there."""
        batch: list[bytes] = []
        first = last = size = 0
        for sequence, raw in records:
            first = first or sequence
            batch.append(frame(sequence, raw))
            last, size = sequence, size + len(raw)
            if size >= STRETCH_BYTES:
                self._stretch(first, last, batch)
                batch, first, size = [], 0, 0
        if batch:
            self._stretch(first, last, batch)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Sequence and bytes of each record, in order; several peers' stretches may overlap.

        A stretch that was torn while it was written ends early; its records stand in a later one again.

        Raises:
            CorruptData: they contradict each other, or one is damaged.
        """
        last, names = 0, dict[int, str]()
        for start, end, path in self._stretches():
            if end <= last:
                continue
            # Whoever overlaps starts within the stretch before.
            names = {sequence: name for sequence, name in names.items() if sequence >= start}
            for sequence, raw in self._whole(path):
                name = digest_of(raw)
                if names.setdefault(sequence, name) != name:
                    raise CorruptData(f"{path} has another record {sequence} than the file before it")
                if sequence > last:
                    yield sequence, raw
                    last = sequence

    def _whole(self, path: str) -> Iterator[tuple[int, bytes]]:
        with _in_words(self.where, "read from"):
            raw = self._fs.cat_file(path)
        yield from read_frames(io.BytesIO(raw))

    def _stretches(self) -> list[tuple[int, int, str]]:
        """First and last sequence of each file of the journal, and its path, in order."""
        with _in_words(self.where, "look into"):
            directory = f"{self._root}/{NAME}"
            paths = self._fs.find(directory) if self._fs.exists(directory) else []
        found = []
        for path in paths:
            first, _, last = path.rpartition("/")[2].partition("-")
            if first.isdecimal() and last.isdecimal():
                found.append((int(first), int(last), path))
        return sorted(found)

    def _stretch(self, first: int, last: int, frames: list[bytes]) -> None:
        with _in_words(self.where, "write to"):
            self._write(f"{self._root}/{NAME}/{first:012d}-{last:012d}", b"".join(frames))

    def _write(self, path: str, raw: bytes) -> None:
        try:
            self._fs.pipe_file(path, raw)
        except FileNotFoundError:  # a file system with directories, and this one is not there yet
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, raw)

    def _content(self, digest: str) -> str:
        return f"{self._root}/{STORE}/{digest[:2]}/{digest}"


class ArchiveCopy(Copy):
    """An archive, to read a run from: its URL, if it holds one run only, or URL/RUN."""

    def __init__(self, url: str) -> None:
        base, run = _run_at(url)
        super().__init__(f"{base}/{run}")
        self._archive = Archive(base, run)
        # One list, because asking for each piece of a long run's content takes a round trip each.
        self._names = self._archive.digests()

    def frames(self) -> Iterator[tuple[int, bytes]]:
        return self._archive.frames()

    def digests(self) -> set[str]:
        return self._names

    def read(self, digest: str) -> bytes | None:
        return self._archive.read(digest)

    def has(self, digest: str) -> bool:
        return digest in self._names and digest not in self.damaged


def is_url(source: str) -> bool:
    """Whether this is an fsspec URL rather than a path."""
    return "://" in source


def _run_at(url: str) -> tuple[str, str]:
    url = url.rstrip("/")
    fs, root = _open(url)
    with _in_words(url, "look into"):
        if fs.exists(f"{root}/{NAME}"):
            base, _, run = url.rpartition("/")
            return base, run
        paths = fs.ls(root, detail=False) if fs.exists(root) else []
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        runs = [name for name in names if fs.exists(f"{root}/{name}/{NAME}")]
    if not runs:
        raise UsageError(f"{url} holds no archive of a run")
    if len(runs) > 1:
        raise UsageError(f"{url} holds several runs, say which: {', '.join(f'{url}/{run}' for run in runs)}")
    return url, runs[0]


def _open(url: str) -> tuple[Any, str]:
    try:
        core: Any = importlib.import_module("fsspec.core")
        fs, root = core.url_to_fs(url)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"an archive needs the package {error.name}: pip install 'potluck[archive]'"
        ) from error
    except ImportError as error:
        raise UsageError(f"{url.partition('://')[0]}:// needs a package of its own: {error}") from error
    except ValueError as error:
        raise UsageError(f"{url} is no URL that fsspec knows: {error}") from error
    # fsspec keeps lists of directories; what other peers put there meanwhile is to be seen.
    fs.invalidate_cache()
    return fs, str(root).rstrip("/")


@contextmanager
def _in_words(where: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't {doing} the archive {where}: {error}") from error
