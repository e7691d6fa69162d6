"""A network in memory, for simulation: seeded delays, thin links, partitions, deaths and stopped processes.

It behaves as ``net.tls`` does as far as a peer can tell, on any event loop; under ``testing.clock`` an hour
takes moments. Heartbeats are not sent one by one: who can't hear the other side for ``SILENCE_S`` loses the
stream. The same seed and the same program give the same run.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence

from potluck.errors import ConnectionLost, PotluckError, ProtocolError, Refused, Unreachable, UsageError
from potluck.net.framing import HEADER
from potluck.net.transport import DIAL_S, SILENCE_S, Handler, Stream, Transport

WINDOW_BYTES = 1 << 20
"""With so much under way on one stream, one way, its sender has to wait."""

RETRY_S = 0.2
"""What a lost message costs besides another journey, in seconds."""

_PIECE_BYTES = 1 << 16  # so much of a large message takes a link before others have their turn
_DIAL_JOURNEYS = 6  # TCP, TLS and the admission: three round trips

log = logging.getLogger(__name__)


class MemoryNetwork:
    """What lies between the peers of a simulation.

    Args:
        seed: of the delays and losses.
        delay_s: one-way delay, drawn evenly from this range for each message.
        bytes_per_s: of each peer's uplink, and of its downlink; ``None`` is no limit.
        loss: chance that a message has to be sent again, and so comes later; nothing is lost for good.
    """

    def __init__(
        self,
        seed: int,
        delay_s: tuple[float, float] = (0.001, 0.01),
        bytes_per_s: float | None = None,
        loss: float = 0.0,
    ) -> None:
        self._random = random.Random(seed)
        self._delay_s, self._bytes_per_s, self._loss = delay_s, bytes_per_s, loss
        self._links_free_at: dict[tuple[str, str], float] = {}
        self._partitions: set[frozenset[str]] = set()
        self._stopped: set[str] = set()
        self._addresses = 0
        # Dictionaries for their order: the same program must see the same events.
        self._listeners: dict[str, MemoryTransport] = {}
        self._transports: dict[MemoryTransport, None] = {}

    def transport(
        self, peer: str, *, authority: str | None = "hub", strangers: bool = False
    ) -> MemoryTransport:
        """A transport for ``peer``, or for its next life after ``kill``.

        ``authority`` names who certified it (``None``: nobody); those of one authority admit each other.
        ``strangers``: listen to the uncertified as well.
        """
        transport = MemoryTransport(self, peer, authority, strangers)
        self._transports[transport] = None
        return transport

    def partition(self, a: str, b: str) -> None:
        """From now on nothing passes between ``a`` and ``b``, and neither is told."""
        self._partitions.add(frozenset((a, b)))
        self._review()

    def heal(self, a: str, b: str) -> None:
        """Let everything pass again; streams that are still alive deliver what was held up."""
        self._partitions.discard(frozenset((a, b)))
        self._review()

    def pause(self, peer: str) -> None:
        """The process is stopped, as by SIGSTOP: nothing comes from it or reaches it until ``resume``.

        Its coroutines are the simulation's own and go on running, cut off from everybody.
        """
        self._stopped.add(peer)
        self._review()

    def resume(self, peer: str) -> None:
        """The process goes on, and learns what it has lost meanwhile."""
        self._stopped.discard(peer)
        self._review()

    def kill(self, peer: str) -> None:
        """The process is gone, as by SIGKILL: streams reset, handlers end; other tasks are yours to end."""
        self._stopped.discard(peer)
        for transport in [t for t in self._transports if t.peer == peer]:
            transport.die()
        self._review()

    def _review(self) -> None:
        for transport in list(self._transports):
            transport.review()

    # For transports and streams.

    def journey_s(self) -> float:
        """How long one message is under way, links aside."""
        journey = self._random.uniform(*self._delay_s)
        while self._random.random() < self._loss:
            journey += RETRY_S + self._random.uniform(*self._delay_s)
        return journey

    def link(self, peer: str, way: str, size: int, start: float) -> float:
        """When ``size`` bytes that reach ``peer``'s link ("up" or "down") at ``start`` have passed it."""
        if self._bytes_per_s is None:
            return start
        done = max(start, self._links_free_at.get((peer, way), 0.0)) + size / self._bytes_per_s
        self._links_free_at[peer, way] = done
        return done

    def cut(self, a: str, b: str) -> bool:
        """Whether nothing passes between the two now."""
        return frozenset((a, b)) in self._partitions or bool(self._stopped & {a, b})

    def deaf(self, listener: str, speaker: str) -> bool:
        """Whether ``listener`` runs and hears nothing of ``speaker``."""
        return listener not in self._stopped and self.cut(listener, speaker)

    def publish(self, transport: MemoryTransport) -> str:
        """A new address at which ``transport`` answers."""
        self._addresses += 1
        address = f"{transport.peer[:12]}.memory:{self._addresses}"
        self._listeners[address] = transport
        return address

    def listener(self, address: str) -> MemoryTransport | None:
        """Who answers at ``address``."""
        return self._listeners.get(address)

    def forget(self, transport: MemoryTransport) -> None:
        """Nobody answers at its addresses any more."""
        self._transports.pop(transport, None)
        self._listeners = {a: t for a, t in self._listeners.items() if t is not transport}


