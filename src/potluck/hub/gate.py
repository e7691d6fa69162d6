"""What a peer may say to a site's NATS and hear from it: the client protocol, both ways, without I/O.

Behind the gate is a connection that was made with the site's credentials, which may do far more than a peer
may. So nothing passes as it came: each line is parsed whole and written anew, with the subjects of
``peer_permissions`` only. A peer's inboxes are put where no other's are, and renamed back on the way to it.
Answers can be asked for in those inboxes only, and headers are those of an append: a reply or a header that
names another subject would have the server publish there, with the site's own rights. What is not allowed is
refused with the words that a server has for it. Payloads pass as they come, and are not kept.

Nor may a peer make the server fill its memory with what it does not fetch: questions to the ledger are
written anew within the bounds of our own client's, few may be under way, and nothing is delivered twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator

from potluck.hub.ledger import BATCH
from potluck.hub.nats_ledger import (
    EXPECTED_LAST,
    EXPECTED_STREAM,
    INBOX,
    MAX_PAYLOAD_BYTES,
    MAX_READ_BYTES,
    ledger_subject,
    peer_permissions,
    read_subject,
    stream_name,
)

MAX_LINE_BYTES = 4096
"""Of one line of a peer's: what servers take by default."""

MAX_SITE_LINE_BYTES = 1 << 16
"""Of one line of the server's: it may name many servers."""

MAX_HEADER_BYTES = 1024
"""Of the headers of one message of a peer's."""

MAX_SUBSCRIPTIONS = 64
"""Of one connection at a time: a peer has four, and one more for each read under way."""

MAX_QUESTION_BYTES = 256
"""Of what asks for records."""

MAX_READS = 4
"""Under way on one connection at a time: a peer has two, and those that it gave up. For one more the
connection is closed, so that a peer whose answers were lost begins anew."""

MAX_REFUSED = 100
"""So much may be refused on one connection before it is closed."""

_END = b"\r\n"
_TOKEN = re.compile(rb"[!-~]+")
_NUMBER = re.compile(rb"[0-9]{1,9}")
_LAST_READ = (b"204", b"404", b"408", b"503")
_MOST = {"seq": (1 << 63) - 1, "batch": BATCH, "max_bytes": MAX_READ_BYTES}

Steps = Generator[None, None, None]


class _Over(Exception):
    """Nothing more passes, for this reason."""


class _Side:
    """Bytes from one side, as far as they are there: ``yield`` wherever more are needed."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def line(self, limit: int) -> Generator[None, None, bytes]:
        """The next line, without its end."""
        seen = 0
        while (end := self._bytes.find(b"\n", seen, limit)) < 0:
            if len(self._bytes) >= limit:
                raise _Over("Maximum Control Line Exceeded")
            seen = len(self._bytes)
            yield
        found = bytes(self._bytes[:end])
        del self._bytes[: end + 1]
        return found.removesuffix(b"\r")

    def exactly(self, count: int) -> Generator[None, None, bytes]:
        while len(self._bytes) < count:
            yield
        found = bytes(self._bytes[:count])
        del self._bytes[:count]
        return found

    def payload(self, count: int, out: bytearray | None) -> Steps:
        """So many bytes and a line's end, passed to ``out`` as they come; or to nobody."""
        while count:
            piece = self._bytes[:count]
            del self._bytes[: len(piece)]
            count -= len(piece)
            if out is not None:
                out += piece
            if count:
                yield
        if (yield from self.exactly(2)) != _END:
            raise _Over("Unknown Protocol Operation")
        if out is not None:
            out += _END


