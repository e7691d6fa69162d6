"""Frames on a byte stream, without I/O: one byte of kind, four of length (big-endian), then the payload.

Only data frames have a payload. A ping says "alive"; a close says that the end which follows is meant.
The decoder hands out the memory to read into, so that a large message is received in place.
"""

from __future__ import annotations

import struct

from potluck.errors import ProtocolError

DATA, PING, CLOSE = 1, 2, 3

HEADER = struct.Struct(">BI")

READ_AHEAD_BYTES = 1 << 16
"""How much is read before anybody asks for it."""

MAX_PAYLOAD_BYTES = (1 << 32) - 1
"""What a header can say; receivers set their own limits far below."""


def header(kind: int, length: int = 0) -> bytes:
    """The bytes in front of a payload.

    Raises:
        ProtocolError: the payload is longer than a header can say.
    """
    if length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message of {length} bytes is over {MAX_PAYLOAD_BYTES}: send it in parts")
    return HEADER.pack(kind, length)


class Decoder:
    """Bytes in, messages out. Read into ``space()``, say how much with ``fill()``, take with ``take()``."""

    def __init__(self) -> None:
        self.closed = False
        self._ahead = memoryview(bytearray(READ_AHEAD_BYTES))
        self._start = 0
        self._end = 0
        self._length: int | None = None
        self._body: memoryview | None = None
        self._have = 0

    @property
    def inside(self) -> bool:
        """Whether the bytes so far end within a frame."""
        return self._length is not None or self._start < self._end

    @property
    def lacking(self) -> int:
        """How many bytes of a message that is being taken are still to come."""
        return len(self._body) - self._have if self._body is not None else 0

    def space(self) -> memoryview:
        """Where the next bytes go; empty when a message has to be taken first, or after a close."""
        if self.closed:
            return self._ahead[:0]
        if self._body is not None:
            return self._body[self._have :]
        # Not for every few bytes: moving them up costs as much as reading them did.
        if self._end == READ_AHEAD_BYTES and self._start >= READ_AHEAD_BYTES // 2:
            self._ahead[: self._end - self._start] = self._ahead[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        return self._ahead[self._end :]

    def fill(self, count: int) -> None:
        """``count`` bytes are now at the start of the last ``space()``.

        Raises:
            ProtocolError: they are no frame.
        """
        if self._body is not None:
            self._have += count
        else:
            self._end += count
            self._read_headers()

    def take(self, limit: int) -> bytes | None:
        """The next message, if it is all there.

        Raises:
            ProtocolError: more than ``limit`` bytes are announced; no memory was taken for them.
        """
        if self._length is None:
            return None
        if self._body is None:
            if self._length > limit:
                raise ProtocolError(
                    f"a message of {self._length} bytes is announced where {limit} are allowed"
                )
            ready = self._ahead[self._start : min(self._end, self._start + self._length)]
            self._start += len(ready)
            if len(ready) == self._length:
                return self._taken(ready)
            self._body = memoryview(bytearray(self._length))
            self._body[: len(ready)] = ready
            self._have = len(ready)
        if self._have < self._length:
            return None
        return self._taken(self._body)

    def _taken(self, body: memoryview) -> bytes:
        message = bytes(body)
        self._length = self._body = None
        self._read_headers()
        return message

    def _read_headers(self) -> None:
        while self._length is None and not self.closed and self._end - self._start >= HEADER.size:
            kind, length = HEADER.unpack_from(self._ahead, self._start)
            if kind == DATA:
                self._length = length
            elif length or kind not in (PING, CLOSE):
                raise ProtocolError(f"a frame of kind {kind} and {length} bytes is none of this protocol")
            self.closed = kind == CLOSE
            self._start += HEADER.size
        if self._start == self._end:
            self._start = self._end = 0
