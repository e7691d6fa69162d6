"""The gate between a peer and a site's NATS, byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.hub.gate import (
    MAX_HEADER_BYTES,
    MAX_LINE_BYTES,
    MAX_REFUSED,
    MAX_SITE_LINE_BYTES,
    MAX_SUBSCRIPTIONS,
    Gate,
    within,
)
from potluck.hub.nats_ledger import MAX_PAYLOAD_BYTES

RUN = "r"
OWN = b"_INBOX.me."
CONNECT = b'CONNECT {"user":"peer","pass":"secret","verbose":false}\r\n'
EXPECTED = b"NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\nNats-Expected-Stream: POTLUCK_r\r\n\r\n"

PEER = (
    CONNECT
    + b"PING\r\n"
    + b"SUB potluck.r.progress  1\r\n"
    + b"sub\t_INBOX.abc.* 2\r\n"
    + b"PUB potluck.r.progress 5\r\nhe\r\no\r\n"
    + b"PUB $JS.API.DIRECT.GET.POTLUCK_r _INBOX.abc.1 2\r\n{}\r\n"
    + b"HPUB potluck.r.ledger _INBOX.abc.2 %d %d\r\n" % (len(EXPECTED), len(EXPECTED) + 3)
    + EXPECTED
    + b"raw\r\n"
    + b"PUB secret.of.the.site 7\r\nPUB x 1\r\n"
    + b"SUB > 3\r\n"
    + b"UNSUB 2\r\nUNSUB 1 5\r\nPONG\r\n"
)
TO_SITE = (
    b"PING\r\n"
    + b"SUB potluck.r.progress 1\r\n"
    + b"SUB _INBOX.me.abc.* 2\r\n"
    + b"PUB potluck.r.progress 5\r\nhe\r\no\r\n"
    + b"PUB $JS.API.DIRECT.GET.POTLUCK_r _INBOX.me.abc.1 2\r\n{}\r\n"
    + b"HPUB potluck.r.ledger _INBOX.me.abc.2 %d %d\r\n" % (len(EXPECTED), len(EXPECTED) + 3)
    + EXPECTED
    + b"raw\r\n"
    + b"UNSUB 2\r\nUNSUB 1 5\r\nPONG\r\n"
)
REFUSED = (
    b"-ERR 'Permissions Violation for Publish to \"secret.of.the.site\"'\r\n"
    b"-ERR 'Permissions Violation for Subscription to \">\"'\r\n"
)
SITE = (
    b"PONG\r\nPING\r\n+OK\r\n"
    + b'INFO {"connect_urls":["10.0.0.1:4222"],"nonce":"n","tls_required":true}\r\n'
    + b"MSG potluck.r.progress 1 5\r\nMSG x\r\n"
    + b"MSG _INBOX.me.abc.1 2 2\r\n{}\r\n"
    + b"HMSG _INBOX.me.abc.2 2 _INBOX.me.abc.9 12 13\r\nNATS/1.0\r\n\r\n!\r\n"
    + b"MSG potluck.r.hubs 1 the.sites.own 0\r\n\r\n"
    + b"-ERR 'Permissions Violation for Subscription to \"_INBOX.me.x\"'\r\n"
)
TO_PEER = (
    b"PONG\r\nPING\r\n"
    + b"MSG potluck.r.progress 1 5\r\nMSG x\r\n"
    + b"MSG _INBOX.abc.1 2 2\r\n{}\r\n"
    + b"HMSG _INBOX.abc.2 2 _INBOX.abc.9 12 13\r\nNATS/1.0\r\n\r\n!\r\n"
    + b"MSG potluck.r.hubs 1 0\r\n\r\n"
    + b"-ERR 'Permissions Violation for Subscription to \"_INBOX.x\"'\r\n"
)


def gate(max_payload: int = MAX_PAYLOAD_BYTES) -> Gate:
    return Gate(RUN, "me", max_payload)


def says(gate: Gate, pieces: Iterable[bytes]) -> tuple[bytes, bytes, str]:
    """What the site and the peer hear of what a peer says, and why it is over."""
    passed, complaints = b"", b""
    for piece in pieces:
        passed += gate.from_peer(piece)
        complaints += gate.complaints()
    return passed, complaints, gate.over


def after_connect(*lines: bytes) -> tuple[bytes, bytes, str]:
    return says(gate(), [CONNECT, *lines])


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for place in [*sorted(places), len(data)]:
        yield data[start:place]
        start = place


def places(data: bytes) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(0, len(data)), max_size=40)


def test_what_a_peer_may_say_passes_and_the_rest_is_refused() -> None:
    assert says(gate(), [PEER]) == (TO_SITE, REFUSED, "")


@given(places(PEER))
def test_it_does_not_matter_how_a_peers_bytes_are_cut(found: set[int]) -> None:
    assert says(gate(), cut(PEER, found)) == (TO_SITE, REFUSED, "")


@given(places(SITE))
def test_nor_how_the_sites_are(found: set[int]) -> None:
    one = gate()
    assert b"".join(map(one.from_site, cut(SITE, found))) == TO_PEER
    assert not one.over


def test_every_beginning_gives_a_beginning() -> None:
    """What was cut short, at whichever byte, passes as far as it goes, and waits for more."""
    for end in range(len(PEER)):
        passed, complaints, over = says(gate(), [PEER[:end]])
        assert TO_SITE.startswith(passed), end
        assert REFUSED.startswith(complaints), end
        assert not over
        assert b"secret" not in passed
    for end in range(len(SITE)):
        one = gate()
        assert TO_PEER.startswith(one.from_site(SITE[:end])), end
        assert not one.over


@given(places(PEER), places(SITE), st.lists(st.booleans()))
def test_complaints_come_between_messages(peer: set[int], site: set[int], turns: list[bool]) -> None:
    one = gate()
    ways = {True: list(cut(PEER, peer)), False: list(cut(SITE, site))}
    heard = b""
    for turn in (*turns, *[True] * 50, *[False] * 50):
        if ways[turn]:
            piece = ways[turn].pop(0)
            if turn:
                one.from_peer(piece)
                heard += one.complaints()
            else:
                heard += one.from_site(piece)
    for complaint in REFUSED.splitlines(keepends=True):
        assert heard.count(complaint) == 1
        heard = heard.replace(complaint, b"")
    assert heard == TO_PEER


LINES = st.one_of(
    st.sampled_from([b"PUB", b"SUB", b"HPUB", b"UNSUB", b"PING", b"CONNECT", b"INFO", b"MSG", b"", b"\r\n"]),
    st.binary(max_size=12),
    st.sampled_from(
        [b" ", b"\r\n", b"potluck.r.x", b"_INBOX.x", b"secret.x", b">", b"0", b"5", b"99999999999"]
    ),
)


@given(st.lists(LINES, max_size=60), st.data())
def test_garbage_neither_crashes_nor_gets_where_it_may_not(words: list[bytes], data: st.DataObject) -> None:
    garbage = b"".join(words)
    whole = says(gate(), [CONNECT, garbage])
    assert says(gate(), [CONNECT, *cut(garbage, data.draw(places(garbage)))]) == whole
    rest = whole[0]
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        kind, *found = line.split(b" ")
        assert kind in (b"PING", b"PONG", b"PUB", b"HPUB", b"SUB", b"UNSUB")
        if kind in (b"PUB", b"HPUB", b"SUB"):
            assert re.fullmatch(rb"potluck\.r\..+|\$JS\.API\.DIRECT\.GET\.POTLUCK_r|_INBOX\.me\..+", found[0])
        if kind in (b"PUB", b"HPUB"):
            rest = rest[int(found[-1]) + 2 :]
    one = gate()
    one.from_site(garbage)


@pytest.mark.parametrize(
    "subject",
    [
        b"secret",
        b"potluck.other.ledger",
        b"potluck.r",
        b"potluck",
        b"potluck.r.",
        b"potluck.r..x",
        b"potluck.r.*",
        b"potluck.r.>",
        b"_INBOX.x",
        b"_INBOX.me.x",
        b"$JS.API.STREAM.DELETE.POTLUCK_r",
        b"$JS.API.DIRECT.GET.POTLUCK_other",
        b"$JS.API.DIRECT.GET.POTLUCK_r.x",
        b"$JS.API.>",
        b"$SYS.REQ.SERVER.PING",
        b"*",
        b">",
        b".",
    ],
)
def test_nothing_is_published_elsewhere(subject: bytes) -> None:
    passed, complaints, over = after_connect(b"PUB " + subject + b" 3\r\nabc\r\nPING\r\n")
    assert (passed, over) == (b"PING\r\n", "")
    assert complaints == b"-ERR 'Permissions Violation for Publish to \"%s\"'\r\n" % subject


@pytest.mark.parametrize(
    "subject",
    (
        b"> * *.> *.x potluck.> potluck.*.progress potluck.r potluck.r.>.x potluck.r..x "
        b"_INBOX _INBOX. $JS.> $SYS.> secret.x"
    ).split(),
)
def test_nothing_else_is_subscribed_to(subject: bytes) -> None:
    passed, complaints, over = after_connect(b"SUB " + subject + b" 1\r\n")
    assert (passed, over) == (b"", "")
    assert b"Permissions Violation for Subscription" in complaints


@pytest.mark.parametrize(
    ("subject", "site"),
    [
        (b"_INBOX.>", b"_INBOX.me.>"),
        (b"_INBOX.*", b"_INBOX.me.*"),
        (b"_INBOX.me.x", b"_INBOX.me.me.x"),
        (b"potluck.r.>", b"potluck.r.>"),
        (b"potluck.r.*", b"potluck.r.*"),
    ],
)
def test_what_may_be_heard(subject: bytes, site: bytes) -> None:
    assert after_connect(b"SUB %s group 1\r\n" % subject) == (b"SUB %s group 1\r\n" % site, b"", "")


@pytest.mark.parametrize("reply", [b"secret.x", b"potluck.r.ledger", b"_INBOX", b"_INBOX.>", b"_INBOX.x.*"])
def test_answers_go_to_ones_own_inbox_only(reply: bytes) -> None:
    """Else the server would say something at the site, with the site's rights."""
    passed, complaints, _ = after_connect(b"PUB potluck.r.ledger " + reply + b" 1\r\nx\r\n")
    assert (passed, complaints.count(b"-ERR")) == (b"", 1)