class _Pipe:
    """One direction of a stream: messages in order, each with its time; an error in place of one ends it."""

    def __init__(
        self,
        network: MemoryNetwork,
        source: str,
        target: str,
        deliver: Callable[[bytes | PotluckError], None],
    ) -> None:
        self._network, self._source, self._target = network, source, target
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._travelling: deque[tuple[float, bytes | PotluckError]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def carry(self, message: bytes) -> None:
        """Through the uplink piece by piece, in turn with the source's other streams."""
        journey_s, arrival = self._network.journey_s(), 0.0
        for start in range(0, HEADER.size + len(message), _PIECE_BYTES):
            size = min(_PIECE_BYTES, HEADER.size + len(message) - start)
            sent = self._network.link(self._source, "up", size, self._loop.time())
            arrival = self._network.link(self._target, "down", size, sent + journey_s)
            if sent > self._loop.time():
                await asyncio.sleep(sent - self._loop.time())
        self._put(arrival, message)

    def end(self, error: PotluckError) -> None:
        """Nothing follows."""
        self._put(self._loop.time() + self._network.journey_s(), error)

    def review(self) -> None:
        """Look again whether anything may pass."""
        if self._timer is None and self._travelling and not self._network.cut(self._source, self._target):
            self._arm(self._network.journey_s())

    def _put(self, arrival: float, item: bytes | PotluckError) -> None:
        self._travelling.append((arrival, item))
        if len(self._travelling) == 1:
            self._arm(0.0)

    def _arm(self, least_s: float) -> None:
        due = max(self._travelling[0][0], self._loop.time() + least_s)
        self._timer = self._loop.call_at(due, self._pass)

    def _pass(self) -> None:
        self._timer = None
        if self._network.cut(self._source, self._target):
            return
        _, item = self._travelling.popleft()
        if self._travelling:
            self._arm(0.0)
        self._deliver(item)


class MemoryStream(Stream):
    """One end of a stream in memory: ``owner``'s, with ``remote`` at the other end."""

    def __init__(self, network: MemoryNetwork, owner: str, remote: str, shown: str) -> None:
        """``shown``: what the other end has proved to be, ``remote`` or nobody."""
        self.peer = shown
        self.bytes_sent = 0
        self.bytes_received = 0
        self._network, self._owner, self._remote = network, owner, remote
        self._loop = asyncio.get_running_loop()
        self._lost: PotluckError | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._arrived: deque[bytes] = deque()
        self._untaken_bytes = 0
        self._silence: asyncio.TimerHandle | None = None
        self._out: _Pipe
        self._other: MemoryStream

    def join(self, other: MemoryStream) -> None:
        """Connect this end to the other."""
        self._other = other
        self._out = _Pipe(self._network, self._owner, self._remote, other.arrive)

    @property
    def open(self) -> bool:
        """Whether this end has lost nothing yet."""
        return self._lost is None

    async def send(self, message: bytes | memoryview) -> None:
        content = bytes(message)
        async with self._turn:
            while self._lost is None and self._other._untaken_bytes >= WINDOW_BYTES:
                await self._change()
            self._raise_if_lost()
            self._other._untaken_bytes += len(content)
            whole = False
            try:
                await self._out.carry(content)
                whole = True
            finally:
                if not whole:
                    self.reset("gave up a message halfway")
            self.bytes_sent += HEADER.size + len(content)
            self._raise_if_lost()

    async def receive(self, limit: int) -> bytes:
        while not self._arrived:
            self._raise_if_lost()
            await self._change()
        length = len(self._arrived[0])
        if length > limit:
            error = ProtocolError(
                f"peer {self.peer[:12]}: a message of {length} bytes is announced where {limit} are allowed"
            )
            self._arrived.clear()
            self._finish(error, "closed the connection without a goodbye")
            raise error
        self._untaken_bytes -= length
        self.bytes_received += HEADER.size + length
        self._other._changed.set()
        return self._arrived.popleft()

    async def close(self) -> None:
        self._arrived.clear()
        error = ConnectionLost(f"the stream with peer {self._remote[:12]} was closed on this side")
        self._finish(error, "closed the stream")

    def reset(self, why: str) -> None:
        """End at once, as when the owner's process dies; ``why`` is what the other end hears."""
        self._arrived.clear()
        self._finish(ConnectionLost(f"peer {self._owner[:12]} {why}"), why)

    def arrive(self, item: bytes | PotluckError) -> None:
        """What the other end's pipe delivers."""
        if isinstance(item, PotluckError):
            self._end(item)
        elif self._lost is None:
            self._arrived.append(item)
            self._changed.set()

    def review(self) -> None:
        """Look again whether the other end can be heard, and whether what was held up can go on."""
        self._out.review()
        self._other._out.review()
        deaf = self._lost is None and self._network.deaf(self._owner, self._remote)
        if deaf and self._silence is None:
            self._silence = self._loop.call_later(SILENCE_S, self._found_silent)
        elif not deaf and self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _found_silent(self) -> None:
        error = ConnectionLost(f"peer {self._remote[:12]} has been silent for {SILENCE_S:.0f} s")
        self._finish(error, "closed the connection without a goodbye")

    def _finish(self, error: PotluckError, told: str) -> None:
        if self._lost is None:
            self._out.end(ConnectionLost(f"peer {self._owner[:12]} {told}"))
            self._end(error)

    def _end(self, error: PotluckError) -> None:
        self._lost = self._lost or error
        if self._silence is not None:
            self._silence.cancel()
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise type(self._lost)(str(self._lost))


class MemoryTransport(Transport):
    """A peer's place in a ``MemoryNetwork``, which makes it."""

    def __init__(self, network: MemoryNetwork, peer: str, authority: str | None, strangers: bool) -> None:
        self.peer = peer
        self._network, self._authority, self._strangers = network, authority, strangers
        self._handler: Handler | None = None
        self._streams: dict[MemoryStream, None] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._closed = False

    async def listen(self, handler: Handler) -> Sequence[str]:
        if self._authority is None and not self._strangers:
            raise UsageError("a transport without the run's authority knows nobody, so it can't listen")
        self._handler = handler
        return (self._network.publish(self),)

    async def dial(self, addresses: Sequence[str], peer: str) -> Stream:
        failures: list[str] = []
        try:
            async with asyncio.timeout(DIAL_S):
                for address in addresses:
                    if (stream := await self._attempt(address, peer, failures)) is not None:
                        return stream
                if any(self._unanswered(address) for address in addresses):
                    await asyncio.Event().wait()
        except TimeoutError:
            failures.append(f"nothing else within {DIAL_S:.0f} s")
        tried = "; ".join(failures) or "it gave no address"
        raise Unreachable(f"peer {peer[:12]} can't be reached at {', '.join(addresses)}: {tried}")

    async def close(self) -> None:
        self._closed = True
        self._network.forget(self)
        for stream in list(self._streams):
            await stream.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def die(self) -> None:
        """As when the process is killed."""
        self._closed = True
        self._network.forget(self)
        for stream in self._streams:
            stream.reset("closed the connection without a goodbye: its process has ended")
        for task in self._tasks:
            task.cancel()

    def review(self) -> None:
        """Let all streams look again at what the network lets through."""
        for stream in list(self._streams):
            stream.review()

    def keep(self, stream: MemoryStream) -> None:
        """Hold a stream as long as it is open."""
        self._streams = {kept: None for kept in self._streams if kept.open}
        self._streams[stream] = None

    def admit(self, dialer: MemoryTransport) -> MemoryStream:
        """The dialer's end of a new stream to here; the other end goes to the handler.

        Raises:
            Refused: the dialer is neither a member nor a welcome stranger.
        """
        member = dialer._authority is not None and dialer._authority == self._authority
        if not member and not (self._strangers and dialer._authority is None):
            raise Refused(f"peer {self.peer[:12]} does not admit us: it takes members of its run only")
        near = MemoryStream(self._network, dialer.peer, self.peer, self.peer)
        far = MemoryStream(self._network, self.peer, dialer.peer, dialer.peer if member else "")
        near.join(far)
        far.join(near)
        self.keep(far)
        task = asyncio.get_running_loop().create_task(self._serve(far))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return near

    async def _attempt(self, address: str, peer: str, failures: list[str]) -> MemoryStream | None:
        if self._unanswered(address):
            return None
        await asyncio.sleep(sum(self._network.journey_s() for _ in range(_DIAL_JOURNEYS)))
        target = self._network.listener(address)
        if self._closed:
            failures.append("this transport is closed")
        elif target is None:
            failures.append(f"{address}: nobody listens")
        elif target.peer != peer:
            failures.append(f"{address}: another machine answers, whose key is {target.peer[:12]}")
        elif not self._unanswered(address):
            stream = target.admit(self)
            self.keep(stream)
            return stream
        return None

    def _unanswered(self, address: str) -> bool:
        target = self._network.listener(address)
        return target is not None and self._network.cut(self.peer, target.peer)

    async def _serve(self, stream: MemoryStream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
        except PotluckError as error:
            log.info("a stream of peer %s ended: %s", stream.peer[:12] or "(stranger)", error)
        finally:
            await stream.close()
