"""A guest of a few instructions on an engine of its own: what it executes, page tables for it, and a record of what
arrives at the hypervisor.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from hypervisor.fixed_mapping import address_of
from hypervisor.pv.layout import PAGE_SHIFT, PAGE_SIZE, RAM_FIRST
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.vcpu.native.engine import Engine

PAGES = 4096
USED_PAGES = 64
CODE = 0x40_0000
DATA = 0x50_0000
STACK_TOP = 0x61_0000
READ_WRITE_EXECUTE = 7
READ_WRITE = 7 | 1 << 63
READ_EXECUTE = 5

SYSCALL = b"\x0f\x05"
SPIN = b"\xeb\xfe"

_engines: list[Engine] = []
"""Never dropped: an engine's end disturbs others of its process."""


def memory(pages: int = PAGES) -> mmap.mmap:
    """Zeros from machine address 0 to the end of RAM."""
    return mmap.mmap(-1, (RAM_FIRST + pages) << PAGE_SHIFT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)


class Rig:
    """engine, memory, root. Frames are taken from RAM's beginning. events: what arrived, in order. Each kind of event
    has an action that tests set; SYSCALL stops the engine unless they do.
    """

    def __init__(self) -> None:
        mapped = memory()
        self.memory = MachineMemory(memoryview(mapped))
        self.engine = Engine(address_of(mapped), PAGES)
        _engines.append(self.engine)
        self.engine.handler = self
        self.events: list[tuple[object, ...]] = []
        self.start_over()

    def start_over(self) -> None:
        """Empty memory and a vCPU that has not executed."""
        self.memory.octets[RAM_FIRST << PAGE_SHIFT : (RAM_FIRST + USED_PAGES) << PAGE_SHIFT] = bytes(
            USED_PAGES << PAGE_SHIFT
        )
        for page in range(USED_PAGES):
            self.engine.forget_code(RAM_FIRST + page)
        self.engine.reset()
        self.events.clear()
        self.on_syscall: Callable[[], None] = self.engine.stop
        self.on_exception: Callable[[int, int], None] = self._stop
        self.on_software_interrupt: Callable[[int, int], None] = self._stop
        self.on_cpuid: Callable[[], None] = lambda: None
        self._next = RAM_FIRST
        self.engine.monitor.set_gdt(0, [], 0)
        self.engine.monitor.set_ldt(0, [], 0)
        self.root = self.new_root()
        self.engine.activate(0)
        self.engine.load_root(self.root)
        self.engine.rsp = STACK_TOP
        self.map(STACK_TOP - PAGE_SIZE, self.frame(), READ_WRITE)

    # ---- page tables

    def frame(self) -> int:
        """A frame that is not used yet."""
        self._next += 1
        return self._next - 1

    def new_root(self) -> int:
        root = self.frame()
        for slot, entry in self.engine.monitor.xen_entries.items():
            self.memory.table(root)[slot] = entry
        return root

    def map(self, address: int, mfn: int, flags: int, root: int | None = None) -> int:
        """Let `address` be frame `mfn`. The machine address of the entry."""
        table = self.root if root is None else root
        for shift in (39, 30, 21):
            entries = self.memory.table(table)
            index = address >> shift & 511
            if not entries[index]:
                entries[index] = self.frame() << PAGE_SHIFT | READ_WRITE_EXECUTE
            table = entries[index] >> PAGE_SHIFT & 0xFF_FFFF
        self.memory.table(table)[address >> 12 & 511] = mfn << PAGE_SHIFT | flags
        self.engine.flush()
        return (table << PAGE_SHIFT) + (address >> 12 & 511) * 8

    def code(self, octets: bytes, address: int = CODE, flags: int = READ_EXECUTE) -> int:
        """Put instructions at `address`, in a frame of their own, and let the engine begin there."""
        mfn = self.frame()
        self.memory.frame(mfn)[: len(octets)] = octets
        self.map(address, mfn, flags)
        self.engine.rip = address
        return mfn

    def data(self, address: int = DATA, flags: int = READ_WRITE) -> int:
        """A frame of zeros at `address`."""
        mfn = self.frame()
        self.map(address, mfn, flags)
        return mfn

    # ---- the engine's handler

    def syscall(self) -> None:
        self.events.append(("syscall", self.engine.rip))
        self.on_syscall()

    def sysenter(self) -> None:
        self.events.append(("sysenter", self.engine.rip))
        self.engine.stop()

    def exception(self, vector: int, error_code: int) -> None:
        self.events.append(("exception", vector, error_code, self.engine.rip))
        self.on_exception(vector, error_code)

    def software_interrupt(self, vector: int, next_rip: int) -> None:
        self.events.append(("int", vector, self.engine.rip, next_rip))
        self.on_software_interrupt(vector, next_rip)

    def invalid_opcode(self) -> None:
        self.events.append(("invalid", self.engine.rip))
        self.engine.stop()

    def cpuid(self) -> None:
        self.events.append(("cpuid", self.engine.rax, self.engine.rcx))
        self.on_cpuid()

    def _stop(self, _vector: int, _other: int) -> None:
        self.engine.stop()

    def run_at(self, address: int, code: bytes) -> list[tuple[object, ...]]:
        """Put instructions somewhere else, and execute them."""
        self.code(code, address)
        return self.run()

    def run(self, code: bytes | None = None, slice_ns: int = 5_000_000_000) -> list[tuple[object, ...]]:
        """Execute, and give what arrived."""
        if code is not None:
            self.code(code)
        self.events.clear()
        self.engine.run(slice_ns)
        return list(self.events)
