"""What a hub keeps so that it goes on where it was: ``hub.json``, beside its key and the ledger's store."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from potluck.errors import StoreError
from potluck.hub.seats import SEATS, Seats
from potluck.wire.records import Count

MAX_STATE_BYTES = 1 << 20

FORGET_S = 30 * 86_400.0
"""An expired secret is kept so long, so that its holder hears "expired" rather than "unknown"; in seconds."""

LOCK = "hub.lock"
"""The file that is locked by the hub that works in a directory."""
SOLO, CLUSTER, SITE = 1, 2, 3
"""The engines of a run: one nats-server at its first hub, then three that keep one ledger; or its site's own
NATS, from beginning to end.
"""

_NAME = "hub.json"


class Secret(Struct, frozen=True):
    """What an invite holds; ``expires`` is in seconds since 1970, 0 for never."""

    value: Annotated[bytes, Meta(min_length=16, max_length=32)]
    expires: Count = 0


def _current(known: Iterable[Secret], now: float) -> tuple[Secret, ...]:
    """Each once, without those long expired (which two hubs would else remind each other of for ever)."""
    return tuple({s.value: s for s in known if not s.expires or now < s.expires + FORGET_S}.values())


class HubState(Struct, frozen=True):
    """The run, the ledger's password for peers, the port last listened on, and the invites' secrets.

    What a hub has in common with others: ``tokens`` are secrets that let a machine become a hub,
    ``cluster_password`` is that of their nats-servers, ``seat`` our own of ``seats``, ``engine`` the ledger
    in force (``SOLO``, ``CLUSTER`` or ``SITE``) as far as is known here; ``made`` whether it was made at the
    site once, and so must be there.
    """

    run: Annotated[str, Meta(min_length=1, max_length=64)]
    password: Annotated[str, Meta(min_length=16, max_length=128)]
    port: Annotated[int, Meta(ge=0, lt=65_536)] = 0
    secrets: tuple[Secret, ...] = ()
    tokens: tuple[Secret, ...] = ()
    cluster_password: Annotated[str, Meta(max_length=128)] = ""
    seat: Annotated[int, Meta(ge=1, le=SEATS)] = 1
    seats: Seats = ()
    engine: Count = SOLO
    made: bool = False

    def with_secret(self, secret: Secret, now: float) -> HubState:
        """This and one more secret, without those long expired."""
        return msgspec.structs.replace(self, secrets=(*_current(self.secrets, now), secret))

    def with_token(self, token: Secret) -> HubState:
        """This and one more secret for hubs."""
        return msgspec.structs.replace(self, tokens=(*self.tokens, token))

    def with_others(self, secrets: Iterable[Secret], tokens: Iterable[Secret], now: float) -> HubState:
        """This, and what another hub of the run knows."""
        return msgspec.structs.replace(
            self,
            secrets=_current((*self.secrets, *secrets), now),
            tokens=_current((*self.tokens, *tokens), now),
        )

    def save(self, directory: Path) -> None:
        """Write it whole or not at all, readable by its owner only.

        Raises:
            StoreError: the disk refuses.
        """
        write_private(directory / _NAME, msgspec.json.format(msgspec.json.encode(self)))

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


def write_private(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all, readable by its owner only.

    Raises:
        StoreError: the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"the hub can't write to {path.parent}: {error.strerror or error}") from error
