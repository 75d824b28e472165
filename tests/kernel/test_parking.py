"""Waiters, latches and broadcasts on both loops: woken before, after, never, or cancelled meanwhile."""

import gc

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kernel.errors import KernelMisuse
from kernel.parking import Broadcast, Latch, NewWaiter, Waiter, in_trio, waiter_factory

pytestmark = pytest.mark.anyio


async def test_the_loop_is_known(anyio_backend: str) -> None:
    assert in_trio() == (anyio_backend == "trio")


async def test_woken_before_and_after(anyio_backend: str) -> None:
    early: Waiter[str] = waiter_factory()()
    early.wake("early")
    early.wake("too late")
    assert await early.wait() == "early"
    late: Waiter[str] = waiter_factory()()
    async with anyio.create_task_group() as tasks:

        async def wake() -> None:
            late.wake("late")
            late.fail(RuntimeError("too late"))

        tasks.start_soon(wake)
        assert await late.wait() == "late"


async def test_failures_are_raised_where_it_is_waited(anyio_backend: str) -> None:
    early: Waiter[str] = waiter_factory()()
    early.fail(LookupError("early"))
    with pytest.raises(LookupError, match="early"):
        await early.wait()
    late: Waiter[str] = waiter_factory()()
    async with anyio.create_task_group() as tasks:

        async def fail() -> None:
            late.fail(LookupError("late"))

        tasks.start_soon(fail)
        with pytest.raises(LookupError, match="late"):
            await late.wait()


async def test_a_failure_that_nobody_waits_for_is_not_complained_about(anyio_backend: str) -> None:
    waiter: Waiter[str] = waiter_factory()()
    waiter.fail(LookupError("unseen"))
    del waiter
    gc.collect()
    await checkpoint()


async def test_a_cancelled_wait_ends_and_the_answer_goes_nowhere(anyio_backend: str) -> None:
    waiter: Waiter[str] = waiter_factory()()
    with anyio.move_on_after(0) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    waiter.wake("nobody")
    other: Waiter[str] = waiter_factory()()
    with anyio.move_on_after(0):
        await other.wait()
    other.fail(LookupError("nobody"))


async def test_many_waiters_of_one_factory(anyio_backend: str) -> None:
    new: NewWaiter[int] = waiter_factory()
    waiters: list[Waiter[int]] = [new() for _ in range(50)]
    answers: list[int] = []

    async def wait(waiter: Waiter[int]) -> None:
        answers.append(await waiter.wait())

    async with anyio.create_task_group() as tasks:
        for waiter in waiters:
            tasks.start_soon(wait, waiter)
        await checkpoint()
        for number, waiter in enumerate(waiters):
            waiter.wake(number)
    assert sorted(answers) == list(range(50))


async def test_a_latch_stays_set_until_it_is_seen(anyio_backend: str) -> None:
    latch = Latch()
    latch.set()
    latch.set()
    assert latch.is_set
    await latch.wait()
    assert not latch.is_set
    with anyio.move_on_after(0) as scope:
        await latch.wait()
    assert scope.cancelled_caught
    latch.set()
    await latch.wait()


async def test_a_latch_wakes_its_one_task(anyio_backend: str) -> None:
    latch = Latch()
    seen: list[int] = []

    async def look() -> None:
        for number in range(3):
            await latch.wait()
            seen.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        for number in range(3):
            while len(seen) < number:
                await checkpoint()
            await checkpoint()
            latch.set()
    assert seen == [0, 1, 2]


async def test_a_second_task_at_a_latch_is_misuse(anyio_backend: str) -> None:
    latch = Latch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(latch.wait)
        await checkpoint()
        await checkpoint()
        with pytest.raises(KernelMisuse):
            await latch.wait()
        latch.set()


async def test_a_broadcast_wakes_all_who_wait_and_no_later_ones(anyio_backend: str) -> None:
    broadcast = Broadcast()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await broadcast.wait()
        woken.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
        with anyio.move_on_after(0):
            await broadcast.wait()
        await checkpoint()
        broadcast.announce()
    assert sorted(woken) == list(range(5))
    with anyio.move_on_after(0) as scope:
        await broadcast.wait()
    assert scope.cancelled_caught
    assert broadcast._waiters == [], "whoever gave up is forgotten"
