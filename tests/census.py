"""What the hypervisor's process holds for domains: counted before and after, to see that it lets go of all of it."""

import asyncio
import gc
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from dom0.embedding import RunningMachine
from hypervisor.domain import Domain
from kernel.parking import in_trio

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Census:
    """Counts, but for the list of who lives. What the domains of `besides` cause, who work all the while, is left out:
    grants of theirs, and pages that they share.
    """

    domains: tuple[int, ...]
    mappings: int
    ports: tuple[int, ...]
    descriptors: int
    tasks: int
    shared_pages: int
    bells: int
    executions: int
    free_frames: int

    @classmethod
    def of(cls, machine: RunningMachine, besides: Iterable[Domain] = ()) -> "Census":
        """As it is now."""
        core, others = machine.core, set(besides)
        domains = list(core.domains.values())
        working = {domain.grants for domain in others}
        shared = {domain: sum(len(e.shared) for e in domain.reservation.extents) for domain in domains}
        host = machine.host
        return cls(
            domains=tuple(sorted(core.domains)),
            mappings=sum(
                mapping.granter not in working for domain in domains for mapping in domain.grants.maptrack
            ),
            ports=tuple(domain.events.active for domain in domains),
            descriptors=len(os.listdir("/proc/self/fd")) - sum(shared[domain] for domain in others),
            tasks=_count_tasks(),
            shared_pages=sum(shared[domain] for domain in domains if domain not in others),
            bells=len(host._bells),
            executions=len(host._executions),
            free_frames=core.frames.free,
        )


def settled(machine: RunningMachine, besides: Iterable[Domain] = ()) -> Census:
    """As it is, without what machines of before have left to the garbage collector. A mapping of a dead domain's
    memory has a descriptor of its own, before Python 3.13.
    """
    gc.collect()
    return Census.of(machine, besides)


async def back_to(expected: Census, machine: RunningMachine, besides: Iterable[Domain] = ()) -> None:
    """Return when all is as it was; those who work all the while let it be otherwise for moments. The core finds
    nothing wrong with its books then.
    """
    found, others = expected, list(besides)
    gc.collect()
    with anyio.move_on_after(PATIENCE_S):
        while (found := Census.of(machine, others)) != expected:
            await checkpoint()
    assert found == expected, f"{found}, expected {expected}"
    assert machine.core.audit() == []
    assert not machine.core.faults


def _count_tasks() -> int:
    if in_trio():
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def pss_bytes() -> int:
    """The memory of this process, shared pages by their share."""
    gc.collect()
    found = re.search(r"^Pss:\s+(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def count_objects() -> int:
    """Those that the garbage collector knows of."""
    gc.collect()
    return len(gc.get_objects())
