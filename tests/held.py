"""Guests of a running machine whose kernels the test uses in the place of a program."""

from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from dom0.embedding import DiskSpec, RunningGuest, RunningMachine
from kernel.kernel import Kernel

MIB = 1 << 20
XVDA = 51712
XVDB = 51728


async def held(machine: RunningMachine, **start: Any) -> tuple[RunningGuest, Kernel]:
    """A guest that does nothing by itself until it is asked to shut down, and its kernel."""
    kernels: list[Kernel] = []

    async def program(kernel: Kernel) -> int:
        kernels.append(kernel)
        await anyio.sleep_forever()
        return 0

    guest = await machine.start(program, **start)
    while not kernels:
        await checkpoint()
    return guest, kernels[0]


def disk(
    vdev: str = "xvda", *, backend: str = "memory", size: int = MIB, served_by: str = "disks"
) -> DiskSpec:
    """A disk in memory, served by a driver domain; by dom0 if `served_by` is empty."""
    return DiskSpec(vdev=vdev, backend=backend, config={"size": size}, backend_domain=served_by)


async def store_has(machine: RunningMachine, path: str, value: str | None) -> None:
    """Returns when a node has a value; None: when it is not there."""
    async with machine.store.watch(path) as watch:
        async for _ in watch:
            if (await machine.store.read_many([path]))[0] == value:
                return
