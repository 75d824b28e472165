"""A native guest without an engine: RAM at local machine frame numbers, page tables that it writes as it likes, lying
ones included, and hypercalls whose arguments are virtual addresses.
"""

from typing import Final, TypeVar

from hypervisor.abi.layout import Struct
from hypervisor.continuation import Continuation
from hypervisor.domain import Domain, Traits
from hypervisor.machine import Machine
from hypervisor.pv.layout import RAM_FIRST
from hypervisor.vcpu.state import Vcpu

PAGE: Final = 4096
PRESENT: Final = 1
RW: Final = 2
USER: Final = 4
PSE: Final = 0x80
ALL: Final = PRESENT | RW | USER
KERNEL_BASE: Final = 0xFFFF_FFFF_8000_0000
"""where RAM page 0 is mapped at first, the others behind it"""
ARGUMENT_VA: Final = KERNEL_BASE + 0x100
LEVELS: Final = (39, 30, 21, 12)

S = TypeVar("S", bound=Struct)


class NativeGuest:
    """RAM pages 0, 1, … are frames RAM_FIRST, RAM_FIRST + 1, …. The last ones are page tables, the root first of
    all. All of RAM is mapped from KERNEL_BASE on.
    """

    def __init__(self, machine: Machine, *, pages: int = 32, vcpus: int = 1) -> None:
        self.machine = machine
        self.pages = pages
        self.domain: Domain = machine.create_domain(Traits(max_vcpus=vcpus, pv=True), max_pages=pages)
        self.domain.add_vcpus()
        self.domain.populate(RAM_FIRST, pages)
        self._next_table = RAM_FIRST + pages
        self.root = self._new_table()
        self.vcpu.initialised = self.vcpu.online = True
        for page in range(pages):
            self.map(KERNEL_BASE + page * PAGE, RAM_FIRST + page)
        self.domain.unpause()

    @property
    def domid(self) -> int:
        return self.domain.domid

    @property
    def vcpu(self) -> Vcpu:
        return self.domain.vcpus[0]

    # Page tables

    def _new_table(self) -> int:
        self._next_table -= 1
        return self._next_table

    def entry(self, table: int, index: int) -> int:
        """An entry of the page table in a frame."""
        return int(self.domain.memory.page(table).cast("Q")[index])

    def set_entry(self, table: int, index: int, entry: int) -> None:
        """Write one, whatever it says."""
        self.domain.memory.page(table).cast("Q")[index] = entry

    def tables(self, va: int) -> list[tuple[int, int]]:
        """The tables from level 4 down to 1 that a walk of `va` looks at, with the index in each; missing ones
        are made.
        """
        found = []
        table = self.root
        for shift in LEVELS:
            index = va >> shift & 511
            found.append((table, index))
            if shift == LEVELS[-1]:
                break
            if not self.entry(table, index) & PRESENT:
                self.set_entry(table, index, self._new_table() << 12 | ALL)
            table = self.entry(table, index) >> 12 & (1 << 40) - 1
        return found

    def map(self, va: int, mfn: int, flags: int = ALL) -> None:
        """Let `va` mean a frame."""
        table, index = self.tables(va)[-1]
        self.set_entry(table, index, mfn << 12 | flags)

    # Hypercalls

    def hypercall(self, number: int, *args: int, root: int | None = None) -> int:
        """One hypercall with all its continuations; addresses are meant by `root`, or the guest's own."""
        self.vcpu.root = self.root if root is None else root
        result = self.machine.hypercall(self.vcpu, number, args)
        while isinstance(result, Continuation):
            result = self.machine.hypercall(self.vcpu, result.number, result.args)
        return result

    def operate(self, number: int, operation: int, argument: S, *more: int) -> tuple[int, S]:
        """A hypercall of the form (operation, ..., struct): its result, and the struct afterwards."""
        page = self.domain.memory.page(RAM_FIRST)
        page[0x100 : 0x100 + len(argument.pack())] = argument.pack()
        result = self.hypercall(number, operation, *more, ARGUMENT_VA)
        return result, type(argument).unpack(page, 0x100)
