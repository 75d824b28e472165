"""Hypercalls a second, from a Python kernel through the boundary: one at a time, and in multicalls, once from
a domain in the hypervisor's process and once from one in a process of its own.

`xen_version` is the cheapest operation that there is, so that what is measured is the way there and back;
`EVTCHNOP_send` is what drivers call most. A multicall's ratio is its cost an entry over that of a single call.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio

from benchmarks.machine import Bench, on_machine
from benchmarks.process_programs import MULTICALL_SIZES, REPORT, CallArgs, hypercalls
from benchmarks.results import Result
from dom0.embedding.machine import running_machine
from hypervisor.abi.xen import DOMID_SELF
from kernel.kernel import Kernel

BATCH = 64
BAR_PROCESS = 0.1  # an entry of a multicall of so many over a single hypercall
ROUNDS = 7
CALLS = 64 * 100


def _cost_ns(calls: int, work: Callable[[], None]) -> float:
    """Nanoseconds a call: the best of several rounds."""

    def once() -> float:
        start = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - start) / calls

    return min(once() for _ in range(ROUNDS))


def _measure_on(kernel: Kernel) -> dict[str, float]:
    hypercalls = kernel.hypercalls
    port = hypercalls.evtchn_bind_interdomain(0, hypercalls.evtchn_alloc_unbound(0, DOMID_SELF))

    def single() -> None:
        for _ in range(CALLS):
            hypercalls.xen_version()

    def batched() -> None:
        for _ in range(CALLS // BATCH):
            with hypercalls.batch() as batch:
                for _ in range(BATCH):
                    batch.xen_version()

    def sends() -> None:
        for _ in range(CALLS):
            hypercalls.evtchn_send(port)

    return {
        "single": _cost_ns(CALLS, single),
        "batched": _cost_ns(CALLS, batched),
        "send": _cost_ns(CALLS, sends),
    }


async def _measure_process() -> dict[str, float]:
    """Nanoseconds, as `benchmarks.process_programs.hypercalls` leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_machine(Path(folder), log=lambda line: None) as machine:
            guest = await machine.start(hypercalls, CallArgs(), isolation="process")
            end = await guest.wait()
    costs: dict[str, float] = json.loads(end.drivers[REPORT])
    return costs


def measure() -> Iterator[Result]:
    """All figures."""
    costs: dict[str, float] = {}

    async def body(bench: Bench) -> None:
        costs.update(_measure_on(bench.services.kernel))

    on_machine(body, loop="asyncio", memory_mib=128, dom0_mib=64)
    yield Result("hypercall.single", 1e9 / costs["single"], "calls/s")
    yield Result(
        "hypercall.multicall64", 1e9 / costs["batched"], "entries/s", costs["batched"] / costs["single"]
    )
    yield Result("hypercall.evtchn_send", 1e9 / costs["send"], "calls/s", costs["send"] / costs["single"])
    costs = anyio.run(_measure_process)
    yield Result("hypercall.process.single", 1e9 / costs["single"], "calls/s")
    for size in MULTICALL_SIZES:
        name, rate, ratio = (
            f"hypercall.process.multicall{size}",
            1e9 / costs[str(size)],
            costs[str(size)] / costs["single"],
        )
        if size == BATCH:
            yield Result.at_most(name, rate, "entries/s", ratio, BAR_PROCESS)
        else:
            yield Result(name, rate, "entries/s", ratio)
