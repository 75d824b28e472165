"""Our own kernel on the engine, with the domain-local core and a stand-in for the machine-wide one, in one process.

An engine is its process's only one, so each domain gets a process that was forked for it.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from dom0.images.load import read_kernel
from dom0.toolstack.first_memory import Rings, first_context, first_memory
from dom0.toolstack.start_of_day import plan
from hypervisor.fixed_mapping import address_of
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.domain import PvDomain
from hypervisor.pv.frames import Kind, LocalFrames
from hypervisor.pv.layout import (
    MFN_END,
    PAGE_SHIFT,
    PAGE_SIZE,
    RAM_FIRST,
    SHARED_INFO_MFN,
)
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.pv.page_tables import PageTables
from hypervisor.pv.pvclock import publish_wall_clock
from hypervisor.pv.start_of_day import start_of_day
from hypervisor.pv.tally import WORDS, Tally
from hypervisor.vcpu.native.engine import Engine
from hypervisor.vcpu.native.executor import Executor
from hypervisor.vcpu.native.residence import Residence
from hypervisor.vcpu.native.turn import GATE, Turn
from tests.native.kernels.machine_wide import Finished, MachineWideStandIn
from tests.native.kernels.oracle import broken_rules

PAGES: Final = 2048
PATIENCE_S: Final = 60.0
_MAP_NORESERVE: Final = 0x4000
_PRELOADED: Final = [__name__]


@dataclass
class Outcome:
    """lines: what the kernel has printed. shutdown: the reason that it gave; None: it crashed, as `crash` says.
    audit: what is wrong with its page tables, as the core sees it and as an outsider does.
    """

    lines: list[str] = field(default_factory=list)
    shutdown: int | None = None
    crash: str = ""
    audit: list[str] = field(default_factory=list)


class _Silence:
    """Nobody rings."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0)
        self.listening = self

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Nothing to hear."""

    def fall_asleep(self) -> None:
        """Nobody to tell."""

    def collect(self, _heard: Callable[[int], None]) -> None:
        """Nothing has come."""


def _always() -> Turn:
    """The processor is this domain's alone."""
    header = memoryview(bytearray(PAGE_SIZE))
    header.cast("I")[GATE] = 1
    return Turn(header, lambda _port: None)


class _Clock:
    def __init__(self, engine: Engine) -> None:
        self.tsc_hz = engine.tsc_hz
        self.read_tsc = engine.read_tsc
        self._origin_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._origin_ns

    def wall_clock_ns(self) -> int:
        return time.time_ns()


def execute(kernel: Path, command_line: str, *, vcpus: int = 1, shuffled: bool = True) -> Outcome:
    """What became of a domain with this command line. shuffled: its pages lie in the machine in no order."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(theirs, kernel, command_line, vcpus, shuffled))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_S):
            return Outcome(crash=f"not finished after {PATIENCE_S} s")
        outcome: Outcome = ours.recv()
    except EOFError:
        process.join()
        return Outcome(crash=f"the process has ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
        ours.close()
    return outcome


def _live(result: Connection, kernel: Path, command_line: str, vcpus: int, shuffled: bool) -> None:
    result.send(run(kernel, command_line, vcpus=vcpus, shuffled=shuffled))


def run(kernel: Path, command_line: str, *, vcpus: int, shuffled: bool) -> Outcome:
    """The same in this process, of which it is the only domain."""
    outcome = Outcome()
    hypervisor = MachineWideStandIn(PAGES)
    executor = _assemble(hypervisor, kernel, command_line, vcpus, shuffled)
    try:
        executor.run()
    except Finished as finished:
        outcome.shutdown = finished.reason
    except DomainCrash as crash:
        outcome.crash = str(crash)
        executor.report_registers(sys.stderr)
    outcome.lines = hypervisor.printed.decode().splitlines()
    domain = executor.domain
    outcome.audit = [*domain.page_tables.audit(domain.vcpus), *broken_rules(domain)]
    return outcome


def _assemble(
    hypervisor: MachineWideStandIn, kernel: Path, command_line: str, vcpus: int, shuffled: bool
) -> Executor:
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    held = mmap.mmap(-1, MFN_END << PAGE_SHIFT, flags=anonymous)
    memory = MachineMemory(memoryview(held))
    ledger = [memoryview(bytearray(size * MFN_END)) for size in (1, 2, 1)]
    frames = LocalFrames(ledger[0], ledger[1].cast("H"), ledger[2])
    frames.appear(SHARED_INFO_MFN, 1, Kind.XEN)
    frames.appear(RAM_FIRST, PAGES, Kind.OWN)
    engine = Engine(address_of(held), 2 * PAGES, vcpus)
    monitor = engine.monitor
    page_tables = PageTables(memory, frames, engine, monitor.m2p, monitor.xen_entries, domid=1)
    domain = PvDomain(
        domid=1,
        cpu=engine,
        page_tables=page_tables,
        frames=frames,
        memory=memory,
        m2p=monitor.m2p,
        monitor=monitor,
        shared_info=memory.frame(SHARED_INFO_MFN),
        hypervisor=hypervisor,
        clock=_Clock(engine),
        max_vcpus=vcpus,
        tally=Tally(memoryview(bytearray(WORDS * 8)).cast("Q")),
        stop_slice=engine.stop,
    )
    residence = Residence(frames)
    hypervisor.domain = residence.domain = domain
    hypervisor.residence = residence
    executor = Executor(_Silence(), residence, engine, domain, _always())  # type: ignore[arg-type]
    engine.handler = executor
    p2m = list(range(RAM_FIRST, RAM_FIRST + PAGES))
    if shuffled:
        random.Random(command_line).shuffle(p2m)
    start = plan(read_kernel(kernel), PAGES, command_line.encode())
    for address, data in first_memory(start, p2m, Rings(0, 0), SHARED_INFO_MFN):
        for at, piece in _pieces(address, memoryview(data)):
            machine = p2m[at >> PAGE_SHIFT] << PAGE_SHIFT | at & (PAGE_SIZE - 1)
            memory.octets[machine : machine + len(piece)] = piece
    for pfn, mfn in enumerate(p2m):
        monitor.m2p[mfn] = pfn
    publish_wall_clock(domain)
    start_of_day(domain.vcpus[0], first_context(start, p2m))
    return executor


def _pieces(address: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Each lies in one page."""
    at = 0
    while at < len(data):
        size = min(len(data) - at, PAGE_SIZE - (address + at) % PAGE_SIZE)
        yield address + at, data[at : at + size]
        at += size
