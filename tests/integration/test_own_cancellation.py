"""What a guest does to its own tasks ends that guest at most (asyncio: trio knows no cancellation without a scope)."""

import asyncio
from pathlib import Path

import pytest

from dom0.embedding import running_machine
from kernel.kernel import Kernel


async def awaits_what_it_cancelled(kernel: Kernel) -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def cancels_its_own_task(kernel: Kernel) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.asyncio
@pytest.mark.parametrize("program", [awaits_what_it_cancelled, cancels_its_own_task])
async def test_only_that_guest_crashes(tmp_path: Path, program: object, isolation: str) -> None:
    async with asyncio.timeout(30), running_machine(tmp_path) as machine:
        bystander = await machine.start("idle", {"seconds": 0.2}, isolation=isolation)
        guest = await machine.start(program, isolation=isolation)  # type: ignore[arg-type]
        assert (await guest.wait()).outcome == "crash"
        assert (await bystander.wait()).outcome == "poweroff"
        assert machine.core.audit() == []
