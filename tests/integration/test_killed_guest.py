"""A guest that is destroyed while it runs: its backends say that they have let go, and nobody waits for a timeout."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from frontends.block.disk import Disk
from tests.rig import MIB, memory_disk, running_rig

XVDA = 51712


@pytest.mark.anyio
async def test_the_backend_says_closed_when_its_frontend_is_gone(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await Disk.open(guest.kernel, XVDA)
        store = rig.services.kernel.store
        await store.rm(f"/local/domain/{guest.domid}/device/vbd/{XVDA}")
        with anyio.fail_after(5):
            while await store.read(f"backend/vbd/{guest.domid}/{XVDA}/state") != "6":
                await checkpoint()
        guest.kill()


@pytest.mark.anyio
async def test_destroying_takes_no_timeout(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig:
        with anyio.fail_after(5):  # a backend that says nothing is waited for ten seconds
            async with rig.guest([memory_disk(MIB), memory_disk(MIB, "xvdb")]) as guest:
                await Disk.open(guest.kernel, XVDA)
                await Disk.open(guest.kernel, XVDA + 16)
                guest.kill()
        assert list(rig.machine.domains) == [0]
        assert rig.machine.audit() == []
