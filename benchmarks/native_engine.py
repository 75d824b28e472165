"""What the x86-64 engine costs: entering the hypervisor and leaving it, forgetting translations, slices, and executing
several vCPUs on one engine or on one each.

The guest is a few instructions in an address space made for it; nothing of the domain-local core takes part.
"""

from __future__ import annotations

import mmap
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.results import Result
from hypervisor.fixed_mapping import address_of
from hypervisor.pv.layout import PAGE_SHIFT, PAGE_SIZE, RAM_FIRST
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.vcpu.native.engine import Engine

MAP_NORESERVE: Final = 0x4000  # linux/mman.h
PAGES: Final = 8192
CODE: Final = 0x40_0000
DATA: Final = 0x100_0000
DATA_PAGES: Final = 4096
EVENTS: Final = 100_000
FOR_EVER_NS: Final = 3_600_000_000_000
READ_WRITE: Final = 7 | 1 << 63

SYSCALL_LOOP: Final = bytes.fromhex("0f05 ebfc")
CLI_LOOP: Final = bytes.fromhex("fa ebfd")
LOAD_LOOP: Final = bytes.fromhex("488b042500005000 ebf6")  # mov rax, [0x500000]
COUNT_LOOP: Final = bytes.fromhex("48ffc9 75fb 0f05")  # dec rcx; jnz; syscall
LOCKED_LOOP: Final = bytes.fromhex("f048ff03 48ffc9 75f7 0f05")  # lock inc qword [rbx]
STORE_LOOP: Final = bytes.fromhex("488903 48ffc9 75f8 0f05")  # mov [rbx], rax
PAGES_LOOP: Final = bytes.fromhex("488903 4881c300100000 48ffc9 75f1 0f05")  # one store a page

_kept: list[Engine] = []


class Guest:
    """engine, and memory with one address space: code at CODE, DATA_PAGES pages at DATA."""

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        size = (RAM_FIRST + PAGES) << PAGE_SHIFT
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        mapped = memory or mmap.mmap(-1, size, flags)
        self.memory = MachineMemory(memoryview(mapped))
        self.engine = Engine(address_of(mapped), PAGES)
        _kept.append(self.engine)
        self.engine.handler = self
        self.event: Callable[[], None] = self.engine.stop
        self._next = RAM_FIRST
        self.root = self._frame()
        self.engine.activate(0)
        self.code_frame = self._frame()
        self.map(CODE, self.code_frame, 5)
        self.data_frame = self._next
        self._next += DATA_PAGES
        for page in range(DATA_PAGES):
            self.map(DATA + page * PAGE_SIZE, self.data_frame + page, READ_WRITE)
        self.engine.load_root(self.root)

    def _frame(self) -> int:
        self._next += 1
        return self._next - 1

    def map(self, address: int, mfn: int, flags: int) -> None:
        table = self.root
        for shift in (39, 30, 21):
            entries = self.memory.table(table)
            index = address >> shift & 511
            if not entries[index]:
                entries[index] = self._frame() << PAGE_SHIFT | 7
            table = entries[index] >> PAGE_SHIFT & 0xFF_FFFF
        self.memory.table(table)[address >> PAGE_SHIFT & 511] = mfn << PAGE_SHIFT | flags

    def put(self, code: bytes) -> None:
        self.memory.frame(self.code_frame)[: len(code)] = code
        self.engine.forget_code(self.code_frame)
        self.engine.rip = CODE

    def time(self, code: bytes, rcx: int = 0, rbx: int = DATA) -> float:
        """Seconds until the guest has executed `code`."""
        self.put(code)
        self.engine.rcx, self.engine.rbx = rcx, rbx
        self.event = self.engine.stop
        start = time.perf_counter()
        self.engine.run(FOR_EVER_NS)
        return time.perf_counter() - start

    # the engine's handler

    def syscall(self) -> None:
        self.event()

    sysenter = cpuid = invalid_opcode = syscall

    def exception(self, vector: int, error_code: int) -> None:
        self.event()

    software_interrupt = exception


def measure() -> Iterator[Result]:
    """In processes of their own, since an engine is never closed."""
    for measurement in (_events, _memory, _slices, _vcpus, _locked_increments):
        for name, value, unit in _in_a_child(measurement):
            yield Result(f"engine: {name}", value, unit)


Figures = Iterator[tuple[str, float, str]]


def _in_a_child(measurement: Callable[[], Figures]) -> list[tuple[str, float, str]]:
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            with os.fdopen(writer, "w") as output:
                output.writelines(f"{name}\t{value}\t{unit}\n" for name, value, unit in measurement())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    os.waitpid(pid, 0)
    return [(name, float(value), unit) for name, value, unit in rows]


