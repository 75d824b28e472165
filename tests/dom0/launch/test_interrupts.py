"""Signals while a scenario runs."""

import os
import signal
import threading

import anyio
import pytest

from dom0.launch.interrupts import heed_interrupts


class Endings:
    """Notes how it was asked to end; `patient`: the orderly way takes for ever."""

    def __init__(self, *, patient: bool) -> None:
        self.said: list[str] = []
        self.patient = patient
        self.asked = anyio.Event()
        self.ended = anyio.Event()

    async def orderly(self) -> None:
        self.said.append("orderly")
        self.asked.set()
        if self.patient:
            try:
                await anyio.sleep_forever()
            finally:
                self.said.append("cancelled")

    async def at_once(self) -> None:
        self.said.append("at once")
        self.ended.set()


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_asks_and_the_second_ends(number: int) -> None:
    endings = Endings(patient=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heed_interrupts, endings.orderly, endings.at_once)
        await anyio.wait_all_tasks_blocked()
        os.kill(os.getpid(), number)
        await endings.asked.wait()
        assert endings.said == ["orderly"]
        os.kill(os.getpid(), number)
        await endings.ended.wait()
        os.kill(os.getpid(), number)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert endings.said == ["orderly", "cancelled", "at once"]


@pytest.mark.anyio
async def test_the_second_ends_also_when_the_first_has_done_its_work() -> None:
    endings = Endings(patient=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heed_interrupts, endings.orderly, endings.at_once)
        await anyio.wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGINT)
        await endings.asked.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await endings.ended.wait()
        tasks.cancel_scope.cancel()
    assert endings.said == ["orderly", "at once"]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_outside_of_the_main_thread_there_are_none(loop: str) -> None:
    endings = Endings(patient=False)
    done: list[bool] = []

    def run() -> None:
        anyio.run(heed_interrupts, endings.orderly, endings.at_once, backend=loop)
        done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert done == [True]
    assert endings.said == []
