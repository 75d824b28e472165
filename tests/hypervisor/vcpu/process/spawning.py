"""Children with their output, for tests."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor.vcpu.process.child import Child, Exit
from hypervisor.vcpu.process.spawner import Spawner

ENTRIES = "tests.hypervisor.vcpu.process.entries"


@dataclass
class Result:
    """How it ended and what it said."""

    exit: Exit
    output: str


async def run(
    spawner: Spawner, entry: str, payload: bytes = b"", fds: Sequence[int] = (), *, name: str = "guest"
) -> Result:
    """Spawn `entry` (of entries, unless it names its module), and wait for its end."""
    output = os.memfd_create("output")
    try:
        child = await spawner.spawn(full(entry), payload, fds, output, name)
        exit_ = await child.wait()
        return Result(exit_, os.pread(output, 1 << 20, 0).decode())
    finally:
        os.close(output)


async def start(spawner: Spawner, entry: str, fds: Sequence[int] = (), payload: bytes = b"") -> Child:
    """Spawn `entry` and let it live. What it says goes nowhere."""
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        return await spawner.spawn(full(entry), payload, fds, sink)
    finally:
        os.close(sink)


def full(entry: str) -> str:
    return entry if ":" in entry else f"{ENTRIES}:{entry}"
