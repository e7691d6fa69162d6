"""What a peer may say to a site's NATS and hear from it: the client protocol, both ways, without I/O.

Behind the gate is a connection that was made with the site's credentials, which may do far more than a peer
may. So nothing passes as it came: each line is parsed whole and written anew, with the subjects of
``peer_permissions`` only. A peer's inboxes are put where no other's are, and renamed back on the way to it.
Answers can be asked for in those inboxes only, and headers are those that the ledger uses: a reply or a
header that names another subject would have the server publish there, with the site's own rights. What is not
allowed is refused with the words that a server has for it. Payloads pass as they come, and are not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator

from potluck.hub.nats_ledger import INBOX, MAX_PAYLOAD_BYTES, PEER_HEADERS, peer_permissions

MAX_LINE_BYTES = 4096
"""Of one line of a peer's: what servers take by default."""

MAX_SITE_LINE_BYTES = 1 << 16
"""Of one line of the server's: it may name many servers."""

MAX_HEADER_BYTES = 1024
"""Of the headers of one message of a peer's."""

MAX_SUBSCRIPTIONS = 64
"""Of one connection at a time: a peer has four, and one more for each read under way."""

MAX_REFUSED = 100
"""So much may be refused on one connection before it is closed."""

_END = b"\r\n"
_TOKEN = re.compile(rb"[!-~]+")
_NUMBER = re.compile(rb"[0-9]{1,9}")
_HEADER = re.compile(rb"([A-Za-z-]+):[ -~]*")

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
        self._max_payload = min(max_payload, MAX_PAYLOAD_BYTES)
        self._subscribed: set[bytes] = set()
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
        is_allowed = (
            self._may_publish(subject)
            and all(_is_literal(reply) and _is_inbox(reply) for reply in replies)
            and (not header_bytes or _are_ledgers(headers))
        )
        if not is_allowed:
            self._refuse("Publish to", subject)
            yield from self._peer.payload(count - header_bytes, None)
            return
        line = [b"HPUB" if header_bytes else b"PUB", subject, *map(self._private, replies)]
        line += [b"%d" % header_bytes] if header_bytes else []
        self._to_site += b" ".join([*line, b"%d" % count]) + _END + headers
        yield from self._peer.payload(count - header_bytes, self._to_site)

    def _may_publish(self, subject: bytes) -> bool:
        return _is_literal(subject) and any(within(subject.decode(), wide) for wide in self._publish)

    def _subscribes(self, words: list[bytes]) -> None:
        subject, *queue, sid = words
        _number(sid)
        if not any(within(subject.decode(), wide) for wide in self._subscribe):
            self._refuse("Subscription to", subject)
            return
        if len(self._subscribed | {sid}) > MAX_SUBSCRIPTIONS:
            raise _Over("Maximum Subscriptions Exceeded")
        self._subscribed.add(sid)
        self._to_site += b" ".join([b"SUB", self._private(subject), *queue, sid]) + _END

    def _unsubscribes(self, words: list[bytes]) -> None:
        sid, *after = words
        for number in words:
            _number(number)
        if not after:  # else it goes on for so many messages
            self._subscribed.discard(sid)
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
                yield from self._delivered(kind, rest.split())
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
        yield from self._site.payload(_number(sizes[-1]), self._to_peer)
        self._is_between = True

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


def _words(line: bytes) -> tuple[bytes, list[bytes]]:
    """A line's operation, and what comes after; of ``CONNECT`` nothing."""
    first = line.split(maxsplit=1)[:1]
    if [word.upper() for word in first] == [b"CONNECT"]:
        return b"CONNECT", []
    words = re.split(rb"[ \t]+", line.strip(b" \t"))
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


def _are_ledgers(headers: bytes) -> bool:
    """Whether these are headers of the ledger's appends, and nothing besides."""
    first, *lines = headers.split(_END)
    if first != b"NATS/1.0" or lines[-2:] != [b"", b""]:
        return False
    found = [_HEADER.fullmatch(line) for line in lines[:-2]]
    return all(match is not None and match[1].decode() in PEER_HEADERS for match in found)
