"""Seats: signed by the run's authority, merged in any order to the same."""

from __future__ import annotations

import itertools

import msgspec

from potluck.hub.seats import Seat, free_seat, key_of, merge, seat_of, sign
from potluck.identity import Identity

AUTHORITY = Identity.generate()
HUBS = [Identity.generate().peer for _ in range(4)]
RUN = "run"


def seat(number: int, term: int, version: int, hub: int = 0, addresses: tuple[str, ...] = ("a:1",)) -> Seat:
    return sign(Seat(number, term, version, HUBS[hub], addresses), RUN, AUTHORITY)


def merged(*news: Seat, known: tuple[Seat, ...] = ()) -> tuple[Seat, ...]:
    return merge(known, news, RUN, AUTHORITY.peer)


def test_the_newest_of_each_seat_wins_in_any_order():
    said = [seat(1, 0, 1), seat(2, 0, 9, 1), seat(2, 1, 0, 2), seat(2, 1, 1, 2), seat(3, 0, 1, 3)]
    expected = (said[0], said[3], said[4])
    for order in itertools.permutations(said):
        assert merged(*order) == expected
        one = merged(*order[:2])
        assert merged(*order[2:], known=one) == expected


def test_what_the_authority_did_not_sign_is_dropped():
    good = seat(1, 0, 1)
    usurper = Identity.generate()
    forged = [
        msgspec.structs.replace(good, version=2),
        msgspec.structs.replace(good, term=1),
        msgspec.structs.replace(good, hub=HUBS[1], version=2),
        msgspec.structs.replace(good, addresses=("b:1",), version=2),
        msgspec.structs.replace(good, number=2),
        sign(Seat(1, 0, 2, HUBS[1], ("b:1",)), RUN, usurper),
        sign(Seat(1, 0, 2, HUBS[1], ("b:1",)), "another run", AUTHORITY),
        Seat(2, 0, 0, HUBS[1], ("b:1",)),
    ]
    assert merged(*forged, known=(good,)) == (good,)


def test_two_seats_of_one_age_are_settled_alike_everywhere():
    one, other = seat(1, 0, 1, 0), seat(1, 0, 1, 1)
    assert merged(one, other) == merged(other, one)


def test_who_has_which():
    seats = merged(seat(1, 0, 1, 0), seat(3, 0, 1, 2))
    assert seat_of(seats, HUBS[2]) == seats[1]
    assert seat_of(seats, HUBS[1]) is None
    assert free_seat(seats) == 2
    assert free_seat(merged(*seats, seat(2, 0, 0, 1))) is None


def test_the_authoritys_key_is_in_its_certificate():
    assert key_of(AUTHORITY.authority()) == AUTHORITY.peer
