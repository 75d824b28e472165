"""Guest programs of the benchmarks of process domains; each leaves its figures as a driver's report."""

import json
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
from pydantic import BaseModel, ConfigDict

from frontends.block.disk import Disk, DiskOptions
from frontends.console.attach import attached_console
from kernel.kernel import Kernel

REPORT: Final = "benchmark"
XVDA: Final = 51712
PAGE_BYTES: Final = 4096
PAGE_SECTORS: Final = 8
MIB_PAGES: Final = 256
MULTICALL_SIZES: Final = (8, 64, 512)


class WrongContent(Exception):
    """The disk holds something else than `write_image` wrote."""


class ReadArgs(BaseModel):
    """What to read.

    depth: requests in flight. ring_page_order: log2 of the pages of a ring that holds so many.
    """

    model_config = ConfigDict(extra="forbid")

    requests: int
    depth: int
    ring_page_order: int
    seed: int


def numbered_page(number: int) -> bytes:
    """The content of a page of the image: it says which one it is."""
    return number.to_bytes(8, "little") * (PAGE_BYTES // 8)


def _check(view: memoryview, number: int) -> None:
    if view[:8] != number.to_bytes(8, "little") or view[-8:] != view[:8]:
        raise WrongContent(f"page {number} begins with {bytes(view[:8])!r}")


def _leave(kernel: Kernel, **figures: float) -> None:
    kernel.reports[REPORT] = lambda: json.dumps(figures)


async def random_reads(kernel: Kernel, args: ReadArgs) -> None:
    """Pages at random, by the batch API: requests a second."""
    disk = await Disk.open(kernel, XVDA, DiskOptions(ring_page_order=args.ring_page_order))
    rng = random.Random(args.seed)
    pages = disk.sectors // PAGE_SECTORS
    size = args.depth * 8  # a call of the batch API is given so many, and keeps the ring full
    buffers = disk.buffers(size)

    async def read(numbers: list[int]) -> None:
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            await disk.read_many(list(zip([number * PAGE_SECTORS for number in part], buffers)))
        for number, buffer in zip(part, buffers):
            _check(buffer.view, number)

    await read([rng.randrange(pages) for _ in range(4 * size)])  # so that nothing is done for the first time
    numbers = [rng.randrange(pages) for _ in range(args.requests)]
    start = time.perf_counter()
    await read(numbers)
    _leave(kernel, rate=args.requests / (time.perf_counter() - start))
    await disk.close()


async def sequential_reads(kernel: Kernel, args: ReadArgs) -> None:
    """1 MiB after 1 MiB, from the disk's beginning again at its end: bytes a second."""
    disk = await Disk.open(kernel, XVDA, DiskOptions(ring_page_order=args.ring_page_order))
    mib = disk.sectors // PAGE_SECTORS // MIB_PAGES

    async def read(count: int) -> None:
        """As many workers as shall be requests in flight."""
        places = iter(range(count))

        async def work() -> None:
            buffers = disk.buffers(MIB_PAGES)
            for place in places:
                first = place % mib * MIB_PAGES
                await disk.read_into(first * PAGE_SECTORS, buffers)
                _check(buffers[0].view, first)
                _check(buffers[-1].view, first + MIB_PAGES - 1)
            disk.release(buffers)

        async with anyio.create_task_group() as tasks:
            for _ in range(args.depth):
                tasks.start_soon(work)

    await read(4 * args.depth)
    start = time.perf_counter()
    await read(args.requests)
    _leave(kernel, rate=args.requests * MIB_PAGES * PAGE_BYTES / (time.perf_counter() - start))
    await disk.close()


class CallArgs(BaseModel):
    """How many hypercalls in a round, of several rounds."""

    model_config = ConfigDict(extra="forbid")

    calls: int = 2048
    rounds: int = 7


async def hypercalls(kernel: Kernel, args: CallArgs) -> None:
    """Nanoseconds of a single hypercall, and of an entry of multicalls of several sizes."""
    calls = kernel.hypercalls

    def single() -> None:
        for _ in range(args.calls):
            calls.xen_version()

    def batched(size: int) -> None:
        for _ in range(args.calls // size):
            with calls.batch() as batch:
                for _ in range(size):
                    batch.xen_version()

    def cost_ns(work: Callable[[], None]) -> float:
        def once() -> float:
            start = time.perf_counter_ns()
            work()
            return (time.perf_counter_ns() - start) / args.calls

        return min(once() for _ in range(args.rounds))

    figures = {"single": cost_ns(single)}
    for size in MULTICALL_SIZES:
        figures[str(size)] = cost_ns(partial(batched, size))
    _leave(kernel, **figures)


class StampArgs(BaseModel):
    """connect: the disk first."""

    model_config = ConfigDict(extra="forbid")

    connect: bool


async def stamp(kernel: Kernel, args: StampArgs) -> None:
    """Says at which CLOCK_MONOTONIC, in nanoseconds, it runs (or its disk is connected), and its process."""
    ran_ns = time.monotonic_ns()
    async with attached_console(kernel) as console:
        if args.connect:
            await Disk.open(kernel, XVDA)
            ran_ns = time.monotonic_ns()
        console.write(f"{ran_ns} {os.getpid()}\n")
        await anyio.sleep_forever()
