"""What a hub keeps: whole or not at all, for its owner's eyes."""

from __future__ import annotations

import stat

import pytest

from potluck.errors import StoreError
from potluck.hub.state import FORGET_S, HubState, Secret

STATE = HubState("run", "p" * 16, 4433, (Secret(b"s" * 16, 100), Secret(b"t" * 16)))


def test_what_is_saved_is_loaded(tmp_path):
    assert HubState.load(tmp_path) is None
    STATE.save(tmp_path)
    assert HubState.load(tmp_path) == STATE
    assert stat.S_IMODE((tmp_path / "hub.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["hub.json"]


def test_any_damage_is_noticed(tmp_path):
    STATE.save(tmp_path)
    path = tmp_path / "hub.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="is damaged"):
            HubState.load(tmp_path)
    for wrong in (whole + b"}", whole.replace(b"4433", b"-1"), whole.replace(b'"run"', b'"rum"'), b"\xff"):
        path.write_bytes(wrong)
        with pytest.raises(StoreError, match="is damaged"):
            HubState.load(tmp_path)


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path):
    STATE.save(tmp_path)
    with pytest.raises(StoreError, match="can't write"):
        STATE.save(tmp_path / "absent")
    (tmp_path / "hub.json").unlink()
    (tmp_path / "hub.json").mkdir()
    with pytest.raises(StoreError, match="can't be read"):
        HubState.load(tmp_path)
    with pytest.raises(StoreError, match="can't write"):
        STATE.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hub.json"]


def test_secrets_long_expired_are_forgotten():
    new = Secret(b"u" * 16, 9)
    assert STATE.with_secret(new, 100 + FORGET_S - 1).secrets == (*STATE.secrets, new)
    assert STATE.with_secret(new, 100 + FORGET_S).secrets == (STATE.secrets[1], new)
