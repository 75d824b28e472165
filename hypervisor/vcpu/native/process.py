"""The process of a native domain, from its first moment to its last.

It is forked from one that has imported all this. It maps its memory, makes the engine, gives up every right that it
does not need, and only then executes the guest.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from array import array
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import vcpu_guest_context
from hypervisor.abi.sched import SCHEDOP_shutdown, SHUTDOWN_crash, sched_shutdown
from hypervisor.abi.xen import HYPERVISOR_sched_op
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.domain import PvDomain
from hypervisor.pv.frames import Kind, LocalFrames
from hypervisor.pv.layout import MFN_END, RAM_FIRST
from hypervisor.pv.ledger import map_ledger
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.pv.page_tables import PageTables
from hypervisor.pv.pvclock import publish_wall_clock
from hypervisor.pv.start_of_day import start_of_day
from hypervisor.pv.tally import TALLY_BYTES, Tally
from hypervisor.vcpu.native.engine import Engine
from hypervisor.vcpu.native.executor import Executor, SavedDomain
from hypervisor.vcpu.native.residence import Residence
from hypervisor.vcpu.native.start import NativeStart
from hypervisor.vcpu.native.turn import Turn
from hypervisor.vcpu.process.confinement import confine
from hypervisor.vcpu.process.connection import Connection, connect
from hypervisor.vcpu.process.wire import RequestKind

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDS: Final = 5
"""descriptors of the connection; after them come the ledger and the tally"""


class _Clock:
    def __init__(self, start: NativeStart, engine: Engine) -> None:
        self.tsc_hz = engine.tsc_hz
        self.read_tsc = engine.read_tsc
        self._origin_ns = start.origin_ns
        self._wall_clock_ns = start.wall_clock_ns

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._origin_ns

    def wall_clock_ns(self) -> int:
        return self._wall_clock_ns + self.now_ns()


class _MachineWide:
    def __init__(self, connection: Connection) -> None:
        self._request = connection.request
        self.ring = connection.routes.send

    def request(self, number: int, args: tuple[int, ...], root: int, vcpu_id: int) -> int:
        return self._request(RequestKind.HYPERCALL, number, args, root=root, vcpu=vcpu_id)


def enter(payload: bytes, fds: list[int]) -> None:
    """The process's entry. fds: of the connection, then ledger and tally."""
    start = NativeStart.model_validate_json(payload)
    executor = _assemble(start, fds)
    shortcomings = confine(start.confinement)
    if start.outspoken:
        for shortcoming in shortcomings:
            print(f"not confined: {shortcoming}", file=sys.stderr)
    executor.ready()
    try:
        executor.run()
    except DomainCrash as crash:
        print(f"domain {start.domid} crashed: {crash}", file=sys.stderr, flush=True)
        executor.report_registers(sys.stderr)
        _shut_down(executor.domain, SHUTDOWN_crash)


def _assemble(start: NativeStart, fds: Sequence[int]) -> Executor:
    connection = connect(fds[:ENDS])
    ledger_fd, tally_fd = fds[ENDS:]
    ledger = map_ledger(ledger_fd)
    os.close(ledger_fd)
    tally = Tally.of(memoryview(mmap.mmap(tally_fd, TALLY_BYTES)))
    os.close(tally_fd)
    frames = LocalFrames(*ledger)
    frames.ram_end = min(RAM_FIRST + start.max_pages, MFN_END)
    residence = Residence(frames)
    connection.begin(residence)
    assert residence.shared_info is not None
    memory = MachineMemory(connection.space.view)
    engine = Engine(connection.space.base, start.max_pages, start.max_vcpus)
    monitor = engine.monitor
    page_tables = PageTables(
        memory,
        frames,
        engine,
        monitor.m2p,
        monitor.xen_entries,
        domid=start.domid,
    )
    domain = PvDomain(
        domid=start.domid,
        cpu=engine,
        page_tables=page_tables,
        frames=frames,
        memory=memory,
        m2p=monitor.m2p,
        monitor=monitor,
        shared_info=residence.shared_info,
        hypervisor=_MachineWide(connection),
        clock=_Clock(start, engine),
        max_vcpus=start.max_vcpus,
        tally=tally,
        stop_slice=engine.stop,
    )
    residence.domain = domain
    turn = Turn(connection.listening.hypervisor.memory.header, connection.routes.ring_hypervisor)
    executor = Executor(connection, residence, engine, domain, turn)
    engine.handler = executor
    if start.state:
        executor.go_on(SavedDomain.model_validate_json(start.state))
    else:
        _begin(domain, start)
    return executor


def _begin(domain: PvDomain, start: NativeStart) -> None:
    """The domain as its builder has left it."""
    m2p = domain.m2p
    if start.p2m:
        for pfn, mfn in enumerate(memoryview(start.p2m).cast("Q")):
            m2p[mfn] = pfn
    else:
        for first, count, kind in domain.frames.runs():
            if kind is Kind.OWN:
                pfns = range(first - RAM_FIRST, first - RAM_FIRST + count)
                m2p[first : first + count] = memoryview(array("Q", pfns))
    publish_wall_clock(domain)
    for vcpu_id, context in start.contexts.items():
        start_of_day(domain.vcpus[vcpu_id], vcpu_guest_context.unpack(context))


def _shut_down(domain: PvDomain, reason: int) -> None:
    """Does not return: the hypervisor ends the process."""
    domain.argument[: sched_shutdown.size] = sched_shutdown(reason=reason).pack()
    args = (SCHEDOP_shutdown, domain.argument_address)
    domain.hypervisor.request(HYPERVISOR_sched_op, args, 0, 0)
