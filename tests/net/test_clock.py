"""Virtual time jumps, orders, ends, and says so when it can't go on."""

from __future__ import annotations

import asyncio

import pytest

from potluck.testing.clock import Stuck, run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def test_time_jumps_to_what_is_next() -> None:
    async def main() -> list[tuple[float, str]]:
        seen = []

        async def note(name: str, *naps: float) -> None:
            for nap in naps:
                await asyncio.sleep(nap)
                seen.append((now(), name))

        await asyncio.gather(note("a", 3600, 3600), note("b", 1, 5000), note("c", 1_000_000 / 2))
        return seen

    assert run_virtual(main()) == [(1, "b"), (3600, "a"), (5001, "b"), (7200, "a"), (500_000, "c")]


def test_deadlines_are_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 86_400 * 3)
        return now()

    assert run_virtual(main()) == pytest.approx(86_400 * 3)


def test_work_for_threads_runs_in_place() -> None:
    async def main() -> None:
        assert await asyncio.to_thread(lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        assert now() == 0

    run_virtual(main())


def test_tasks_that_wait_for_one_another_are_named() -> None:
    async def main() -> None:
        await asyncio.sleep(7)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="the one that waits")

    with pytest.raises(Stuck, match=r"at 7.000 s.* 2 tasks wait: .*the one that waits"):
        run_virtual(main())


def test_a_run_without_end_is_ended() -> None:
    ended = []

    async def main() -> None:
        try:
            for _ in range(1000):
                await asyncio.sleep(1)
        finally:
            await asyncio.sleep(10)
            ended.append(now())

    with pytest.raises(Stuck, match="not done after 101 s"):
        run_virtual(main(), limit_s=100)
    assert ended == [111]


def test_errors_come_out_and_tasks_left_over_are_ended() -> None:
    ended = []

    async def leftover() -> None:
        try:
            await asyncio.sleep(1e5)
        finally:
            ended.append(now())

    async def main() -> None:
        left = asyncio.create_task(leftover())
        await asyncio.sleep(1)
        assert not left.done()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run_virtual(main())
    assert ended == [1]