class Gate:
    """One peer's way to a site's NATS and back.

    Args:
        run: the run whose subjects the peer may use.
        own: what tells this connection's inboxes from all others'; a part of a subject.
        max_payload: what the server takes as one message, in bytes.
    """

    def __init__(self, run: str, own: str, max_payload: int) -> None:
        self.over = ""
        """Why nothing passes any more, in words; empty while something does."""
        allowed = peer_permissions(run)
        self._publish: list[str] = allowed["publish"]["allow"]
        self._subscribe: list[str] = allowed["subscribe"]["allow"]
        self._own = f"{INBOX}.{own}.".encode()
        self._ledger, self._read = ledger_subject(run).encode(), read_subject(run).encode()
        self._append = {EXPECTED_LAST: rb"[0-9]{1,19}", EXPECTED_STREAM: re.escape(stream_name(run).encode())}
        self._max_payload = min(max_payload, MAX_PAYLOAD_BYTES)
        self._subscribed: dict[bytes, str] = {}
        self._reads: list[bytes] = []
        self._refused = 0
        self._complaints = bytearray()
        self._is_between = True
        self._to_site, self._to_peer = bytearray(), bytearray()
        self._peer, self._site = _Side(), _Side()
        self._peer_steps, self._site_steps = self._hear_peer(), self._hear_site()

    def greeting(self, version: str) -> bytes:
        """What a peer is told first: of the server's own words only those that say how to talk to it."""
        info = {
            "server_id": "potluck",
            "server_name": "potluck",
            "version": version,
            "proto": 1,
            "headers": True,
            "jetstream": True,
            "max_payload": self._max_payload,
        }
        return b"INFO " + json.dumps(info).encode() + _END

    def from_peer(self, data: bytes) -> bytes:
        """What the server is to hear of this."""
        return self._step(self._peer, data, self._peer_steps, self._to_site)

    def from_site(self, data: bytes) -> bytes:
        """What the peer is to hear of this, and of ``complaints`` if there is room for them."""
        return self._step(self._site, data, self._site_steps, self._to_peer) + self.complaints()

    def complaints(self) -> bytes:
        """What was refused, for the peer to hear now; nothing while it is in the middle of a message."""
        if not self._is_between:
            return b""
        found = bytes(self._complaints)
        self._complaints.clear()
        return found

    def _step(self, side: _Side, data: bytes, steps: Steps, out: bytearray) -> bytes:
        if not self.over:
            side.feed(data)
            try:
                next(steps)
            except _Over as reason:
                self.over = str(reason)
                self._complain(self.over)
        found = bytes(out)
        out.clear()
        return found

    def _complain(self, words: str) -> None:
        self._complaints += f"-ERR '{words}'".encode() + _END

    # -- what a peer says ------------------------------------------------------------------------

    def _hear_peer(self) -> Steps:
        kind, _ = _words((yield from self._peer.line(MAX_LINE_BYTES)))
        if kind != b"CONNECT":
            raise _Over("Authorization Violation")
        # What it says of itself is no business of the site's: the hub has logged in already.
        while True:
            line = yield from self._peer.line(MAX_LINE_BYTES)
            kind, words = _words(line)
            if kind in (b"PING", b"PONG") and not words:
                self._to_site += kind + _END
            elif kind == b"PUB" and len(words) in (2, 3):
                yield from self._published(words, 0)
            elif kind == b"HPUB" and len(words) in (3, 4):
                yield from self._published([*words[:-2], words[-1]], _number(words[-2]))
            elif kind == b"SUB" and len(words) in (2, 3):
                self._subscribes(words)
            elif kind == b"UNSUB" and len(words) in (1, 2):
                self._unsubscribes(words)
            elif kind != b"CONNECT":
                raise _Over("Unknown Protocol Operation")

    def _published(self, words: list[bytes], header_bytes: int) -> Steps:
        subject, *replies, size = words
        count = _number(size)
        if count > self._max_payload:
            raise _Over("Maximum Payload Violation")
        if header_bytes > min(count, MAX_HEADER_BYTES):
            raise _Over("Header Size Exceeds Maximum Header Length")
        # Headers are read whole before anything passes: they decide on it, and are small.
        headers = yield from self._peer.exactly(header_bytes)
        if not self._may_publish(subject, replies, headers, count):
            self._refuse("Publish to", subject)
            yield from self._peer.payload(count - header_bytes, None)
        elif subject == self._read:
            yield from self._asks(replies[0], count)
        else:
            line = [b"HPUB" if headers else b"PUB", subject, *map(self._private, replies)]
            line += [b"%d" % header_bytes] if headers else []
            self._to_site += b" ".join([*line, b"%d" % count]) + _END + headers
            yield from self._peer.payload(count - header_bytes, self._to_site)

    def _may_publish(self, subject: bytes, replies: list[bytes], headers: bytes, count: int) -> bool:
        if not all(_is_literal(reply) and _is_inbox(reply) for reply in replies):
            return False
        if subject == self._ledger:
            return _are(headers, self._append)
        if headers:
            return False
        if subject == self._read:
            return len(replies) == 1 and count <= MAX_QUESTION_BYTES
        # Without replies: where nobody listens the server would answer, and that would pass for a read's end.
        is_known = _is_literal(subject) and any(within(subject.decode(), wide) for wide in self._publish)
        return is_known and not replies

    def _asks(self, reply: bytes, count: int) -> Steps:
        asked = bytearray()
        yield from self._peer.payload(count, asked)
        question = _bounded(bytes(asked))
        if question is None:
            self._refuse("Publish to", self._read)
            return
        if len(self._reads) >= MAX_READS:
            raise _Over("Maximum Reads Exceeded")
        inbox = self._private(reply)
        self._reads.append(inbox)
        self._to_site += b" ".join([b"PUB", self._read, inbox, b"%d" % len(question)]) + _END
        self._to_site += question + _END

    def _subscribes(self, words: list[bytes]) -> None:
        subject, *queue, sid = words
        _number(sid)
        if not any(within(subject.decode(), wide) for wide in self._subscribe):
            self._refuse("Subscription to", subject)
            return
        if sid in self._subscribed:
            return  # as a server has it: the first one stays
        if len(self._subscribed) >= MAX_SUBSCRIPTIONS:
            raise _Over("Maximum Subscriptions Exceeded")
        # Each message would come once for each: the more of them, the more the server has to hold.
        if any(overlap(subject.decode(), other) for other in self._subscribed.values()):
            self._refuse("Subscription to", subject)
            return
        self._subscribed[sid] = subject.decode()
        self._to_site += b" ".join([b"SUB", self._private(subject), *queue, sid]) + _END

    def _unsubscribes(self, words: list[bytes]) -> None:
        sid, *after = words
        for number in words:
            _number(number)
        if not after:  # else it goes on for so many messages
            self._subscribed.pop(sid, None)
        self._to_site += b" ".join([b"UNSUB", *words]) + _END

    def _refuse(self, what: str, subject: bytes) -> None:
        self._refused += 1
        if self._refused > MAX_REFUSED:
            raise _Over("Too Many Permissions Violations")
        self._complain(f'Permissions Violation for {what} "{subject.decode()}"')

    def _private(self, subject: bytes) -> bytes:
        """Where an inbox of the peer's is in truth; other subjects are what they are."""
        return self._own + subject.partition(b".")[2] if _is_inbox(subject) else subject

    # -- what the server says --------------------------------------------------------------------

    def _hear_site(self) -> Steps:
        while True:
            line = yield from self._site.line(MAX_SITE_LINE_BYTES)
            kind, _, rest = line.partition(b" ")
            if kind in (b"MSG", b"HMSG"):
                yield from self._delivered(kind, rest.split(b" "))
            elif kind in (b"PING", b"PONG"):
                self._to_peer += kind + _END
            elif kind == b"-ERR":
                self._to_peer += line.replace(self._own, f"{INBOX}.".encode()) + _END
            elif kind not in (b"INFO", b"+OK"):  # whose news of other servers is not for peers
                raise _Over("the site's NATS says what no client knows")

    def _delivered(self, kind: bytes, words: list[bytes]) -> Steps:
        sizes = words[-1:] if kind == b"MSG" else words[-2:]
        if not 2 <= len(words) - len(sizes) <= 3:
            raise _Over("the site's NATS says what no client knows")
        subject, sid, *replies = words[: -len(sizes)]
        # Whoever answers a reply needs the right to: peers have it for their own inboxes only.
        replies = [reply for reply in replies if reply.startswith(self._own)]
        names = [self._public(subject), sid, *map(self._public, replies)]
        self._to_peer += b" ".join([kind, *names, *sizes]) + _END
        self._is_between = False
        count = _number(sizes[-1])
        if kind == b"HMSG" and subject in self._reads and sizes[0] == sizes[1] and count <= MAX_HEADER_BYTES:
            count = yield from self._ended(subject, count)
        yield from self._site.payload(count, self._to_peer)
        self._is_between = True

    def _ended(self, subject: bytes, count: int) -> Generator[None, None, int]:
        """Pass what may be a read's last answer; returns how much more there is of it, which is nothing."""
        answer = yield from self._site.exactly(count)
        self._to_peer += answer
        if answer.partition(_END)[0].split(b" ")[1:2] in ([status] for status in _LAST_READ):
            self._reads.remove(subject)
        return 0

    def _public(self, subject: bytes) -> bytes:
        """What the peer calls the inbox; other subjects are what they are."""
        if not subject.startswith(self._own):
            return subject
        return f"{INBOX}.".encode() + subject.removeprefix(self._own)


