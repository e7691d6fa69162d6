"""What a hub keeps so that it goes on where it was: ``hub.json``, beside its key and the ledger's store."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from potluck.errors import StoreError
from potluck.wire.records import Count

MAX_STATE_BYTES = 1 << 20

FORGET_S = 30 * 86_400.0
"""An expired secret is kept so long, so that its holder hears "expired" rather than "unknown"; in seconds."""

LOCK = "hub.lock"
"""The file that is locked by the hub that works in a directory."""

_NAME = "hub.json"


class Secret(Struct, frozen=True):
    """What an invite holds; ``expires`` is in seconds since 1970, 0 for never."""

    value: Annotated[bytes, Meta(min_length=16, max_length=32)]
    expires: Count = 0


class HubState(Struct, frozen=True):
    """The run, the ledger's password for peers, the port last listened on, and the invites' secrets."""

    run: Annotated[str, Meta(min_length=1, max_length=64)]
    password: Annotated[str, Meta(min_length=16, max_length=128)]
    port: Annotated[int, Meta(ge=0, lt=65_536)] = 0
    secrets: tuple[Secret, ...] = ()

    def with_secret(self, secret: Secret, now: float) -> HubState:
        """This and one more secret, without those long expired."""
        kept = (old for old in self.secrets if not old.expires or now < old.expires + FORGET_S)
        return msgspec.structs.replace(self, secrets=(*kept, secret))

    def save(self, directory: Path) -> None:
        """Write it whole or not at all, readable by its owner only.

        Raises:
            StoreError: the disk refuses.
        """
        draft = directory / f".{_NAME}.{secrets.token_hex(8)}"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self)))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(directory / _NAME)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"the hub can't write to {directory}: {error.strerror or error}") from error

    @staticmethod
    def load(directory: Path) -> HubState | None:
        """What was saved; ``None`` when nothing was.

        Raises:
            StoreError: it is damaged or can't be read.
        """
        path = directory / _NAME
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_STATE_BYTES), type=HubState)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror or error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}): restore it from a backup, or start a new hub elsewhere"
            ) from error
