"""Invites: the one line of text by which a person lets another person's machine into a run.

``potluck:`` and RFC 4648 base32 in lower case, without padding: it survives mail, chat and terminals that
wrap lines or change case. Underneath: one byte of version, the fields in MessagePack, and five bytes of
BLAKE3 over all of it, which every version keeps, so that a typing error is told from a newer release.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from typing import Annotated

import blake3
import msgspec
from msgspec import Meta, Struct

from potluck.errors import InviteError, ProtocolError
from potluck.wire.codec import decode
from potluck.wire.records import Count, PeerId

VERSION = 1
"""Version of the invite's own format."""

SEVERAL = 2
"""Version of an invite to a run with several hubs."""

MAX_CHARACTERS = 4096
"""Upper bound of an invite's text, line breaks included."""

_PREFIX = "potluck:"
_CHECK_BYTES = 5


def is_invite(text: str) -> bool:
    """Whether this looks like an invite, and not like a path or an URL."""
    return text.strip().lower().startswith(_PREFIX)


class _Packed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An invite as it travels: by position, the hub's key raw."""

    run: Annotated[str, Meta(min_length=1, max_length=64)]
    hub: Annotated[bytes, Meta(min_length=32, max_length=32)]
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=270)], ...], Meta(max_length=16)]
    secret: Annotated[bytes, Meta(min_length=16, max_length=32)]
    expires: Count


class _PackedSeveral(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """As ``_Packed``, and the other hubs: key and addresses of each."""

    first: _Packed
    others: Annotated[
        tuple[
            tuple[
                Annotated[bytes, Meta(min_length=32, max_length=32)],
                Annotated[tuple[Annotated[str, Meta(max_length=270)], ...], Meta(max_length=16)],
            ],
            ...,
        ],
        Meta(min_length=1, max_length=8),
    ]


class Invite(Struct, frozen=True):
    """Whoever holds it may join ``run``: the hub's key and addresses, and a secret that the hub knows.

    ``addresses`` are ``host:port``; ``secret`` is 16 to 32 bytes; ``expires`` is in seconds since 1970, or 0
    for never. ``others`` are the run's other hubs, key and addresses of each: any hub takes the invite.
    Its printed form leaves the secret out.
    """

    run: str
    hub: PeerId
    addresses: tuple[str, ...]
    secret: bytes
    expires: int = 0
    others: tuple[tuple[PeerId, tuple[str, ...]], ...] = ()

    @property
    def hubs(self) -> dict[str, tuple[str, ...]]:
        """All hubs that it names: addresses by key."""
        return {self.hub: self.addresses} | dict(self.others)

    def __repr__(self) -> str:
        return f"Invite(run={self.run!r}, hub={self.hub!r}, addresses={self.addresses!r}, …)"

    def text(self) -> str:
        """The line to hand over. It is a secret: whoever reads it can join.

        Raises:
            InviteError: a field is out of its bounds.
        """
        try:
            hub = bytes.fromhex(self.hub)
            others = tuple((bytes.fromhex(key), addresses) for key, addresses in self.others)
        except ValueError as error:
            raise InviteError("the hub of an invite is named by 64 hexadecimal digits") from error
        packed = _Packed(self.run, hub, self.addresses, self.secret, self.expires)
        body = bytes([VERSION]) + msgspec.msgpack.encode(packed)
        if others:
            body = bytes([SEVERAL]) + msgspec.msgpack.encode(_PackedSeveral(packed, others))
        _fields(body)
        text = _PREFIX + _armoured(body + _check(body))
        if len(text) > MAX_CHARACTERS:
            raise InviteError(
                f"an invite of {len(text)} characters is too long to hand over; give fewer addresses"
            )
        return text

    @staticmethod
    def parse(text: str) -> Invite:
        """The invite in ``text``, whatever its case, spaces and line breaks.

        Whether it still holds is the hub's to say: this machine's clock may be wrong.

        Raises:
            InviteError: it is none, is mistyped or cut short, or from a newer release.
        """
        if len(text) > MAX_CHARACTERS:
            raise InviteError(
                f"text of {len(text)} characters is no invite; those have {MAX_CHARACTERS} at most"
            )
        compact = "".join(text.split()).lower()
        if not compact.startswith(_PREFIX):
            raise InviteError(f"this is no invite: one starts with {_PREFIX!r}, this with {compact[:12]!r}")
        raw = _bytes(compact.removeprefix(_PREFIX))
        body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
        if not body or check != _check(body):
            raise InviteError("the invite is mistyped or cut short: copy the whole of it once more")
        if body[0] not in (VERSION, SEVERAL):
            raise InviteError(
                f"the invite has format {body[0]}, this release reads {SEVERAL}: update Potluck"
            )
        packed, several = _fields(body)
        others = tuple((key.hex(), addresses) for key, addresses in several)
        return Invite(packed.run, packed.hub.hex(), packed.addresses, packed.secret, packed.expires, others)

    def hint(self, now: float) -> str:
        """What to add when the hub can't be asked: that the invite has expired, if it has by a clock that
        says ``now`` (in seconds since 1970); else nothing.
        """
        if not self.expires or now < self.expires:
            return ""
        try:
            ended = datetime.datetime.fromtimestamp(self.expires, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        except (ValueError, OverflowError, OSError):
            ended = f"{self.expires} s after 1970"
        return f"; by this machine's clock the invite expired at {ended}: ask its host for a new one"


def _check(body: bytes) -> bytes:
    return blake3.blake3(body).digest(length=_CHECK_BYTES)


def _fields(body: bytes) -> tuple[_Packed, tuple[tuple[bytes, tuple[str, ...]], ...]]:
    try:
        if body[0] == SEVERAL:
            several: _PackedSeveral = decode(body[1:], _PackedSeveral)
            return several.first, several.others
        return decode(body[1:], _Packed), ()
    except ProtocolError as error:
        raise InviteError(f"the invite does not hold what an invite holds: {error}") from error


def _armoured(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def _bytes(armoured: str) -> bytes:
    try:
        raw = base64.b32decode(armoured + "=" * (-len(armoured) % 8), casefold=True)
    except (binascii.Error, ValueError):
        return b""
    # The last character has spare bits: text that differs in those only was mistyped all the same.
    return raw if _armoured(raw) == armoured else b""
