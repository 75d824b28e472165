"""Domains booted to "block connected" a second, for 1, 10, 100 and 1000 domains on one machine.

Each domain is built by the toolstack, introduced to XenStore, boots its kernel and connects a disk with a
memory store; it then stays. The bar: one among 1000 costs at most 1.5 times what one among 10 costs.
"""

import resource
import time
from collections.abc import Iterator

import anyio

from backends.block.memory import MemoryStore
from benchmarks.machine import Bench, on_machine
from benchmarks.results import Result
from dom0.toolstack.toolstack import DiskConfig, DomainConfig
from frontends.block.disk import Disk
from kernel.kernel import Kernel

COUNTS = (1, 10, 100, 1000)
GUEST_MIB = 16
BAR_GROWTH = 1.5


def boot(count: int, loop: str) -> tuple[float, float]:
    """Boots `count` domains; seconds, and MiB of resident memory, that one has cost."""
    figures: list[float] = []

    async def body(bench: Bench) -> None:
        connected = 0
        everybody = anyio.Event()

        async def program(kernel: Kernel) -> None:
            nonlocal connected
            await Disk.open(kernel, 51712)
            connected += 1
            if connected == count:
                everybody.set()
            await anyio.sleep_forever()

        config = MemoryStore.Config.model_validate({"size": "1MiB"})
        before_kib = resident_kib()
        start = time.perf_counter()
        for number in range(count):
            disk = DiskConfig("xvda", "memory", config)
            await bench.start(
                DomainConfig(f"g{number}", GUEST_MIB << 20, "benchmark", disks=(disk,)), program
            )
        await everybody.wait()
        figures.append((time.perf_counter() - start) / count)
        figures.append((resident_kib() - before_kib) / 1024 / count)
        for domain in list(bench.machine.domains.values()):
            if domain.domid:
                bench.services.kernel.hypercalls.destroydomain(domain.domid)

    on_machine(body, loop=loop, memory_mib=GUEST_MIB * count + 512, dom0_mib=256)
    return figures[0], figures[1]


def resident_kib() -> int:
    """Resident memory of this process now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() >> 10


def measure(loop: str = "asyncio") -> Iterator[Result]:
    """One figure for each count; the ratio is the growth since 10 domains."""
    boot(3, loop)  # imports and caches
    costs: dict[int, float] = {}
    for count in COUNTS:
        seconds, mib = min(boot(count, loop) for _ in range(3 if count <= 10 else 2))
        costs[count] = seconds
        name = f"boot to block connected, {count} domains, {loop}"
        if count == COUNTS[-1]:
            yield Result.at_most(name, 1 / seconds, "domains/s", seconds / costs[10], BAR_GROWTH)
        else:
            yield Result(name, 1 / seconds, "domains/s", seconds / costs[10] if 10 in costs else None)
        yield Result(f"resident memory a domain, {count} domains", mib * 1024, "KiB")
