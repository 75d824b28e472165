"""Steps of a guest: the same wherever it is."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kernel.kernel import Kernel
from tests.rig import running_rig
from tests.steps import GuestGone, State, StepFailed

pytestmark = pytest.mark.anyio


class Ours(Exception):
    """An error of this module's, which a guest gets by value."""


async def echo(_kernel: Kernel, _state: State, value: object) -> object:
    return value


async def test_results_errors_and_state(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:

        async def add(_kernel: Kernel, state: State, number: int) -> int:
            state["sum"] = state.get("sum", 0) + number
            return int(state["sum"])

        async def fail(kernel: Kernel, _state: State) -> None:
            assert kernel.devices is None, "on purpose"

        async def sees(kernel: Kernel, _state: State) -> str:
            return await kernel.store.read("domid")

        assert [await guest.run(add, number) for number in (1, 2, 3)] == [1, 3, 6]
        assert await guest.run(sees) == str(guest.domid)
        with pytest.raises(AssertionError, match="on purpose"):
            await guest.run(fail)
        with pytest.raises(Ours):
            await guest.run(raises)
        assert await guest.run(echo, bytes(range(256)) * 4000) == bytes(range(256)) * 4000
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(guest.run, add, number)
        assert await guest.run(add, 0) == 6 + sum(range(20))
    assert guest.leaks == []


async def raises(_kernel: Kernel, _state: State) -> None:
    raise Ours


async def test_steps_run_at_the_same_time_and_can_be_cancelled(tmp_path: Path, isolation: str) -> None:
    async def wait(kernel: Kernel, state: State) -> str:
        state["waits"] = True
        try:
            await anyio.sleep_forever()
        finally:
            state["waits"] = False
        return "never"

    async def waits(_kernel: Kernel, state: State) -> bool:
        return bool(state.get("waits", False))

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run, wait)
            while not await guest.run(waits):
                await checkpoint()
            tasks.cancel_scope.cancel()
        assert not await guest.run(waits)


async def test_leaks_are_named(tmp_path: Path, isolation: str) -> None:
    async def leak(kernel: Kernel, _state: State) -> None:
        kernel.grants.grant(0, kernel.pages.allocate().pfn)

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(leak)
    assert len(guest.leaks) == 1


async def test_a_guest_that_ends_has_ended_its_steps(tmp_path: Path) -> None:
    async with running_rig(tmp_path, isolation="process") as rig, rig.guest() as guest:

        async def leave(_kernel: Kernel, _state: State) -> None:
            import os

            os._exit(3)

        with pytest.raises(GuestGone):
            await guest.run(leave)
        assert rig.host.crashes[-1].traceback == "its process has ended: exit code 3\n"
        guest.kill()


async def test_what_cannot_be_sent_is_told(tmp_path: Path) -> None:
    async with running_rig(tmp_path, isolation="process") as rig, rig.guest() as guest:

        async def kernel_itself(kernel: Kernel, _state: State) -> Kernel:
            return kernel

        with pytest.raises(StepFailed):
            await guest.run(kernel_itself)
