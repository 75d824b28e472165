"""The whole split path against a bare loop: 4 KiB random reads and writes of a file in the page cache.

guest coroutine → blkfront → shared ring → blkback → os.preadv or os.pwritev, with 32 and 128 requests in
flight, once with a task that awaits each request and once with the batch API. The bare loop calls os.preadv
or os.pwritev on the same file with the same offsets. nbdkit's Python plugin, read by libnbd's Python client as
many requests deep, is what reads by the batch API are compared with once more, where it is installed. All take
turns, so that a busy machine slows all; the median of the rounds counts.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import anyio

from benchmarks.nbdkit import Server, missing, serving
from benchmarks.results import Result
from frontends.block.disk import Disk, DiskOptions
from kernel.kernel import Kernel
from tests.rig import file_disk, running_rig

MIB: Final = 1 << 20
BLOCK: Final = 4096
IMAGE_BYTES: Final = 64 * MIB
REQUESTS: Final = 8192
ROUNDS: Final = 7
SEED: Final = 20
XVDA: Final = 51712
RING_ORDERS: Final = {32: 0, 128: 2}  # slots of the ring, and so requests in flight: log2 of its pages
BATCHES: Final = 8  # times the depth that one call of the batch API is given

NBDKIT: Final = "batch / nbdkit python"
BARS: Final = {"tasks": 0.10, "batch": 0.25, NBDKIT: 6.0}

Rate = float
"""Requests a second."""


def measure() -> Iterator[Result]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        image.write_bytes(random.Random(SEED).randbytes(MIB) * (IMAGE_BYTES // MIB))
        found: dict[tuple[str, int, str], list[tuple[Rate, Rate]]] = {}
        if reason := missing():
            print(f"nothing to compare with: {reason} is not installed")
            anyio.run(_measure_all, image, None, found)
        else:
            with serving(image, "python") as server:
                anyio.run(_measure_all, image, server, found)
        for (kind, depth, way), pairs in found.items():
            rate = statistics.median(path for _, path in pairs)
            ratio = statistics.median(path / other for other, path in pairs)
            yield Result.at_least(f"block.{kind}.{way}.depth{depth}", rate, "requests/s", ratio, BARS[way])


async def _measure_all(
    image: Path, server: Server | None, found: dict[tuple[str, int, str], list[tuple[Rate, Rate]]]
) -> None:
    async with running_rig(image.parent) as rig:
        for depth, order in RING_ORDERS.items():
            async with rig.guest([file_disk(image)], memory_bytes=32 * MIB) as guest:
                await _measure_depth(guest.kernel, image, server, depth=depth, order=order, found=found)


async def _measure_depth(
    kernel: Kernel,
    image: Path,
    server: Server | None,
    *,
    depth: int,
    order: int,
    found: dict[tuple[str, int, str], list[tuple[Rate, Rate]]],
) -> None:
    disk = await Disk.open(kernel, XVDA, DiskOptions(ring_page_order=order))
    ways: dict[str, Callable[[Disk, str, list[int], int], Awaitable[None]]] = {
        "tasks": _by_tasks,
        "batch": _by_batch,
    }
    rng = random.Random(SEED)
    for _ in range(ROUNDS):
        offsets = [rng.randrange(IMAGE_BYTES // BLOCK) * BLOCK for _ in range(REQUESTS)]
        for kind in ("read", "write"):
            for way, run in ways.items():
                bare = _bare(image, kind, offsets)
                started = time.perf_counter()
                await run(disk, kind, [offset // 512 for offset in offsets], depth)
                path = len(offsets) / (time.perf_counter() - started)
                found.setdefault((kind, depth, way), []).append((bare, path))
        if server is not None:
            theirs = server.random_reads_per_second(depth, REQUESTS, SEED)
            _, ours = found["read", depth, "batch"][-1]
            found.setdefault(("read", depth, NBDKIT), []).append((theirs, ours))
    await disk.close()


def _bare(image: Path, kind: str, offsets: list[int]) -> Rate:
    """The loop that everything is compared with."""
    fd = os.open(image, os.O_RDWR)
    try:
        buffers = (memoryview(bytearray(BLOCK)),)
        call = os.preadv if kind == "read" else os.pwritev
        started = time.perf_counter()
        for offset in offsets:
            call(fd, buffers, offset)
        return len(offsets) / (time.perf_counter() - started)
    finally:
        os.close(fd)


async def _by_tasks(disk: Disk, kind: str, sectors: list[int], depth: int) -> None:
    """`depth` tasks, each of which awaits one request after the other."""
    data = memoryview(bytes(BLOCK))

    async def work(mine: list[int]) -> None:
        for sector in mine:
            if kind == "read":
                await disk.read(sector, 8)
            else:
                await disk.write(sector, data)

    async with anyio.create_task_group() as tasks:
        for worker in range(depth):
            tasks.start_soon(work, sectors[worker::depth])


async def _by_batch(disk: Disk, kind: str, sectors: list[int], depth: int) -> None:
    """Batches that keep the ring full, on pages of the disk."""
    call = disk.read_many if kind == "read" else disk.write_many
    size = depth * BATCHES
    buffers = disk.buffers(size)
    for start in range(0, len(sectors), size):
        await call(list(zip(sectors[start : start + size], buffers)))
    disk.release(buffers)
