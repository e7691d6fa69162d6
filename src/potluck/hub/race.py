"""Several hubs are asked at once, a little after each other; the first that does it wins."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from potluck.errors import InviteError, PotluckError, Unreachable, VersionMismatch

STAGGER_S = 0.3
"""Head start of each hub over the next, in seconds; none over one that fails."""

T = TypeVar("T")


async def first(
    attempts: Sequence[Callable[[], Awaitable[T]]],
    discard: Callable[[T], Awaitable[None]],
    patience_s: float | None = None,
) -> T:
    """The result of the first attempt that comes to something; ``discard`` gets those that come too late.

    Once one of several has failed, those that are silent get ``patience_s`` more after the last news.

    Raises:
        PotluckError: none did: the only attempt's own error; of several ``InviteError`` or
            ``VersionMismatch`` if there is one (no other hub would mend it), else ``Unreachable`` with all
            reasons.
    """
    waiting = deque(attempts)
    tasks: list[asyncio.Task[T]] = []
    pending: set[asyncio.Task[T]] = set()
    errors: list[PotluckError] = []
    won: asyncio.Task[T] | None = None
    try:
        while won is None and (waiting or pending):
            if waiting:
                tasks.append(asyncio.ensure_future(waiting.popleft()()))
                pending.add(tasks[-1])
            wait_s = STAGGER_S if waiting else patience_s if errors else None
            done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done and not waiting:
                errors.append(Unreachable(f"no answer from {len(pending)} of them"))
                break
            for task in done:
                error = task.exception()
                if error is None:
                    won = won or task
                elif isinstance(error, PotluckError):
                    errors.append(error)
                else:
                    raise error
    finally:
        await _clear([task for task in tasks if task is not won], discard)
    if won is None:
        raise _telling(errors)
    return won.result()


async def _clear(tasks: Sequence[asyncio.Task[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = [task for task in tasks if not task.cancelled() and task.exception() is None]
    await asyncio.gather(*(discard(task.result()) for task in late))


def _telling(errors: Sequence[PotluckError]) -> PotluckError:
    if len(errors) == 1:
        return errors[0]
    for error in errors:
        if isinstance(error, InviteError | VersionMismatch):
            return error
    reasons = "; ".join(dict.fromkeys(map(str, errors)))
    return Unreachable(f"none of the run's hubs can be used: {reasons or 'none is known'}")
