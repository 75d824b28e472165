"""Two Linux guests compute: one after the other, and both at once.

Each has a processor of the host to itself then. The bar: together they take at most 1/1.8 of the time. The rounds of
either kind take turns, and the quickest of each count, since all that is not the guests makes them slower.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio

from backends.console.terminal import Terminal
from benchmarks.results import Result
from dom0.embedding import RunningGuest, RunningMachine, running_machine
from guests.native import FOLDER, initramfs_file, kernel_file

FLAVOUR: Final = "cloud-amd64"
KERNEL: Final = FOLDER.absolute() / kernel_file(FLAVOUR)
INITRAMFS: Final = FOLDER.absolute() / initramfs_file(FLAVOUR)
MEMORY: Final = "128MiB"
PROMPT: Final = b"domzero:/# "
LOOPS: Final = 150_000
"""of the guest's shell: about two seconds"""
WORK: Final = f"i=0; while [ $i -lt {LOOPS} ]; do i=$((i+1)); done\r"
ROUNDS: Final = 4
BAR_TOGETHER: Final = 1.8


def measure() -> Iterator[Result]:
    """All figures; none where there is nothing to measure."""
    if not KERNEL.exists():
        print(f"no native guests: {KERNEL} is missing (make guests)")
    elif len(os.sched_getaffinity(0)) < 2:
        print("no two guests at once: there is one processor alone")
    else:
        alone_s, together_s = anyio.run(_measure)
        ratio = alone_s / together_s
        yield Result.at_least("two native guests at once", together_s, "s", ratio, BAR_TOGETHER)


async def _measure() -> tuple[float, float]:
    """Seconds that both guests take one after the other, and at once."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machine = await stack.enter_async_context(running_machine(folder, log=lambda _line: None))
        guests = [await _boot(machine) for _ in range(2)]
        terminals = [await stack.enter_async_context(guest.terminal()) for guest in guests]
        for terminal in terminals:
            await _until_prompt(terminal)
        await _work(*terminals)  # so that nothing is done for the first time
        alone_s: list[tuple[float, ...]] = []
        together_s: list[float] = []
        for _ in range(ROUNDS):
            alone_s.append(tuple([await _work(terminal) for terminal in terminals]))
            together_s.append(await _work(*terminals))
        return sum(map(min, zip(*alone_s, strict=True))), min(together_s)


async def _boot(machine: RunningMachine) -> RunningGuest:
    return await machine.boot(KERNEL, ramdisk=INITRAMFS, cmdline="quiet", memory=MEMORY)


async def _work(*terminals: Terminal) -> float:
    """Seconds until all of these guests have done the work."""
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for terminal in terminals:
            tasks.start_soon(_work_on, terminal)
    return time.perf_counter() - began


async def _work_on(terminal: Terminal) -> None:
    await terminal.send(WORK.encode())
    await _until_prompt(terminal)


async def _until_prompt(terminal: Terminal) -> None:
    """The shell asks for its next command. What is typed does not contain the prompt."""
    seen = b""
    while PROMPT not in seen:
        data = await terminal.receive()
        if not data:
            raise RuntimeError(f"a guest's console has ended after {seen!r}")
        seen = seen[-len(PROMPT) :] + data
