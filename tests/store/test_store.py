from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import pytest

from potluck.errors import ProtocolError, StoreError
from potluck.store.store import Store
from potluck.wire.codec import digest

CONTENT = b"one part of one round"
DIGEST = blake3.blake3(CONTENT).hexdigest()


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.directory.rglob("*") if path.is_file())


def the_file(store: Store) -> Path:
    [path] = files(store)
    return path


def fail_with(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("raw", [b"", b"x", CONTENT, bytes(3 << 20)], ids=len)
def test_what_is_put_is_got(store: Store, raw: bytes) -> None:
    digest = store.put(memoryview(raw))
    assert digest == blake3.blake3(raw).hexdigest()
    assert store.get(digest) == raw
    assert store.has(digest)
    assert store.size(digest) == len(raw)
    assert store.digests() == {digest}
    assert Store(store.directory).get(digest) == raw
    assert the_file(store).relative_to(store.directory) == Path(digest[:2]) / digest


def test_a_digest_that_is_known_is_not_computed_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.store.store.digest_of", lambda raw: pytest.fail("computed"))
    assert store.put(CONTENT, DIGEST) == DIGEST
    monkeypatch.undo()
    assert store.get(DIGEST) == CONTENT


def test_what_was_never_put(store: Store) -> None:
    assert store.get(DIGEST) is None
    assert not store.has(DIGEST)
    assert store.size(DIGEST) is None
    assert store.digests() == set()
    store.delete(DIGEST)
    store.keep_only({DIGEST})


def test_what_is_there_is_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(CONTENT)
    before = the_file(store).stat()
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    assert store.put(CONTENT) == DIGEST
    assert the_file(store).stat().st_mtime_ns == before.st_mtime_ns
    assert the_file(store).stat().st_ino == before.st_ino


def test_deleted_is_gone(store: Store) -> None:
    other = store.put(b"other")
    store.delete(store.put(CONTENT))
    assert store.get(DIGEST) is None
    assert store.digests() == {other}


@pytest.mark.parametrize("length", range(len(CONTENT)))
def test_a_torn_file_is_dropped(store: Store, caplog: pytest.LogCaptureFixture, length: int) -> None:
    store.put(CONTENT)
    os.truncate(the_file(store), length)
    with caplog.at_level(logging.WARNING):
        assert store.get(DIGEST) is None
    assert f"is damaged ({length} bytes)" in caplog.text
    assert not store.has(DIGEST)
    assert files(store) == []
    assert store.get(store.put(CONTENT)) == CONTENT


@pytest.mark.parametrize("place", range(len(CONTENT)))
def test_a_flipped_byte_is_dropped(store: Store, place: int) -> None:
    store.put(CONTENT)
    raw = bytearray(CONTENT)
    raw[place] ^= 0x10
    the_file(store).write_bytes(raw)
    assert store.get(DIGEST) is None
    assert files(store) == []


def test_putting_again_mends_a_damaged_file(store: Store) -> None:
    store.put(CONTENT)
    the_file(store).write_bytes(b"X" * len(CONTENT))
    assert store.put(CONTENT) == DIGEST
    assert store.get(DIGEST) == CONTENT


def test_everything_is_on_disk_before_it_has_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watch_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append("fsync " + ("directory" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes"))
        fsync(descriptor)

    def watch_replace(path: Path, target: Path) -> Path:
        assert path.parent == target.parent
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    store.put(CONTENT)
    assert events == [f"fsync {len(CONTENT)} bytes", "rename", "fsync directory", "fsync directory"]


KILLED_BETWEEN_WRITE_AND_RENAME = """
import os, pathlib, signal, sys
from potluck.store.store import Store
store = Store(pathlib.Path(sys.argv[1]))
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.put(b"one part of one round")
"""


def test_a_crash_between_write_and_rename_leaves_nothing_that_counts(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN_WRITE_AND_RENAME, str(store.directory)], timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    left = the_file(store)
    assert left.read_bytes() == CONTENT
    assert not store.has(DIGEST)
    assert store.get(DIGEST) is None
    assert store.digests() == set()
    assert store.put(CONTENT) == DIGEST
    store.keep_only({DIGEST})
    assert not left.exists()
    assert store.get(DIGEST) == CONTENT


def test_keep_only_drops_the_rest_and_touches_no_strangers(store: Store) -> None:
    digests = [store.put(b"%d" % number) for number in range(40)]
    stranger = store.directory / "notes.txt"
    stranger.write_text("mine")
    nested = store.directory / digests[0][:2] / "README"
    nested.write_text("mine too")
    store.keep_only(set(digests[:7]) | {DIGEST})
    assert store.digests() == set(digests[:7])
    assert stranger.exists()
    assert nested.exists()


def test_keep_only_spares_the_file_of_a_living_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace
    written, swept = threading.Event(), threading.Event()

    def wait_then_replace(path: Path, target: Path) -> Path:
        written.set()
        assert swept.wait(20)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", wait_then_replace)
    with ThreadPoolExecutor(1) as pool:
        putting = pool.submit(store.put, CONTENT)
        assert written.wait(20)
        store.keep_only(set())
        swept.set()
        assert putting.result(20) == DIGEST
    assert store.get(DIGEST) == CONTENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail_with(number))
        with pytest.raises(StoreError) as caught:
            store.put(CONTENT)
    assert str(store.directory) in str(caught.value)
    assert f"{len(CONTENT)} bytes" in str(caught.value)
    assert "disk is full: free some space" in str(caught.value)
    assert files(store) == []
    assert store.get(store.put(CONTENT)) == CONTENT


def test_of_several_none_has_its_name_before_all_are_synced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, synced = os.fsync, list[int]()

    def fails_at_the_third(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "full")
        sync(descriptor)

    raws = [bytes([number]) * 100 for number in range(5)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails_at_the_third)
        with pytest.raises(StoreError, match="500 bytes"):
            store.put_all(raws)
    assert files(store) == []
    assert [store.get(name) for name in store.put_all(raws)] == raws


def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    try:
        store = Store(tmp_path / "store")
        small = store.put(CONTENT)
        with pytest.raises(StoreError, match="disk is full"):
            store.put(bytes(1 << 20))
        assert store.digests() == {small}
        assert [path.name for path in files(store)] == [small]
        assert len(store.get(store.put(bytes(100_000))) or b"") == 100_000
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_no_permission(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(CONTENT)
    denied = fail_with(errno.EACCES)
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StoreError, match=r"can't write 5 bytes to .*store: no permission.*chown"):
        store.put(b"other")
    calls: dict[str, Callable[[str], object]] = {
        "read_bytes": store.get,
        "stat": store.size,
        "unlink": store.delete,
    }
    for name, call in calls.items():
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, denied)
            with pytest.raises(StoreError, match="no permission"):
                call(DIGEST)


def test_a_disk_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(StoreError, match="check that disk"):
        store.put(CONTENT)
    assert files(store) == []


def test_a_directory_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="can't make"):
            Store(impossible)


@pytest.mark.parametrize(
    "odd", ["", "../../etc/passwd", DIGEST[:-1], DIGEST + "\n", DIGEST.upper(), "/" * 64]
)
def test_only_digests_name_content(store: Store, odd: str) -> None:
    for call in (store.get, store.has, store.size, store.delete):
        with pytest.raises(ProtocolError, match="not a digest"):
            call(odd)


def test_many_threads(store: Store) -> None:
    contents = [b"%d" % (number % 20) * 1000 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(store.put, contents, timeout=60))
        found = list(pool.map(store.get, digests, timeout=60))
    assert found == contents
    assert len(files(store)) == len(set(digests)) == 20


def test_several_are_put_together(store: Store) -> None:
    there = store.put(b"there already")
    raws = [b"one", b"there already", b"two", b"one"]
    assert store.put_all(raws) == tuple(map(digest, raws))
    assert store.put_all([]) == ()
    assert all(store.get(digest(raw)) == raw for raw in raws)
    assert store.digests() == {there, digest(b"one"), digest(b"two")}
    assert not [path for path in store.directory.rglob("*") if path.name.startswith(".writing-")]
