"""Content by its digest, on one machine's disk.

A file's name is the BLAKE3 of its bytes, so a file is right or it is not there: whatever is torn, flipped or
half-written is dropped when it is met, and fetched again from another peer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from potluck.errors import ProtocolError, StoreError
from potluck.wire.codec import digest as digest_of

_log = logging.getLogger(__name__)

_DIGEST = re.compile("[0-9a-f]{64}")
_TEMPORARY = ".writing-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """A directory of content, in subdirectories by the first two digits of the digest.

    Any thread may call; a directory belongs to one process. Digests are 64 hexadecimal digits.

    Raises:
        StoreError: the disk refuses, in any method; the message says where and what to do.
        ProtocolError: what should be a digest is none, in any method.
    """

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._writing: set[Path] = set()
        self._known: set[Path] = set()
        """Subdirectories whose own names survive a crash of the machine."""
        if create:
            with in_words(directory, "make"):
                directory.mkdir(parents=True, exist_ok=True)

    def put(self, raw: bytes | memoryview, name: str = "") -> str:
        """Keep ``raw`` so that it survives a crash of the machine; returns its digest, which is ``name`` if
        the caller has just computed it.

        What is there already and intact is not written again.
        """
        digest = name or digest_of(raw)
        if self.get(digest) is None:
            with in_words(self.directory, f"write {memoryview(raw).nbytes} bytes to"):
                self._write(self.path(digest), raw)
        return digest

    def put_all(self, raws: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """As ``put``, of several. They are synced together, which takes a fraction of the time."""
        digests = tuple(digest_of(raw) for raw in raws)
        new = {d: raw for d, raw in zip(digests, raws, strict=True) if self.get(d) is None}
        with in_words(
            self.directory, f"write {sum(memoryview(raw).nbytes for raw in new.values())} bytes to"
        ):
            self._write_all({self.path(d): raw for d, raw in new.items()})
        return digests

    def get(self, digest: str) -> bytes | None:
        """The bytes of that digest, verified; None if they are not here (or no longer right)."""
        path = self.path(digest)
        with in_words(self.directory, "read from"):
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                return None
            if digest_of(raw) == digest:
                return raw
            _log.warning("%s is damaged (%d bytes); dropped, to be fetched again", path, len(raw))
            path.unlink(missing_ok=True)
            return None

    def has(self, digest: str) -> bool:
        """Whether it is here, unverified."""
        return self.size(digest) is not None

    def size(self, digest: str) -> int | None:
        """Its size in bytes, unverified; None if it is not here."""
        with in_words(self.directory, "look into"):
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError:
                return None

    def delete(self, digest: str) -> None:
        """Drop it, if it is here."""
        with in_words(self.directory, "delete from"):
            self.path(digest).unlink(missing_ok=True)

    def digests(self) -> set[str]:
        """All that is here, unverified."""
        return {path.name for path in self._files() if _DIGEST.fullmatch(path.name)}

    def keep_only(self, digests: Set[str]) -> None:
        """Drop everything else, and what writers that died left half-written."""
        for path in self._files():
            stale = path.name.startswith(_TEMPORARY) and not self._is_writing(path)
            if stale or (_DIGEST.fullmatch(path.name) and path.name not in digests):
                with in_words(self.directory, "delete from"):
                    path.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where content with that digest is kept."""
        if not _DIGEST.fullmatch(digest):
            raise ProtocolError(f"{digest[:80]!r} is not a digest (64 hexadecimal digits)")
        return self.directory / digest[:2] / digest

    def _files(self) -> list[Path]:
        with in_words(self.directory, "look into"):
            return [path for path in self.directory.glob("[0-9a-f][0-9a-f]/*") if path.is_file()]

    def _write(self, path: Path, raw: bytes | memoryview) -> None:
        self._write_all({path: raw})

    def _write_all(self, files: Mapping[Path, bytes | memoryview]) -> None:
        """All are written before the first is synced: the file system then commits them in one go."""
        with contextlib.ExitStack() as opened:
            temporaries = []
            for path, raw in files.items():
                path.parent.mkdir(exist_ok=True)
                descriptor, temporary = opened.enter_context(self._temporary(path.parent))
                file = opened.enter_context(os.fdopen(descriptor, "wb"))
                file.write(raw)
                file.flush()
                temporaries.append((file, temporary, path))
            for file, _, _ in temporaries:
                os.fsync(file.fileno())
                file.close()  # before it gets its name: not every system renames what is open
            # If the disk refused before, none has its name: what has is taken for synced the next time.
            for _, temporary, path in temporaries:
                temporary.replace(path)
        parents = {path.parent for path in files}
        for parent in parents:
            sync_directory(parent)
        if not parents <= self._known:
            sync_directory(self.directory)
            self._known |= parents

    @contextlib.contextmanager
    def _temporary(self, directory: Path) -> Iterator[tuple[int, Path]]:
        # Made and registered under the lock, so that keep_only never takes a living writer's file for stale.
        with self._lock:
            descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=directory)
            temporary = Path(name)
            self._writing.add(temporary)
        try:
            yield descriptor, temporary
        finally:
            temporary.unlink(missing_ok=True)
            with self._lock:
                self._writing.discard(temporary)

    def _is_writing(self, path: Path) -> bool:
        with self._lock:
            return path in self._writing


def sync_directory(directory: Path) -> None:
    """Return once the names in a directory survive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def in_words(directory: Path, doing: str) -> Iterator[None]:
    """Turns what the operating system refuses inside into a ``StoreError`` with what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "the disk is full: free some space there, or give the run another directory"
        elif isinstance(error, PermissionError):
            advice = "no permission: make it yours (chown), or give the run another directory"
        else:
            advice = f"{error.strerror or error}: check that disk, or give the run another directory"
        raise StoreError(f"can't {doing} {directory}: {advice}") from error
