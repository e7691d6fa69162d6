"""Two releases in one run: peers are brought up to the next one after another, or refused in words."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import potluck
from potluck.wire.codec import WIRE
from tests.integration.swarm import Peer, Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NOVELTY = '    novelty: str = "of the next release"\n'

GROWN = {
    "wire/messages.py": (
        "Progress",
        "Hello",
        "PushContribution",
        "PushPartial",
        "PushResult",
        "Fetch",
        "Answer",
    ),
    "wire/records.py": (
        "Open",
        "Reassign",
        "Commit",
        "Grant",
        "Snapshot",
        "Evaluation",
        "PartInfo",
        "Member",
    ),
    "wire/result.py": ("Tally",),
}
"""What has a field more in the next release, that this one does not know."""


def release(place: Path, version: str) -> Path:
    """A copy of this package that says it is of another version."""
    copy = place / f"release-{version}"
    shutil.copytree(Path(potluck.__file__).parent, copy / "potluck")
    replace(copy / "potluck/__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
    return copy


def replace(file: Path, pattern: str, text: str) -> None:
    found, count = re.subn(pattern, lambda _: text, file.read_text("utf-8"))
    assert count == 1, f"{pattern} in {file}"
    file.write_text(found, "utf-8")


def next_release(place: Path) -> Path:
    copy = release(place, "99.0")
    for file, names in GROWN.items():
        for name in names:
            grow(copy / "potluck" / file, name)
    return copy


def grow(file: Path, name: str) -> None:
    """One field more at the end of a message's fields."""
    text = file.read_text("utf-8")
    head = re.search(rf"^class {name}\(.*\):\n", text, re.MULTILINE)
    assert head is not None, name
    body = text[head.end() :]
    fields = list(re.finditer(r"^    \w+: .*\n", body[: body.find("\nclass ")], re.MULTILINE))
    at = head.end() + fields[-1].end()
    file.write_text(text[:at] + NOVELTY + text[at:], "utf-8")


def all_in(s: Swarm) -> bool:
    return s.view.round > 0 and s.contributors(s.view.round) == {"p1", "p2", "p3"}


def test_peers_are_brought_to_the_next_release_one_after_another(
    swarm: Callable[..., Swarm], tmp_path: Path
) -> None:
    s, new = swarm(10_000), next_release(tmp_path)
    s.join("p2", "p3")
    s.until(lambda: all_in(s), 60, "all are in a round")
    for name in ("p2", "p3"):
        s.peers[name].kill()
        s.join(name, release=new)
        began = s.view.round
        s.until(
            lambda began=began: s.view.round > began and all_in(s),
            60,
            f"{name} is in a round again, and so are the others",
        )
        versions = {p.name: p.version for p in s.observer.peers}
        assert (versions[name], versions["p1"]) == ("99.0", potluck.__version__)
    s.wait_round(s.view.round + 2, 30)
    states = {p.state for p in s.observer.peers if p.round == s.observer.round and p.state}
    assert len(states) == 1, states


def test_another_wire_version_is_told_where_to_update(swarm: Callable[..., Swarm], tmp_path: Path) -> None:
    s, other = swarm(10_000), release(tmp_path, "100.0")
    replace(other / "potluck/wire/codec.py", rf"(?m)^WIRE = {WIRE}$", f"WIRE = {WIRE + 1}")
    stranger = Peer("join", str(tmp_path / "p2"), "p2", s.invite, release=other)
    try:
        assert stranger.process.wait(60) != 0
        stranger._reader.join(10)
        said = "".join(stranger.other)
        assert "wire version" in said
        assert "update Potluck" in said, said
    finally:
        stranger.end()
    s.wait_round(s.view.round + 1, 30)
