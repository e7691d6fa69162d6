"""One stream over TLS 1.3 and TCP: the engine of ``net.tls``.

The TLS engine is driven here rather than by asyncio, which neither sends the alert of a refused handshake
nor lets the dialer look at the other side's key before its own certificate leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys

from potluck.errors import ConnectionLost, PotluckError, ProtocolError, Refused, Unreachable
from potluck.identity import peer_of_certificate
from potluck.net.framing import CLOSE, DATA, HEADER, PING, Decoder, header
from potluck.net.transport import BEAT_S, SILENCE_S, Stream

CLOSE_S = 1.0
"""How long a close waits for the other side to take what was sent, in seconds."""

WORKSPACE_BYTES = 1 << 18
"""How much is read from a socket at a time."""

UNSENT_BYTES = 1 << 18
"""So much waits in the system to be sent, besides what is under way: a send that is done is nearly sent."""

TOGETHER_BYTES = 1 << 17
"""Within a large message we are woken for so many bytes: for each packet, it took most of the time."""

ROOM_BYTES = 1 << 20
"""So much fits into a receive buffer from the start. What waits in there until we are woken is lacking in the
window otherwise, and the sender waits for that."""

RECORD_BYTES = 1 << 14
"""So many bytes at most have come in a TLS record that is not whole yet, and count as lacking."""

CONGESTION = b"bbr"
"""The congestion control that is asked for: others take each lost packet for a sign that the link is full."""

SO_MAX_PACING_RATE = 47
"""As Linux has it on all machines that Python knows but PA-RISC and SPARC."""

UNPACED = (1 << 32) - 1
FRAMING = 1.04
"""The system counts headers of packets, as many times the payload as this."""

_PIECE_BYTES = 1 << 18
_FIRST_PIECE_BYTES = (1 << 14) - HEADER.size


class TlsStream(Stream, asyncio.BufferedProtocol):
    """One connection: a ``Stream`` to everybody else, a protocol to asyncio.

    While more than ``READ_AHEAD_BYTES`` wait that nobody receives, reading stops, and with it the judgement
    of the other side's silence: whoever never receives does not find out that the other side has died.
    """

    def __init__(self, context: ssl.SSLContext, dialed: str, workspace: memoryview) -> None:
        """``dialed`` is the peer that must answer; empty on the acceptor's side."""
        self.peer = dialed
        self.bytes_sent = 0
        self.bytes_received = 0
        self._dialed = dialed
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialed)
        # Filled and emptied within one callback of one loop, so all streams of a transport share it.
        self._workspace = workspace
        self._decoder = Decoder()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._said_at = self._loop.time()
        self._lost: PotluckError | None = None
        self._secured = False
        self._paused = False
        self._within_frame = False
        self._together = 1
        self._pace = 0.0
        self._turn = asyncio.Lock()
        self._arrived, self._writable, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._writable.set()

    async def handshake(self) -> None:
        """Secure the connection, as far as this side can tell.

        Raises:
            ConnectionLost: the other side closed.
            ssl.SSLError: it does not speak TLS 1.3, or its certificate is not of the authority.
            ProtocolError: its key is not Ed25519.
            Unreachable: its key is not the one that was dialed; it has not seen our certificate.
        """
        while not self._shake():
            await self._arrival()
        certificate = self._tls.getpeercert(binary_form=True)
        self.peer = peer_of_certificate(certificate) if certificate else ""
        if self._dialed and self.peer != self._dialed:
            raise Unreachable(f"another machine answers, whose key is {self.peer[:12]}")
        self._secured = True
        self._write(b"" if self._dialed else header(PING))
        self._beat()
        self._pump()

    async def admitted(self) -> None:
        """Wait, on the dialer's side, until the acceptor has taken us in.

        Raises:
            Refused: our certificate, or the lack of one, does not please it.
            ConnectionLost: it closed or died instead of answering.
        """
        while not self.bytes_received:
            await self._arrival()

    async def send(self, message: bytes | memoryview) -> None:
        view = memoryview(message).cast("B")
        # A small message travels with its header; of a large one only this first piece is copied.
        first = header(DATA, len(view)) + bytes(view[:_FIRST_PIECE_BYTES])
        async with self._turn:
            await self._drain()
            self._within_frame = True
            try:
                self._write(first)
                for start in range(_FIRST_PIECE_BYTES, len(view), _PIECE_BYTES):
                    await self._drain()
                    self._write(view[start : start + _PIECE_BYTES])
                self._within_frame = False
            finally:
                if self._within_frame:
                    self.abort(
                        ConnectionLost(
                            f"a message to {self._who} was given up halfway, and the stream with it"
                        )
                    )

    def pace(self, rate: float) -> None:
        if rate != self._pace and sys.platform == "linux":
            self._pace = rate
            most = min(int(rate * FRAMING), UNPACED) if rate else UNPACED
            with contextlib.suppress(OSError):
                self._connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", most))

    async def receive(self, limit: int) -> bytes:
        while (message := self._take(limit)) is None:
            await self._arrival()
        return message

    async def close(self) -> None:
        if self._lost is None:
            if self._secured and not self._within_frame:
                self._write(header(CLOSE))
            self._end(ConnectionLost(f"the stream with {self._who} was closed on this side"))
            self._decoder = Decoder()
            # Reading on to the end keeps the system from answering late bytes with a reset, which
            # would destroy what the other side has not read yet.
            self._transport.resume_reading()
            with contextlib.suppress(OSError):  # reset by the other side a moment ago
                self._transport.write_eof()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._gone.wait()
        except TimeoutError:
            self._transport.abort()
            await self._gone.wait()
        finally:
            self._transport.abort()

    def abort(self, error: PotluckError) -> None:
        """End at once; pending and later calls raise ``error``."""
        self._end(error)
        self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # asyncio sets it where it dials, but not where it accepts.
        self._connection = connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        for count in (ROOM_BYTES, 1):  # Linux makes room for what one waits for, and leaves it
            self._wait_for(count)
        with contextlib.suppress(AttributeError, OSError):  # not in every kernel, nor allowed in every one
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._workspace

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._loop.time()
        if self._lost is not None:
            return
        self._incoming.write(self._workspace[:nbytes])
        if self._secured:
            self._pump()
        self._arrived.set()

    def eof_received(self) -> None:
        where = "in the middle of a message" if self._decoder.inside else "without a goodbye"
        self.abort(ConnectionLost(f"{self._who} closed the connection {where}: its process has ended"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionLost(f"the connection with {self._who} broke: {exc or 'aborted'}"))
        self._gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Inside.

    @property
    def _who(self) -> str:
        return f"peer {self.peer[:12]}" if self.peer else "a stranger"

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError:
            self._flush()  # the alert, which tells the other side why
            raise
        # Not flushed: our certificate stays here until the other side's key has been seen.
        return True

    async def _arrival(self) -> None:
        self._raise_if_lost()
        self._arrived.clear()
        await self._arrived.wait()

    async def _drain(self) -> None:
        await self._writable.wait()
        if self._transport.is_closing():  # by asyncio, which is about to say why
            await self._gone.wait()
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            # A new one each time: one shared exception would gather the tracebacks of all its raisers.
            raise type(self._lost)(str(self._lost))

    def _take(self, limit: int) -> bytes | None:
        try:
            message = self._decoder.take(limit)
            while self._paused and self._decoder.space():
                self._pump()
                message = self._decoder.take(limit) if message is None else message
        except ProtocolError as error:
            self._decoder = Decoder()
            self.abort(ProtocolError(f"{self._who}: {error}"))
            raise ProtocolError(f"{self._who}: {error}") from error
        return message

    def _pump(self) -> None:
        """Decrypt what has come in, as far as the decoder has room."""
        self._paused = False
        try:
            while space := self._decoder.space():
                count = int(self._tls.read(len(space), space))  # int() for the type checker only
                if not count:
                    raise ssl.SSLZeroReturnError("TLS session ended")
                self.bytes_received += count
                self._decoder.fill(count)
            self._paused = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.abort(self._verdict(error))
        except ProtocolError as error:
            self.abort(ProtocolError(f"{self._who}: {error}"))
        if self._decoder.closed:
            self.abort(ConnectionLost(f"{self._who} closed the stream"))
        self._wait_for(max(1, min(self._decoder.lacking - RECORD_BYTES, TOGETHER_BYTES)))
        # Both do nothing when it is so already, or when the connection is gone.
        if self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _wait_for(self, count: int) -> None:
        """Be woken when so many bytes are there."""
        if count != self._together:
            self._together = count
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def _verdict(self, error: ssl.SSLError) -> PotluckError:
        if self._dialed and not self.bytes_received:
            return Refused(
                f"{self._who} does not admit us ({error.reason}): it takes members of its run only; "
                "join the run, with a new invite if you had been in"
            )
        return ConnectionLost(f"the connection with {self._who} broke: {error.reason or error}")

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.bytes_sent += len(view)
        while view:
            view = view[self._tls.write(view) :]
        self._flush()
        self._said_at = self._loop.time()

    def _flush(self) -> None:
        if self._lost is None and self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _beat(self) -> None:
        now = self._loop.time()
        if self._paused:
            self._heard_at = now
        elif now >= self._heard_at + BEAT_S and self._together > 1:
            self._wait_for(1)  # what a slow link has brought says that the other side lives
            # After a pause of this process that is heard only now.
            self._heard_at = max(self._heard_at, now - SILENCE_S + BEAT_S)
        if now >= self._heard_at + SILENCE_S:
            self.abort(ConnectionLost(f"{self._who} has been silent for {SILENCE_S:.0f} s"))
            return
        if now >= self._said_at + BEAT_S:
            if self._writable.is_set() and not self._within_frame:
                self._write(header(PING))
            self._said_at = now
        due = min(self._said_at + BEAT_S, self._heard_at + SILENCE_S)
        self._timer = self._loop.call_at(due, self._beat)

    def _end(self, error: PotluckError) -> None:
        self._lost = self._lost or error
        if self._timer is not None:
            self._timer.cancel()
        self._arrived.set()
        self._writable.set()
