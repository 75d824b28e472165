"""A guest that works all the while and would notice if something went wrong."""

import random

import anyio

from dom0.embedding import DiskSpec, RunningGuest, RunningMachine
from frontends.block.disk import Disk
from kernel.kernel import Kernel

BLOCK = 4096
PATIENCE_S = 30.0


async def witness(kernel: Kernel) -> int:
    """Writes and verifies on all its disks until it is asked to shut down; says how often in the store."""
    request = kernel.shutdown_requested
    rng = random.Random(1)
    with request.deferred():
        disks = [await Disk.open(kernel, int(devid)) for devid in await kernel.store.directory("device/vbd")]
        rounds = 0
        while not request.is_set:
            for disk in disks:
                sector, data = rng.randrange(disk.sectors - 8), rng.randbytes(BLOCK)
                await disk.write(sector, data)
                assert await disk.read(sector, 8) == data
            rounds += 1
            await kernel.store.write("data/rounds", str(rounds))
        for disk in disks:
            assert disk.stats.reconnections == disk.stats.errors == 0
    return 0


def memory_disk(vdev: str, served_by: str = "") -> DiskSpec:
    return DiskSpec(vdev=vdev, backend="memory", config={"size": "1MiB"}, backend_domain=served_by)


async def more_rounds(machine: RunningMachine, guest: RunningGuest, count: int = 1) -> None:
    """Return when a witness has verified its disks so many times more."""
    path = f"/local/domain/{guest.domid}/data/rounds"
    before: int | None = None
    with anyio.fail_after(PATIENCE_S):
        async with machine.store.watch(path) as watch:
            async for _ in watch:
                assert guest.runs, guest.end
                (value,) = await machine.store.read_many([path])
                rounds = int(value or 0)
                before = rounds if before is None else before
                if rounds >= before + count:
                    return
