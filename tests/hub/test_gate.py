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
    MAX_QUESTION_BYTES,
    MAX_READS,
    MAX_REFUSED,
    MAX_SITE_LINE_BYTES,
    MAX_SUBSCRIPTIONS,
    Gate,
    overlap,
    within,
)
from potluck.hub.ledger import BATCH
from potluck.hub.nats_ledger import MAX_PAYLOAD_BYTES, MAX_READ_BYTES

RUN = "r"
OWN = b"_INBOX.me."
CONNECT = b'CONNECT {"user":"peer","pass":"secret","verbose":false}\r\n'
QUESTION = b'{"seq": 3, "batch": 256, "max_bytes": 4194304}'
EXPECTED = b"NATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\nNats-Expected-Stream: POTLUCK_r\r\n\r\n"

PEER = (
    CONNECT
    + b"PING\r\n"
    + b"SUB potluck.r.progress  1\r\n"
    + b"sub\t_INBOX.abc.* 2\r\n"
    + b"PUB potluck.r.progress 5\r\nhe\r\no\r\n"
    + b'PUB $JS.API.DIRECT.GET.POTLUCK_r _INBOX.abc.1 9\r\n{"seq":3}\r\n'
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
    + b"PUB $JS.API.DIRECT.GET.POTLUCK_r _INBOX.me.abc.1 %d\r\n%s\r\n" % (len(QUESTION), QUESTION)
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


LEDGER = b"potluck.r.ledger"


def append(headers: bytes = EXPECTED, reply: bytes = b"_INBOX.a", subject: bytes = LEDGER) -> bytes:
    line = b"HPUB %s %s %d %d\r\n" % (subject, reply, len(headers), len(headers) + 1)
    return line + headers + b"x\r\n"


@pytest.mark.parametrize("reply", [b"secret.x", b"potluck.r.ledger", b"_INBOX", b"_INBOX.>", b"_INBOX.x.*"])
def test_answers_go_to_ones_own_inbox_only(reply: bytes) -> None:
    """Else the server would say something at the site, with the site's rights."""
    for line in (append(reply=reply), asks(reply=reply)):
        passed, complaints, _ = after_connect(line)
        assert (passed, complaints.count(b"-ERR")) == (b"", 1)
    assert after_connect(append())[0].count(b"HPUB") == 1


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
        EXPECTED.replace(b"7", b""),
        EXPECTED.replace(b"7", b"-1"),
        EXPECTED.replace(b"7", b"seven"),
        EXPECTED.replace(b"POTLUCK_r", b"POTLUCK_x"),
        EXPECTED.replace(b"Nats-Expected-Stream: POTLUCK_r\r\n", b""),
        EXPECTED.replace(b"Nats-Expected-Last-Sequence: 7\r\n", b""),
        EXPECTED.replace(b"Nats-Expected-Stream: POTLUCK_r", b"Nats-Expected-Last-Sequence: 7"),
        EXPECTED.replace(b"\r\n\r\n", b"\r\nNats-Msg-Id: x\r\n\r\n"),
        EXPECTED.replace(b"7", b"7\x0bx"),
        EXPECTED + b"\r\n",
    ],
)
def test_headers_are_those_of_an_append(headers: bytes) -> None:
    """All of them: what is not compared and set would be stored whatever comes."""
    passed, complaints, over = after_connect(append(headers))
    assert (passed, complaints.count(b"-ERR"), over) == (b"", 1, "")


def test_only_appends_have_headers_and_only_they_and_reads_ask_for_answers() -> None:
    for line in (
        b"PUB potluck.r.ledger 1\r\nx\r\n",
        b"PUB potluck.r.ledger _INBOX.a 1\r\nx\r\n",
        b"PUB potluck.r.progress _INBOX.a 1\r\nx\r\n",
        append(subject=b"potluck.r.progress"),
        append(subject=b"$JS.API.DIRECT.GET.POTLUCK_r"),
    ):
        passed, complaints, over = after_connect(line)
        assert (passed, complaints.count(b"-ERR"), over) == (b"", 1, ""), line


# -- what is read --------------------------------------------------------------------------------


def asks(question: bytes = QUESTION, reply: bytes = b"_INBOX.a") -> bytes:
    return b"PUB $JS.API.DIRECT.GET.POTLUCK_r %s %d\r\n%s\r\n" % (reply, len(question), question)


