"""Routes between the nats-servers of three hubs, each over our own authenticated stream.

A nats-server knows the others as ports on loopback. What connects there is carried to the hub that has the
seat at the moment, wherever it is; that hub leads it to its own nats-server. Hubs know each other by key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from potluck.errors import PotluckError
from potluck.hub.admission import Attached
from potluck.hub.between import Route, seek_hub
from potluck.hub.pipe import close, join
from potluck.hub.seats import SEATS, Seat
from potluck.net.transport import Stream, Transport
from potluck.wire.codec import WIRE, encode
from potluck.wire.messages import Answer

log = logging.getLogger(__name__)


class Routes:
    """The ways of one hub's nats-server to the others, and theirs to it.

    Args:
        own: the number of our seat.
        seats: who has the seats at the moment.
        target: where our nats-server listens for routes; ``None`` while it is away.
        changed: called when another hub is connected that was not, or none any more.
    """

    def __init__(
        self,
        run: str,
        own: int,
        transport: Transport,
        *,
        seats: Callable[[], Sequence[Seat]],
        target: Callable[[], tuple[str, int] | None],
        changed: Callable[[], None],
    ) -> None:
        self.ports: tuple[int, ...] = ()
        """On loopback, one for each other seat."""
        self._run, self._own, self._transport = run, own, transport
        self._seats, self._target, self._changed = seats, target, changed
        self._up: Counter[int] = Counter()
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> frozenset[int]:
        """The numbers of the seats to or from which a way is open."""
        return frozenset(number for number, count in self._up.items() if count)

    async def open(self) -> None:
        """Listen for our nats-server."""
        ports = []
        for number in range(1, SEATS + 1):
            if number != self._own:
                listener = await asyncio.start_server(self._outward_to(number), "127.0.0.1", 0)
                self._listeners.append(listener)
                ports.append(int(listener.sockets[0].getsockname()[1]))
        self.ports = tuple(ports)

    async def close(self) -> None:
        """Close all of them. Safe to call twice."""
        for listener in self._listeners:
            listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            await listener.wait_closed()
        self._listeners.clear()

    async def serve(self, stream: Stream, seat: Seat) -> None:
        """Lead another hub's nats-server, whose stream has asked for it, to ours."""
        address = self._target()
        try:
            if address is None:
                raise ConnectionRefusedError
            reader, writer = await asyncio.open_connection(*address)
        except OSError:
            again = Answer(False, "the server here is being started again", retry=True)
            await stream.send(encode(Attached(again)))
            return
        try:
            await stream.send(encode(Attached(Answer(True))))
        except BaseException:
            await close(writer)
            raise
        await self._carry(seat.number, stream, reader, writer)

    def _outward_to(self, number: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._lead(number, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # Also for a task that is cancelled before its first step, and so never sees the socket.
            task.add_done_callback(lambda _: writer.close())

        return accept

    async def _lead(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what our nats-server says to the hub on a seat."""
        stream: Stream | None = None
        try:
            seat = next((seat for seat in self._seats() if seat.number == number), None)
            if seat is None or not seat.addresses:
                return  # it has not said yet where it is; the server tries again
            stream = await self._transport.dial(seat.addresses, seat.hub)
            await seek_hub(stream, Route(WIRE, self._run), lambda _: None)
            await self._carry(number, stream, reader, writer)
        except PotluckError as error:
            log.info("no way to the hub on seat %d: %s", number, error)
        finally:
            await close(writer)
            if stream is not None:
                await stream.close()

    async def _carry(
        self, number: int, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with self._counted(number):
            reason = await join(stream, reader, writer)
        log.info("a way to the hub on seat %d ended: %s", number, reason)

    @contextlib.contextmanager
    def _counted(self, number: int) -> Iterator[None]:
        self._up[number] += 1
        if self._up[number] == 1:
            self._changed()
        try:
            yield
        finally:
            self._up[number] -= 1
            if not self._up[number]:
                self._changed()
