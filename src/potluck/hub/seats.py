"""Who keeps the run's ledger: up to three seats, each with the hub that has it and where that is.

Every hub holds the authority's key and signs its own seat; whoever hears of a seat checks the signature, so
it does not matter from whom. Seats are merged one by one, the newest wins, and no hub has to be asked first.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from potluck.identity import Identity, peer_of_certificate
from potluck.wire.records import Count, PeerId, canonical

SEATS = 3
"""Hubs of a run that moved: any one of them may be lost."""

Address = Annotated[str, Meta(max_length=270)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=16)]


class Seat(Struct, frozen=True):
    """One hub's place. ``term`` counts the hubs that have had it, ``version`` what the present one said."""

    number: Annotated[int, Meta(ge=1, le=SEATS)]
    term: Count
    version: Count
    hub: PeerId
    addresses: Addresses
    signature: Annotated[bytes, Meta(max_length=64)] = b""

    @property
    def _age(self) -> tuple[int, int, bytes]:
        # The signature only settles what nobody should have said: two seats of the same age.
        return self.term, self.version, self.signature


Seats = Annotated[tuple[Seat, ...], Meta(max_length=SEATS)]


def sign(seat: Seat, run: str, authority: Identity) -> Seat:
    """The seat with the authority's word for it."""
    return msgspec.structs.replace(seat, signature=authority.sign(_said(seat, run)))


def merge(known: Iterable[Seat], news: Iterable[Seat], run: str, authority: str) -> tuple[Seat, ...]:
    """The newest of each seat, by number, less what ``authority`` (a key, hex) did not sign for ``run``."""
    newest = {seat.number: seat for seat in known}
    for seat in news:
        old = newest.get(seat.number)
        is_newer = old is None or seat._age > old._age
        if is_newer and Identity.verify(authority, _said(seat, run), seat.signature):
            newest[seat.number] = seat
    return tuple(newest[number] for number in sorted(newest))


def seat_of(seats: Iterable[Seat], hub: str) -> Seat | None:
    """The seat that a hub has."""
    return next((seat for seat in seats if seat.hub == hub), None)


def free_seat(seats: Iterable[Seat]) -> int | None:
    """The lowest number that nobody has."""
    taken = {seat.number for seat in seats}
    return next((number for number in range(1, SEATS + 1) if number not in taken), None)


def key_of(authority_pem: bytes) -> str:
    """The key (hex) of an authority's certificate.

    Raises:
        ProtocolError, ValueError: it is none.
    """
    return peer_of_certificate(ssl.PEM_cert_to_DER_cert(authority_pem.decode("ascii")))


def _said(seat: Seat, run: str) -> bytes:
    return canonical(("potluck seat", run, seat.number, seat.term, seat.version, seat.hub, seat.addresses))
