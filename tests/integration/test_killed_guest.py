"""A guest that is destroyed while it runs: its backends say that they have let go, and nobody waits for a timeout."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from frontends.block.disk import Disk
from kernel.kernel import Kernel
from tests.rig import MIB, memory_disk, running_rig
from tests.steps import State

XVDA = 51712


async def open_disks(kernel: Kernel, _state: State, *devids: int) -> None:
    for devid in devids:
        await Disk.open(kernel, devid)


@pytest.mark.anyio
async def test_the_backend_says_closed_when_its_frontend_is_gone(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(open_disks, XVDA)
        store = rig.services.kernel.store
        await store.rm(f"/local/domain/{guest.domid}/device/vbd/{XVDA}")
        with anyio.fail_after(5):
            while await store.read(f"backend/vbd/{guest.domid}/{XVDA}/state") != "6":
                await checkpoint()
        guest.kill()


@pytest.mark.anyio
async def test_destroying_takes_no_timeout(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig:
        with anyio.fail_after(5):  # a backend that says nothing is waited for ten seconds
            async with rig.guest([memory_disk(MIB), memory_disk(MIB, "xvdb")]) as guest:
                await guest.run(open_disks, XVDA, XVDA + 16)
                guest.kill()
        assert list(rig.machine.domains) == [0]
        assert rig.machine.audit() == []