@pytest.mark.parametrize(
    "headers",
    [
        b"NATS/1.0\r\nNats-Trace-Dest: secret.x\r\n\r\n",
        b"NATS/1.0\r\nNats-Expected-Stream: x\r\nnats-trace-dest: y\r\n\r\n",
        b"NATS/1.0\r\nNats-Rollup: all\r\n\r\n",
        b"NATS/1.0\r\nNats-Expected-Stream: x\nNats-Trace-Dest: y\r\n\r\n",
        b"NATS/1.0\r\nNats-Expected-Stream: x\r\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nNats-Expected-Stream: x\r\n",
        b"anything else",
    ],
)
def test_headers_are_those_of_the_ledger(headers: bytes) -> None:
    sizes = b"%d %d" % (len(headers), len(headers) + 1)
    passed, complaints, over = after_connect(b"HPUB potluck.r.ledger " + sizes + b"\r\n" + headers + b"x\r\n")
    assert (passed, complaints.count(b"-ERR"), over) == (b"", 1, "")


def test_a_peer_says_first_who_it_is() -> None:
    assert says(gate(), [b"PING\r\n"]) == (
        b"",
        b"-ERR 'Authorization Violation'\r\n",
        "Authorization Violation",
    )


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b"PUBLISH x 1\r\n",
        b"PUB potluck.r.x\r\n",
        b"PUB potluck.r.x -1\r\n",
        b"PUB potluck.r.x +1\r\n",
        b"PUB potluck.r.x 1e3\r\n",
        b"PUB potluck.r.x 1234567890\r\n",
        b"PUB potluck.r.x a b 1\r\n",
        b"PUB potluck.r.x\x00 1\r\n",
        b"PUB potluck.r.\xc3\xa9 1\r\n",
        b"PUB potluck.r.x\r 1\r\n",
        b"PUB potluck.r.x 1\r\nxyz",
        b"PUB potluck.r.x 1\r\nx\n\n",
        b"SUB potluck.r.x one\r\n",
        b"UNSUB x\r\n",
        b"PING PING\r\n",
        b"MSG potluck.r.x 1 0\r\n\r\n",
        b"INFO {}\r\n",
    ],
)
def test_what_no_client_says_ends_it(line: bytes) -> None:
    _, complaints, over = after_connect(line, b"PING\r\n")
    assert over == "Unknown Protocol Operation"
    assert complaints == b"-ERR 'Unknown Protocol Operation'\r\n"


