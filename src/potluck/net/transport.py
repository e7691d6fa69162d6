"""The interface behind which bytes travel between peers.

A ``Stream`` carries whole messages both ways, authenticated at both ends by Ed25519 key, and keeps itself
honest: each side is heard at least once a second, and a side that falls silent for ``SILENCE_S`` is dead.
A ``Transport`` dials and accepts streams. Every implementation passes ``tests/net/conformance.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence

BEAT_S = 1.0
"""How often a side that has nothing to say says so, in seconds."""

SILENCE_S = 4.0
"""After so many seconds without a byte the other side counts as dead."""

DIAL_S = 5.0
"""How long one dial may take, in seconds."""


class Stream(ABC):
    """An authenticated, ordered, two-way stream of messages to one peer.

    One task may send while another receives; two senders take turns by themselves.
    """

    peer: str
    """Public key (hex) of the other side; empty for an acceptor's stranger, who shows no certificate."""

    bytes_sent: int
    bytes_received: int
    """Bytes of payload and framing so far, for accounting."""

    @abstractmethod
    async def send(self, message: bytes | memoryview) -> None:
        """Send one message; returns once it is handed on, with back-pressure.

        Raises:
            ConnectionLost: the other side is gone.
        """

    def pace(self, rate: float) -> None:
        """From now on send at most so many bytes/s, evenly; 0 is no limit. Where the system can't do that,
        it goes on as before.
        """
        return

    @abstractmethod
    async def receive(self, limit: int) -> bytes:
        """The next message.

        Raises:
            ConnectionLost: the other side closed, died or fell silent.
            ProtocolError: it announced a message of more than ``limit`` bytes (the stream is closed
                before any memory is taken for it).
        """

    @abstractmethod
    async def close(self) -> None:
        """Close; what was sent is flushed within a second if the other side reads. Safe to call twice."""


Handler = Callable[[Stream], Awaitable[None]]


class Transport(ABC):
    """Dials peers by key and accepts their streams."""

    peer: str
    """Own public key (hex)."""

    @abstractmethod
    async def listen(self, handler: Handler) -> Sequence[str]:
        """Accept streams, each handled in its own task; returns addresses to publish.

        A handler's ``PotluckError`` ends its stream only.
        """

    @abstractmethod
    async def dial(self, addresses: Sequence[str], peer: str) -> Stream:
        """A stream to ``peer`` by the first address that works.

        Raises:
            Unreachable: none answers within ``DIAL_S``, or who answers holds another key.
            Refused: the other side does not admit us.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop accepting, and close every stream."""
