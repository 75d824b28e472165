"""Native domains come and go within one machine's life, and leave nothing behind."""

import gc
import os
from pathlib import Path

import anyio
import pytest

from dom0.embedding import RunningMachine, running_machine
from tests.census import settled

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

LIVES = 200
WARM_UP = 20
PATIENCE_S = 300.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH_BYTES = 24 << 20
"""of the hypervisor's process: reports, logs and fragments of 180 domains"""


def resident_bytes() -> int:
    """RAM that this process uses."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


async def live(machine: RunningMachine, kernel: Path, number: int) -> None:
    """Every third one is destroyed while it spins, every fifth crashes, the rest power off."""
    case = "spin" if number % 3 == 0 else "crash" if number % 5 == 0 else "hello 42 7"
    guest = await machine.boot(kernel, cmdline=case, memory="8MiB", vcpus=1 + number % 2)
    if case == "spin":
        await guest.destroy()
        return
    end = await guest.wait()
    assert end.outcome == ("crash" if case == "crash" else "poweroff"), end.crash


async def test_200_lives(kernel: Path, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with running_machine(tmp_path, log=lambda _: None) as machine:
            for number in range(WARM_UP):
                await live(machine, kernel, number)
            before, memory = settled(machine), resident_bytes()
            for number in range(WARM_UP, LIVES):
                await live(machine, kernel, number)
            assert settled(machine) == before
            assert machine.core.audit() == []
            assert not machine.core.faults
            assert resident_bytes() - memory < GROWTH_BYTES
