"""Deadlines of blocks: what outlasts one is ended, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from chassis import deadlines

LONG = 600.0


async def test_what_outlasts_its_deadline_is_ended() -> None:
    with pytest.raises(TimeoutError), deadlines.within(0.01):
        await asyncio.sleep(LONG)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_is_done_in_time_gives_its_own_result_and_error() -> None:
    with deadlines.within(LONG):
        await asyncio.sleep(0)
    with pytest.raises(KeyError), deadlines.within(LONG):
        raise KeyError


async def test_the_inner_deadline_ends_the_inner_block_only() -> None:
    with deadlines.within(LONG):
        with pytest.raises(TimeoutError), deadlines.within(0.01):
            await asyncio.sleep(LONG)
        await asyncio.sleep(0)


async def test_the_outer_deadline_ends_both_blocks() -> None:
    ended = []
    with pytest.raises(TimeoutError), deadlines.within(0.01):
        try:
            with deadlines.within(LONG):
                await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            ended.append("inner")
            raise
    assert ended == ["inner"]


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        with deadlines.within(LONG):
            begun.set()
            await asyncio.sleep(LONG)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_is_cancelled_when_its_deadline_is_over_is_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        deadline = deadlines.within(LONG)
        with deadline:
            begun.set()
            try:
                await asyncio.sleep(LONG)
            finally:
                deadline.expire()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_many_tasks_have_deadlines_of_their_own() -> None:
    async def work(seconds: float) -> bool:
        try:
            with deadlines.within(seconds):
                await asyncio.sleep(0.2)
        except TimeoutError:
            return False
        return True

    done = await asyncio.gather(*(work(LONG if number % 2 else 0.01) for number in range(100)))
    assert done == [bool(number % 2) for number in range(100)]


def test_every_loop_has_its_own() -> None:
    async def late() -> None:
        with pytest.raises(TimeoutError), deadlines.within(0.01):
            await asyncio.sleep(LONG)

    for _ in range(2):
        asyncio.run(late())
