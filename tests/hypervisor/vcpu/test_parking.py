"""Parking on both loops: wakes, forgotten wakes, cancellation."""

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from hypervisor.vcpu.parking import AsyncioParker, ParkingMisuse, TrioParker, new_parker

pytestmark = pytest.mark.anyio


async def test_each_loop_has_its_own_kind(anyio_backend: str) -> None:
    kinds = {"asyncio": AsyncioParker, "trio": TrioParker}
    assert type(new_parker()) is kinds[anyio_backend]


async def test_two_tasks_wake_each_other() -> None:
    first, second = new_parker(), new_parker()
    log: list[str] = []

    async def answer() -> None:
        for _ in range(3):
            await second.park()
            log.append("second")
            first.unpark()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        await wait_all_tasks_blocked()
        for _ in range(3):
            log.append("first")
            second.unpark()
            await first.park()
    assert log == ["first", "second"] * 3


async def test_a_wake_up_that_nobody_sleeps_for_is_forgotten() -> None:
    parker = new_parker()
    parker.unpark()
    with anyio.move_on_after(0.01) as scope:
        await parker.park()
    assert scope.cancelled_caught


async def test_waking_twice_wakes_once() -> None:
    parker = new_parker()
    woken = []

    async def sleeper() -> None:
        await parker.park()
        woken.append(1)
        with anyio.move_on_after(0.01):
            await parker.park()
            woken.append(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await wait_all_tasks_blocked()
        parker.unpark()
        parker.unpark()
    assert woken == [1]


async def test_a_cancelled_sleep_leaves_the_place_free() -> None:
    parker = new_parker()
    with anyio.move_on_after(0):
        await parker.park()
    parker.unpark()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parker.park)
        await wait_all_tasks_blocked()
        parker.unpark()


async def test_a_wake_up_and_a_cancellation_in_the_same_turn() -> None:
    parker = new_parker()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parker.park)
        await wait_all_tasks_blocked()
        parker.unpark()
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parker.park)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        parker.unpark()
    with anyio.move_on_after(0):
        await parker.park()


async def test_two_tasks_cannot_park_in_one_place() -> None:
    parker = new_parker()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parker.park)
        await wait_all_tasks_blocked()
        with pytest.raises(ParkingMisuse):
            await parker.park()
        parker.unpark()
