"""The split block path between processes: a guest in one reads a file in the page cache through a driver domain
in another.

    guest's process: blkfront → shared ring → driver domain's process: blkback → os.preadv into granted pages

4 KiB random reads by the batch API with 32 and 128 in flight, and 1 MiB reads one behind the other. Compared
with nbdkit, whose server and client are two processes, too: its Python plugin and its own file plugin, both
read by libnbd's Python client; and with a bare loop of os.preadv. All take turns, so that a busy machine slows
all, and the median of the rounds counts. The guest checks what it has read, when it has stopped the clock.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from benchmarks.nbdkit import MIB, PLUGINS, Server, missing, serving
from benchmarks.process_programs import (
    PAGE_BYTES,
    REPORT,
    ReadArgs,
    numbered_page,
    random_reads,
    sequential_reads,
)
from benchmarks.results import Result
from dom0.embedding.machine import RunningMachine, running_machine
from dom0.scenario.model import DiskSpec

IMAGE_BYTES: Final = 64 * MIB
REQUESTS: Final = 16384
LARGE_REQUESTS: Final = 1024
ROUNDS: Final = 5
SEED: Final = 20
DRIVER_DOMAIN: Final = "disks"

Rate = float
"""Requests or bytes a second."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is read, and how; bars: what our rate over another's has to be, by the other's name."""

    name: str
    depth: int
    ring_page_order: int
    sequential: bool
    bars: Mapping[str, float]

    @property
    def unit(self) -> str:
        """Of its rates."""
        return "bytes/s" if self.sequential else "requests/s"

    @property
    def bare(self) -> Callable[[Path], Rate]:
        """The loop without any of this."""
        return _bare_sequential if self.sequential else _bare_random


RANDOM_BARS: Final = {"nbdkit python": 5.0, "nbdkit file": 1.0}
CASES: Final = (
    Case("random 4 KiB, depth 32", 32, 0, sequential=False, bars=RANDOM_BARS),
    Case("random 4 KiB, depth 128", 128, 2, sequential=False, bars=RANDOM_BARS),
    Case("sequential 1 MiB", 4, 0, sequential=True, bars={"preadv": 0.5}),
)


class MissingFigure(Exception):
    """A guest has ended without leaving what it measured."""


def measure() -> Iterator[Result]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        image = Path(folder) / "disk.img"
        image.write_bytes(b"".join(numbered_page(number) for number in range(IMAGE_BYTES // PAGE_BYTES)))
        others: list[Server] = []
        if reason := missing():
            print(f"nothing to compare with: {reason} is not installed")
        else:
            others = [servers.enter_context(serving(image, plugin)) for plugin in PLUGINS]
        found = anyio.run(_measure_all, image, others)
    for case, rounds in zip(CASES, found):
        yield from _results(case, rounds)


def _results(case: Case, rounds: list[dict[str, Rate]]) -> Iterator[Result]:
    """Our rate over each other's; the other's own rate is what the ratio says."""
    rate = statistics.median(rates["ours"] for rates in rounds)
    for other in rounds[0].keys() - {"ours"}:
        ratio = statistics.median(rates["ours"] / rates[other] for rates in rounds)
        name = f"process.{case.name} / {other}"
        if other in case.bars:
            yield Result.at_least(name, rate, case.unit, ratio, case.bars[other])
        else:
            yield Result(name, rate, case.unit, ratio)


async def _measure_all(image: Path, others: list[Server]) -> list[list[dict[str, Rate]]]:
    found: list[list[dict[str, Rate]]] = [[] for _ in CASES]
    async with running_machine(image.parent / "machine", log=lambda line: None) as machine:
        await machine.start(
            "driver-domain", name=DRIVER_DOMAIN, memory="64MiB", files=[image], isolation="process"
        )
        for _ in range(ROUNDS):
            for case, rounds in zip(CASES, found):
                rates = {"ours": await _ours(machine, case, image), "preadv": case.bare(image)}
                rates |= {f"nbdkit {server.plugin}": _theirs(server, case) for server in others}
                rounds.append(rates)
    return found


async def _ours(machine: RunningMachine, case: Case, image: Path) -> Rate:
    """A guest in a process of its own, from its start to its end."""
    disk = DiskSpec(
        vdev="xvda", backend="file", mode="r", config={"path": str(image)}, backend_domain=DRIVER_DOMAIN
    )
    args = ReadArgs(
        requests=LARGE_REQUESTS if case.sequential else REQUESTS,
        depth=case.depth,
        ring_page_order=case.ring_page_order,
        seed=SEED,
    )
    program = sequential_reads if case.sequential else random_reads
    guest = await machine.start(program, args, memory="32MiB", disks=[disk], isolation="process")
    end = await guest.wait()
    if REPORT not in end.drivers:
        raise MissingFigure(f"the guest has ended with {end.outcome}: {end.crash}")
    rate: Rate = json.loads(end.drivers[REPORT])["rate"]
    return rate


def _theirs(server: Server, case: Case) -> Rate:
    if case.sequential:
        return server.sequential_bytes_per_second(LARGE_REQUESTS)
    return server.random_reads_per_second(case.depth, REQUESTS, SEED)


def _bare_random(image: Path) -> Rate:
    offsets = [number * PAGE_BYTES * 7919 % IMAGE_BYTES for number in range(REQUESTS)]
    return REQUESTS / _bare_seconds(image, PAGE_BYTES, offsets)


def _bare_sequential(image: Path) -> Rate:
    offsets = [number * MIB % IMAGE_BYTES for number in range(LARGE_REQUESTS)]
    return LARGE_REQUESTS * MIB / _bare_seconds(image, MIB, offsets)


def _bare_seconds(image: Path, block_bytes: int, offsets: list[int]) -> float:
    fd = os.open(image, os.O_RDONLY)
    try:
        buffers = (memoryview(bytearray(block_bytes)),)
        start = time.perf_counter()
        for offset in offsets:
            os.preadv(fd, buffers, offset)
        return time.perf_counter() - start
    finally:
        os.close(fd)