def answer(status: bytes, inbox: bytes = b"_INBOX.me.a", kind: bytes = b"HMSG") -> bytes:
    headers = b"NATS/1.0" + status + b"\r\nNats-Num-Pending: 5\r\n\r\n"
    sizes = b"%d %d" % (len(headers), len(headers)) if kind == b"HMSG" else b"%d" % len(headers)
    return b"%s %s 1 %s\r\n%s\r\n" % (kind, inbox, sizes, headers)


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ({"seq": 5, "batch": 7, "max_bytes": 100}, {"seq": 5, "batch": 7, "max_bytes": 100}),
        ({"seq": 5}, {"seq": 5, "batch": BATCH, "max_bytes": MAX_READ_BYTES}),
        ({"seq": 5, "batch": 0, "max_bytes": 0}, {"seq": 5, "batch": 1, "max_bytes": 1}),
        ({"seq": -5, "batch": -1, "max_bytes": -1}, {"seq": 1, "batch": 1, "max_bytes": 1}),
        (
            {"seq": 1 << 70, "batch": 1 << 70, "max_bytes": 1 << 70},
            {"seq": (1 << 63) - 1, "batch": BATCH, "max_bytes": MAX_READ_BYTES},
        ),
    ],
)
def test_no_more_is_read_at_a_time_than_a_peer_reads(asked: dict[str, int], passed: dict[str, int]) -> None:
    to_site, complaints, over = after_connect(asks(json.dumps(asked).encode()), b"PING\r\n")
    assert (complaints, over) == (b"", "")
    line, question, rest = to_site.split(b"\r\n", 2)
    assert line == b"PUB $JS.API.DIRECT.GET.POTLUCK_r _INBOX.me.a %d" % len(question)
    assert json.loads(question) == passed
    assert rest == b"PING\r\n"


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"{}",
        b"[]",
        b"7",
        b"no JSON",
        b"\xff\xfe",
        b"[" * MAX_QUESTION_BYTES,
        b'{"seq":1.5}',
        b'{"seq":true}',
        b'{"seq":"1"}',
        b'{"seq":null}',
        b'{"batch":1}',
        b'{"seq":1,"multi_last":["potluck.r.ledger"]}',
        b'{"seq":1,"last_by_subj":"potluck.r.ledger"}',
        b'{"seq":1,"up_to_seq":1}',
        b'{"seq":1,"batch":NaN}',
        b'{"seq":1}' + b" " * MAX_QUESTION_BYTES,
    ],
)
def test_what_our_client_does_not_ask_is_refused(question: bytes) -> None:
    passed, complaints, over = after_connect(asks(question), b"PING\r\n")
    assert (passed, complaints.count(b"Permissions Violation for Publish"), over) == (b"PING\r\n", 1, "")


def test_a_read_needs_somebody_to_hear_the_answer() -> None:
    passed, complaints, _ = after_connect(asks(reply=b"").replace(b"  ", b" "))
    assert (passed, complaints.count(b"-ERR")) == (b"", 1)


def test_reads_under_way_are_counted() -> None:
    assert after_connect(*[asks()] * MAX_READS)[2] == ""
    _, complaints, over = after_connect(*[asks()] * (MAX_READS + 1))
    assert over == "Maximum Reads Exceeded"
    assert complaints == b"-ERR 'Maximum Reads Exceeded'\r\n"


@pytest.mark.parametrize("status", [b" 204 EOB", b" 404 Message Not Found", b" 408 Bad Request", b" 503"])
def test_one_that_was_answered_is_not(status: bytes) -> None:
    one = gate()
    one.from_peer(CONNECT)
    for _ in range(5 * MAX_READS):
        one.from_peer(asks())
        for piece in cut(answer(b"") + answer(status), (3, 50, 60, 90)):
            one.from_site(piece)
    assert not one.over


@pytest.mark.parametrize(
    "heard",
    [
        answer(b""),
        answer(b" 100 Idle"),
        answer(b" 204 EOB", b"_INBOX.me.b"),
        answer(b" 204 EOB", b"potluck.r.progress"),
        answer(b" 204 EOB", kind=b"MSG"),
        b"HMSG _INBOX.me.a 1 18 19\r\nNATS/1.0 204 X\r\n\r\n!\r\n",
    ],
)
def test_nothing_else_passes_for_an_answers_end(heard: bytes) -> None:
    one = gate()
    one.from_peer(CONNECT)
    for _ in range(MAX_READS):
        one.from_peer(asks())
        assert one.from_site(heard).replace(b"_INBOX.", b"_INBOX.me.") == heard
    assert not one.over
    one.from_peer(asks())
    assert one.over


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
    lines = [b"SUB potluck.r.%d %d\r\n" % (sid, sid) for sid in range(MAX_SUBSCRIPTIONS + 1)]
    assert after_connect(*lines)[2] == "Maximum Subscriptions Exceeded"
    ended = [line for sid, sub in enumerate(lines) for line in (sub, b"UNSUB %d\r\n" % sid)]
    assert after_connect(*ended)[2] == ""
    later = [line for sid, sub in enumerate(lines) for line in (sub, b"UNSUB %d 1\r\n" % sid)]
    assert after_connect(*later)[2] == "Maximum Subscriptions Exceeded"


def test_nothing_is_delivered_twice() -> None:
    """Each copy would have to be kept by the site's server until it is fetched."""
    for again in (b"potluck.r.x", b"potluck.r.*", b"potluck.r.>", b"potluck.*.x"):
        passed, complaints, over = after_connect(b"SUB potluck.r.x 1\r\n", b"SUB %s 2\r\n" % again)
        assert (passed, complaints.count(b"-ERR"), over) == (b"SUB potluck.r.x 1\r\n", 1, ""), again
    passed, _, _ = after_connect(b"SUB _INBOX.> 1\r\n", b"SUB _INBOX.a 2\r\n", b"SUB potluck.r.x 1\r\n")
    assert passed == b"SUB _INBOX.me.> 1\r\n"
    ours = b"SUB _INBOX.a.* 1\r\nSUB _INBOX.b 2\r\nUNSUB 2\r\nSUB _INBOX.b 3\r\n"
    assert after_connect(ours) == (ours.replace(b"_INBOX", b"_INBOX.me"), b"", "")


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


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "*.b", True),
        ("a.*.c", "a.b.*", True),
        ("a.*.c", "a.b.d", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "b.>", False),
        (">", "a", True),
    ],
)
def test_overlap(one: str, other: str, both: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is both


@pytest.mark.parametrize("blank", [b"\x0b", b"\x0c"])
def test_what_servers_take_for_a_part_of_a_subject_is_none_that_parts_words(blank: bytes) -> None:
    one = gate()
    heard = b"MSG potluck.r.x%sy 1 0\r\n\r\n" % blank
    assert one.from_site(heard) == heard
    assert says(gate(), [b"CONNECT%s{}\r\n" % blank])[2] == "Unknown Protocol Operation"
