"""Domains that are OS processes of their own: milliseconds until one's program runs, or has its disk
connected, and the memory that one holds, for 1, 10 and 100 of them on one machine.

All are asked for one after the other, and stay. Milliseconds are from the first request until the last is
there, divided by their number: with more domains than processors they get in each other's way. Memory is read
when all idle: private is what only this process has, Pss adds its part of what it shares with others.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import anyio

from benchmarks.process_programs import StampArgs, stamp
from benchmarks.results import Result
from dom0.embedding.machine import RunningMachine, running_machine
from dom0.scenario.model import DiskSpec

COUNTS: Final = (1, 10, 100)
ROUNDS: Final = {1: 7, 10: 3, 100: 3}
GUEST_MIB: Final = 16
BAR_MS: Final = 30.0
BAR_MIB: Final = 10.0


@dataclass(slots=True)
class Measured:
    """Of some rounds: each one's milliseconds a domain, and each domain's MiB."""

    ms: list[float] = field(default_factory=list)
    private_mib: list[float] = field(default_factory=list)
    pss_mib: list[float] = field(default_factory=list)


def measure() -> Iterator[Result]:
    """All figures. Those of domains alone have bars; `ratio` is what is compared with them."""
    for connect in (False, True):
        found = anyio.run(_measure_all, connect)
        until = "block connected" if connect else "program runs"
        for count, measured in found.items():
            ms, private = median(measured.ms), median(measured.private_mib)
            name = f"process domain until {until}, {count}"
            if connect:
                yield Result(name, ms, "ms")
            else:
                yield Result.at_most(name, ms, "ms", ms, BAR_MS)
                yield Result.at_most(f"process domain, private, {count}", private, "MiB", private, BAR_MIB)
                yield Result(f"process domain, Pss, {count}", median(measured.pss_mib), "MiB")


async def _measure_all(connect: bool) -> dict[int, Measured]:
    found = {count: Measured() for count in COUNTS}
    memory = f"{COUNTS[-1] * GUEST_MIB + 512}MiB"
    with tempfile.TemporaryDirectory() as folder:
        async with running_machine(
            Path(folder), memory=memory, dom0_memory="256MiB", log=lambda line: None
        ) as machine:
            await _run(machine, Measured(), 1, connect)  # so that nothing is done for the first time
            for count, measured in found.items():
                for _ in range(ROUNDS[count]):
                    await _run(machine, measured, count, connect)
    return found


async def _run(machine: RunningMachine, measured: Measured, count: int, connect: bool) -> None:
    disks = [DiskSpec(vdev="xvda", backend="memory", config={"size": "1MiB"})] if connect else []
    began_ns = time.monotonic_ns()
    guests = [
        await machine.start(
            stamp, StampArgs(connect=connect), memory=GUEST_MIB << 20, disks=disks, isolation="process"
        )
        for _ in range(count)
    ]
    stamps = [await guest.printed(r"^(\d+) (\d+)\s*$") for guest in guests]
    last_ns = max(int(found[1]) for found in stamps)
    measured.ms.append((last_ns - began_ns) / count / 1e6)
    for found in stamps:
        private, pss = _memory_mib(int(found[2]))
        measured.private_mib.append(private)
        measured.pss_mib.append(pss)
    async with anyio.create_task_group() as tasks:
        for guest in guests:
            tasks.start_soon(guest.destroy)


def _memory_mib(pid: int) -> tuple[float, float]:
    """Private and Pss of a process."""
    kib: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        kib[name] = int(value)
    return (kib["Private_Clean:"] + kib["Private_Dirty:"]) / 1024, kib["Pss:"] / 1024