def _events() -> Figures:
    guest = Guest()
    engine = guest.engine

    def cost_ns(code: bytes, step: Callable[[], None] = lambda: None) -> float:
        left = EVENTS

        def event() -> None:
            nonlocal left
            step()
            left -= 1
            if not left:
                engine.stop()

        guest.put(code)
        guest.event = event
        start = time.perf_counter_ns()
        engine.run(FOR_EVER_NS)
        return (time.perf_counter_ns() - start) / EVENTS

    def skip_one() -> None:
        engine.rip += 1

    def skip_eight() -> None:
        engine.rip += 8

    bare = cost_ns(SYSCALL_LOOP)
    yield "SYSCALL, and back", bare, "ns"
    yield "#GP (CLI), and back", cost_ns(CLI_LOOP, skip_one), "ns"
    yield "#PF, and back", cost_ns(LOAD_LOOP, skip_eight), "ns"
    yield "load_root", cost_ns(SYSCALL_LOOP, lambda: engine.load_root(guest.root)) - bare, "ns"
    yield "flush_page", cost_ns(SYSCALL_LOOP, lambda: engine.flush_page(CODE)) - bare, "ns"


def _memory() -> Figures:
    guest = Guest()
    guest.time(COUNT_LOOP, 1000)
    count = 50_000_000
    yield "a block that is a loop", guest.time(COUNT_LOOP, count) / count * 1e9, "ns"
    count = 10_000_000
    yield "a store", guest.time(STORE_LOOP, count) / count * 1e9, "ns"
    pages = 200
    costs = []
    for _ in range(200):
        guest.engine.flush()
        costs.append(guest.time(PAGES_LOOP, pages))
    warm = min(guest.time(PAGES_LOOP, pages) for _ in range(20))
    yield "a page's first store after a flush", (sorted(costs)[100] - warm) / pages * 1e9, "ns"


def _slices() -> Figures:
    guest = Guest()
    engine = guest.engine
    rounds = 20_000
    guest.put(SYSCALL_LOOP)
    start = time.perf_counter()
    for _ in range(rounds):
        engine.run(FOR_EVER_NS)
    yield "a run of one instruction", (time.perf_counter() - start) / rounds * 1e9, "ns"
    guest.put(bytes.fromhex("ebfe"))
    late = []
    for _ in range(200):
        start = time.perf_counter()
        engine.run(1_000_000)
        late.append(time.perf_counter() - start - 0.001)
    yield "how late a slice of 1 ms ends (median)", sorted(late)[100] * 1e6, "us"


def _vcpus() -> Figures:
    """Two vCPUs take turns, each storing to 100 pages of its own in each of them."""
    size = (RAM_FIRST + PAGES) << PAGE_SHIFT
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    turns, pages = 2000, 100
    one = Guest(memory)
    one.put(PAGES_LOOP)
    engine = one.engine
    saved = [engine.save(), engine.save()]

    def switch() -> None:
        for vcpu in (0, 1):
            engine.load(saved[vcpu])
            engine.activate(vcpu)
            engine.load_root(one.root)
            engine.rip, engine.rbx, engine.rcx = CODE, DATA + vcpu * pages * PAGE_SIZE, pages
            engine.run(FOR_EVER_NS)
            saved[vcpu] = engine.save()

    yield "a turn of a vCPU on the engine of all", _each(switch, turns) / 2, "us"
    both = [one, Guest(memory)]
    both[1].put(PAGES_LOOP)

    def each_its_own() -> None:
        for vcpu, guest in enumerate(both):
            other = guest.engine
            other.rip, other.rbx, other.rcx = CODE, DATA + vcpu * pages * PAGE_SIZE, pages
            other.run(FOR_EVER_NS)

    yield "a turn of a vCPU on an engine of its own", _each(each_its_own, turns) / 2, "us"


def _each(work: Callable[[], None], times: int) -> float:
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times * 1e6


def _locked_increments() -> Figures:
    """Two engines increment one word by LOCK INC at the same time: how many percent are in it then."""
    size = (RAM_FIRST + PAGES) << PAGE_SHIFT
    shared = mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    count = 40_000_000
    guest = Guest(shared)
    guest.put(LOCKED_LOOP)
    reader, writer = os.pipe()
    pids = []
    for _ in range(2):
        if not (pid := os.fork()):
            guest.engine.rbx, guest.engine.rcx = DATA, count
            os.read(reader, 1)
            guest.engine.run(FOR_EVER_NS)
            os._exit(0)
        pids.append(pid)
    os.write(writer, b"go")
    for pid in pids:
        os.waitpid(pid, 0)
    found = guest.memory.table(guest.data_frame)[0]
    yield "LOCK INC of two engines that arrive", 100 * found / (2 * count), "%"
