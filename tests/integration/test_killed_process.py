"""Processes of guests that are killed in the middle of their I/O, again and again: nothing is left of them."""

import os
import random
import signal
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from dom0.embedding import GuestEnd, RunningGuest, RunningMachine, running_machine
from frontends.block.disk import Disk
from hypervisor.vcpu.process.execution import ProcessVcpu
from kernel.kernel import Kernel
from tests.census import back_to, count_objects, pss_bytes, settled
from tests.witness import memory_disk, more_rounds, witness

XVDA = 51712
KILLS = {"asyncio": 200, "trio": 20}
WARM = 50
"""kills after which nothing grows any more"""
MOST_REQUESTS = 40
BLOCK = 4096
GROWTH_BYTES = 8 << 20
GROWTH_OBJECTS = 3000
"""20 a kill: fewer than a domain has. The store forgets its connections only when their timers would have expired"""


class Orders(BaseModel):
    """seed: of what is written. killed_after: requests; the program then kills itself. 0: somebody else does."""

    seed: int
    killed_after: int = 0


async def victim(kernel: Kernel, orders: Orders) -> int:
    """Reads and writes in several tasks until it is killed."""
    disk = await Disk.open(kernel, XVDA)
    ended = 0

    async def work(seed: int) -> None:
        nonlocal ended
        rng = random.Random(seed)
        while True:
            sector = rng.randrange(disk.sectors // 8) * 8
            size = rng.choice((512, BLOCK, 16 * BLOCK))
            sector = min(sector, disk.sectors - size // 512)
            if rng.random() < 0.5:
                await disk.write(sector, rng.randbytes(size))
            else:
                await disk.read(sector, size // 512)
            ended += 1
            if ended == orders.killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        for index in range(4):
            tasks.start_soon(work, orders.seed + index)
    return 0


def execution_of(machine: RunningMachine, guest: RunningGuest) -> ProcessVcpu:
    execution = machine.host._executions[guest.domain.vcpus[0]]
    assert isinstance(execution, ProcessVcpu)
    return execution


async def kill(machine: RunningMachine, guest: RunningGuest, requests: int) -> None:
    """When dom0 has served so many of its requests; 0: as soon as there is a process."""
    execution = execution_of(machine, guest)
    while execution.child is None:
        await checkpoint()
    blocks = machine.services.blocks
    while sum(sum(disk.stats.requests.values()) for disk in blocks.disks_of(guest.domid)) < requests:
        await checkpoint()
    execution.child.kill()


async def killed(machine: RunningMachine, rng: random.Random) -> GuestEnd:
    """How a victim has ended."""
    requests = rng.randrange(MOST_REQUESTS)
    served_by = rng.choice(("", "disks"))
    by_itself = requests > 0 and (served_by == "disks" or rng.random() < 0.5)
    orders = Orders(seed=rng.getrandbits(32), killed_after=requests if by_itself else 0)
    guest = await machine.start(victim, orders, disks=[memory_disk("xvda", served_by)], isolation="process")
    if not by_itself:
        await kill(machine, guest, 0 if served_by else requests)
    return await guest.wait()


@pytest.mark.anyio
@pytest.mark.usefixtures("quick_fork_servers")
async def test_nothing_is_left_and_nobody_notices(
    tmp_path: Path, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them are served by dom0, and killed from outside or by themselves; half by a driver domain that is a
    process, too.
    """
    monkeypatch.setattr("backends.console.daemon.ENDED_KEPT", 8)  # what is kept on purpose of those that were
    rng = random.Random(20)
    grown: list[tuple[int, int]] = []
    async with running_machine(tmp_path, memory="256MiB", log=lambda _: None) as machine:
        disks = await machine.start("driver-domain", name="disks", isolation="process")
        verifier = await machine.start(
            witness, disks=[memory_disk("xvda"), memory_disk("xvdb", "disks")], isolation="process"
        )
        await more_rounds(machine, verifier)
        before = None
        for number in range(KILLS[anyio_backend_name]):
            with anyio.fail_after(30):
                end = await killed(machine, rng)
            assert (end.outcome, end.exit_code) == ("crash", None)
            assert end.crash == "its process has ended: killed by SIGKILL"
            before = before or settled(machine, [verifier.domain])
            await back_to(before, machine, [verifier.domain])
            if number in (WARM, KILLS["asyncio"] - 1):
                grown.append((pss_bytes(), count_objects()))
            assert verifier.runs
            assert disks.runs
            await more_rounds(machine, verifier)
        for guest in (verifier, disks):
            end = await guest.shut_down()
            assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ()), end
    if len(grown) == 2:
        (bytes_warm, objects_warm), (bytes_end, objects_end) = grown
        assert bytes_end - bytes_warm < GROWTH_BYTES
        assert objects_end - objects_warm < GROWTH_OBJECTS