def test_sizes_are_bounded_before_anything_is_kept() -> None:
    for limit in (MAX_PAYLOAD_BYTES, 1 << 20):
        one = gate(limit)
        assert json.loads(one.greeting("2.11.0").partition(b" ")[2])["max_payload"] == limit
        fits = says(one, [CONNECT, b"PUB potluck.r.x %d\r\n" % limit])
        assert fits == (b"PUB potluck.r.x %d\r\n" % limit, b"", "")
        over = says(gate(limit), [CONNECT, b"PUB potluck.r.x %d\r\n" % (limit + 1)])
        assert over == (b"", b"-ERR 'Maximum Payload Violation'\r\n", "Maximum Payload Violation")
    for header in (b"%d 5000" % (MAX_HEADER_BYTES + 1), b"6 5"):
        assert after_connect(b"HPUB potluck.r.x " + header + b"\r\n")[2].startswith("Header Size")
    for line in (b"x" * MAX_LINE_BYTES, b"PUB " + b"x" * MAX_LINE_BYTES + b" 1\r\n"):
        assert after_connect(line)[2] == "Maximum Control Line Exceeded"
        assert says(gate(), [line])[2] == "Maximum Control Line Exceeded"
    one = gate()
    one.from_site(b"x" * MAX_SITE_LINE_BYTES)
    assert one.over