def within(subject: str, wide: str) -> bool:
    """Whether everything that matches a subject, which may have wildcards, matches ``wide`` as well."""
    tokens, others = subject.split("."), wide.split(".")
    if "" in tokens or ">" in tokens[:-1]:
        return False
    for index, other in enumerate(others):
        if other == ">":
            return len(tokens) > index
        if index >= len(tokens) or tokens[index] == ">" or other not in ("*", tokens[index]):
            return False
    return len(tokens) == len(others)


def overlap(subject: str, other: str) -> bool:
    """Whether anything matches both of these subjects, which may have wildcards."""
    tokens, others = subject.split("."), other.split(".")
    for one, another in zip(tokens, others, strict=False):
        if ">" in (one, another):
            return True
        if one != another and "*" not in (one, another):
            return False
    return len(tokens) == len(others)


def _bounded(question: bytes) -> bytes | None:
    """A read as our client asks for it, and for no more than that does; ``None`` if it is something else."""
    try:
        asked = json.loads(question)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or "seq" not in asked or not asked.keys() <= _MOST.keys():
        return None
    if not all(type(number) is int for number in asked.values()):
        return None
    # All of them: without a batch the answer would have no end of its own.
    return json.dumps(
        {name: min(max(asked.get(name, most), 1), most) for name, most in _MOST.items()}
    ).encode()