def test_payloads_are_not_kept() -> None:
    one = gate()
    one.from_peer(CONNECT + b"PUB potluck.r.x 1000000\r\n")
    for _ in range(10):
        assert one.from_peer(b"x" * 1000) == b"x" * 1000
        assert len(one._peer._bytes) == len(one._to_site) == 0


def test_subscriptions_are_counted() -> None:
    lines = [b"SUB potluck.r.x %d\r\n" % sid for sid in range(MAX_SUBSCRIPTIONS + 1)]
    assert after_connect(*lines)[2] == "Maximum Subscriptions Exceeded"
    ended = [line for sid, sub in enumerate(lines) for line in (sub, b"UNSUB %d\r\n" % sid)]
    assert after_connect(*ended)[2] == ""
    later = [line for sid, sub in enumerate(lines) for line in (sub, b"UNSUB %d 1\r\n" % sid)]
    assert after_connect(*later)[2] == "Maximum Subscriptions Exceeded"


def test_whoever_goes_on_asking_for_what_is_refused_is_sent_away() -> None:
    _, complaints, over = after_connect(*[b"SUB > 1\r\n"] * (MAX_REFUSED + 10))
    assert over == "Too Many Permissions Violations"
    assert complaints.count(b"-ERR") == MAX_REFUSED + 1


def test_nothing_passes_any_more_once_it_is_over() -> None:
    one = gate()
    one.from_peer(b"nonsense\r\n")
    assert one.over
    assert one.from_peer(CONNECT + b"PING\r\n") == b""


def test_a_greeting_tells_nothing_of_the_site() -> None:
    said = gate(1 << 20).greeting("2.11.1")
    assert said.startswith(b"INFO {")
    assert said.endswith(b"}\r\n")
    info = json.loads(said[5:])
    assert info.pop("server_id") == info.pop("server_name") == "potluck"
    assert info == {
        "version": "2.11.1",
        "proto": 1,
        "headers": True,
        "jetstream": True,
        "max_payload": 1 << 20,
    }


@pytest.mark.parametrize(
    "line", [b"MSG x 1\r\n", b"MSG\r\n", b"MSG a b c d 1\r\n", b"HMSG a 1 2\r\n", b"WHAT\r\n"]
)
def test_a_site_that_says_what_no_client_knows(line: bytes) -> None:
    one = gate()
    one.from_site(line)
    assert one.over


@pytest.mark.parametrize(
    ("subject", "wide", "inside"),
    [
        ("a", "a", True),
        ("a.b", "a", False),
        ("a", "a.b", False),
        ("a.b", "a.*", True),
        ("a.*", "a.*", True),
        ("a.>", "a.*", False),
        ("a.b.c", "a.*", False),
        ("a.b.c", "a.>", True),
        ("a.*.>", "a.>", True),
        ("a.>", "a.>", True),
        ("a", "a.>", False),
        ("*", "a", False),
        ("*.b", "a.b", False),
        (">", "a.>", False),
        (">", ">", True),
        ("a..b", ">", False),
        ("", ">", False),
        ("a.>.b", "a.>", False),
    ],
)
def test_within(subject: str, wide: str, inside: bool) -> None:
    assert within(subject, wide) is inside