def _words(line: bytes) -> tuple[bytes, list[bytes]]:
    """A line's operation, and what comes after; of ``CONNECT`` nothing."""
    words = re.split(rb"[ \t]+", line.strip(b" \t"))
    if words[0].upper() == b"CONNECT":
        return b"CONNECT", []
    if not all(_TOKEN.fullmatch(word) for word in words):
        raise _Over("Unknown Protocol Operation")
    return words[0].upper(), words[1:]


def _number(word: bytes) -> int:
    if not _NUMBER.fullmatch(word):
        raise _Over("Unknown Protocol Operation")
    return int(word)


def _is_literal(subject: bytes) -> bool:
    return not {b"", b"*", b">"} & set(subject.split(b"."))


def _is_inbox(subject: bytes) -> bool:
    return within(subject.decode(), f"{INBOX}.>")


def _are(headers: bytes, wanted: dict[str, bytes]) -> bool:
    """Whether these are the headers that are wanted, each once, and nothing besides; values are patterns."""
    first, *lines = headers.split(_END)
    if first != b"NATS/1.0" or lines[-2:] != [b"", b""] or len(lines) != len(wanted) + 2:
        return False
    patterns = [rb"%s: ?%s" % (name.encode(), value) for name, value in wanted.items()]
    return all(any(re.fullmatch(pattern, line) for line in lines[:-2]) for pattern in patterns)
