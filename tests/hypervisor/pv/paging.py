"""A paravirtualized guest without a processor: its memory, its page tables, and hypercalls on them.

The processor is the worst that there could be: it has every translation cached that it ever could have made, and
forgets none before it is told to.
"""

import mmap
from collections.abc import Iterable
from types import SimpleNamespace

from hypervisor.abi.mmu import (
    MMU_MACHPHYS_UPDATE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE,
    mmu_update,
    mmuext_op,
    mmuext_op_arg1,
    mmuext_op_arg2,
)
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.frames import Kind, LocalFrames, TypeOfFrame
from hypervisor.pv.layout import (
    FIRST_XEN_SLOT,
    FOREIGN_FIRST,
    LAST_XEN_SLOT,
    MFN_END,
    RAM_FIRST,
    SHARED_INFO_MFN,
)
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.pv.page_tables import PageTables
from hypervisor.pv.page_tables_state import PageTablesState
from hypervisor.pv.vcpu import PvVcpu

PAGE = 4096
DOMID = 7
BASE = 0xFFFF_FFFF_8000_0000
"""virtual address of page 0"""
P, RW, USER = 1, 2, 4
XEN_ENTRIES = {256: 0x1_0000_1061, 260: 0x1_0000_3061}
L4, L3, L2, L1 = 0, 1, 2, 3
"""The pages that hold the first page tables; ARGUMENT is for arrays of hypercalls."""
ARGUMENT = 4
FIRST_FREE = 5


def mfn(page: int) -> int:
    return RAM_FIRST + page


def entry(page: int, flags: int = P | RW) -> int:
    return mfn(page) << 12 | flags


def va(page: int) -> int:
    return BASE + page * PAGE


def machine_address(page: int, slot: int = 0) -> int:
    return mfn(page) << 12 | slot << 3


def _zeroes(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class CachingCpu:
    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        self.root = 0
        self.flushes = 0
        self.cached: set[tuple[int, int, bool]] = set()
        self.forgotten: list[int] = []

    def load_root(self, root: int) -> None:
        self.root = root
        self.flush()

    def flush(self) -> None:
        self.flushes += 1
        self.cached.clear()

    def flush_page(self, address: int) -> None:
        self.cached = {cached for cached in self.cached if cached[0] != address & ~0xFFF}

    def forget_code(self, frame: int) -> None:
        self.forgotten.append(frame)

    def execute(self) -> None:
        """Touch whatever can be touched."""
        if not self.root:
            return
        tables = [(self.root, 0, True)]
        for shift in (39, 30, 21, 12):
            sign = 0xFFFF << 48 if shift == 39 else 0
            below = []
            for table, base, writable in tables:
                for slot, value in enumerate(self.memory.table(table).tolist()):
                    if value & P and not (shift == 39 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT):
                        assert value & USER
                        address = base | slot << shift | (sign if slot & 256 else 0)
                        below.append((value >> 12 & (1 << 40) - 1, address, writable and bool(value & RW)))
            tables = below
        self.cached.update((base, frame, writable) for frame, base, writable in tables)


class PagedGuest:
    """pages: how many of RAM."""

    def __init__(self, pages: int = 64, vcpus: int = 2) -> None:
        size = mfn(pages) << 12
        self.memory = MachineMemory(_zeroes(size))
        self.pages = pages
        self.granted = _zeroes(2 * MFN_END).cast("H")
        self.types = _zeroes(MFN_END)
        self.m2p = _zeroes(8 * MFN_END).cast("Q")
        self.frames = LocalFrames(self.types, self.granted, _zeroes(MFN_END))
        self.cpu = CachingCpu(self.memory)
        self.page_tables = self.new_page_tables()
        self.ldts: list[tuple[int, list[int], int]] = []
        monitor = SimpleNamespace(set_ldt=lambda *ldt: self.ldts.append(ldt))
        self.domain = SimpleNamespace(monitor=monitor, page_tables=self.page_tables, crash=self._crash)
        self.vcpus = [PvVcpu(self.domain, number, memoryview(bytearray(64))) for number in range(vcpus)]
        self.vcpu = self.vcpus[0]
        self.page_tables.appear(RAM_FIRST, pages, Kind.OWN)
        self.page_tables.appear(SHARED_INFO_MFN, 1, Kind.XEN)
        self.page_tables.appear(FOREIGN_FIRST, 1, Kind.FOREIGN)
        self.page_tables.appear(FOREIGN_FIRST + 1, 1, Kind.FOREIGN_READONLY)

    def new_page_tables(self) -> PageTables:
        return PageTables(self.memory, self.frames, self.cpu, self.m2p, XEN_ENTRIES, domid=DOMID)

    @staticmethod
    def _crash(vcpu: PvVcpu, reason: str) -> None:
        raise DomainCrash(vcpu.id, 0, reason)

    def set(self, page: int, slot: int, value: int) -> None:
        """Write to memory, without the hypervisor."""
        self.memory.quads[machine_address(page, slot) >> 3] = value

    def get(self, page: int, slot: int) -> int:
        return self.memory.quads[machine_address(page, slot) >> 3]

    def build(self) -> None:
        """The first page tables: the first 512 pages from BASE on, the tables read-only."""
        self.set(L4, 511, entry(L3))
        self.set(L3, 510, entry(L2))
        self.set(L2, 0, entry(L1))
        for page in range(min(self.pages, 512)):
            self.set(L1, page, entry(page, P if page <= L1 else P | RW))

    def start(self) -> "PagedGuest":
        self.build()
        self.page_tables.set_initial_root(self.vcpu, mfn(L4))
        self.check()
        return self

    def check(self) -> None:
        """What always holds between hypercalls."""
        assert not self.page_tables.audit(self.vcpus)
        for address, frame, writable in self.cpu.cached:
            assert self.frames.kind(frame) is not Kind.ABSENT, hex(address)
            if writable:
                assert self.type_of(frame) in (TypeOfFrame.NONE, TypeOfFrame.WRITABLE), hex(address)
        self.cpu.execute()

    def type_of(self, frame: int) -> TypeOfFrame:
        return self.frames.type(frame)

    def counted(self, page: int) -> tuple[str, int, int]:
        """Type, references that need it, references that need none."""
        frame = mfn(page)
        return self.type_of(frame).name, self.frames.counts[frame], self.frames.readers[frame]

    def hopped(self, state: PageTablesState) -> "PagedGuest":
        """Another process has this memory, and nothing else but the state."""
        state = PageTablesState.model_validate_json(state.model_dump_json())
        other = PagedGuest(self.pages, len(self.vcpus))
        present = [run for run in self.frames.runs() if run[2] is Kind.OWN]
        other.page_tables.vanish(RAM_FIRST, self.pages)
        for first, count, kind in present:
            other.page_tables.appear(first, count, kind)
        size = mfn(self.pages) << 12
        other.memory.octets[mfn(0) << 12 : size] = self.memory.octets[mfn(0) << 12 : size]
        for vcpu, its in zip(other.vcpus, self.vcpus):
            for name in ("kernel_root", "user_root", "ldt_base", "ldt_entries", "ldt_frames"):
                setattr(vcpu, name, getattr(its, name))
        other.granted[:] = self.granted
        other.page_tables.load(state, other.vcpus)
        return other

    def release_all(self) -> None:
        """The domain ends: no reference may be left."""
        for vcpu in self.vcpus:
            self.page_tables.release_vcpu(vcpu)
        self.cpu.root = 0
        self.cpu.flush()
        validation = self.page_tables.validation
        validation.begin(1 << 60)
        validation.drop_all(list(self.frames.pinned))
        self.frames.pinned.clear()
        assert validation.drain()
        self.check()
        assert not any(self.frames.counts)
        assert not any(self.frames.readers)
        assert not any(self.types)

    # Hypercalls: 0 or a negative errno, and whatever happens, `check`

    def update(self, requests: Iterable[tuple[int, int]], foreigndom: int = DOMID_SELF, vcpu: int = 0) -> int:
        """mmu_update with (ptr, val) requests."""
        data = b"".join(mmu_update(ptr=ptr, val=val).pack() for ptr, val in requests)
        return self._hypercall(self.page_tables.mmu_update, data, mmu_update.size, foreigndom, vcpu)

    def extended(
        self, *operations: tuple[int, int] | tuple[int, int, int], foreigndom: int = DOMID_SELF, vcpu: int = 0
    ) -> int:
        """mmuext_op with (command, arg1[, arg2]) operations."""
        return self._hypercall(
            self.page_tables.mmuext_op, self.packed(*operations), mmuext_op.size, foreigndom, vcpu
        )

    @staticmethod
    def packed(*operations: tuple[int, ...]) -> bytes:
        """mmuext_op structs."""
        data = b""
        for command, arg1, *arg2 in operations:
            second = mmuext_op_arg2(src_mfn=arg2[0]) if arg2 else mmuext_op_arg2()
            data += mmuext_op(cmd=command, arg1=mmuext_op_arg1(mfn=arg1), arg2=second).pack()
        return data

    def _hypercall(self, hypercall, data: bytes, size: int, foreigndom: int, vcpu: int) -> int:
        self.put_arguments(data)
        args = va(ARGUMENT), len(data) // size, 0, foreigndom
        return self.result(hypercall, self.vcpus[vcpu], *args)

    def put_arguments(self, data: bytes) -> None:
        """Write what a hypercall is to read at va(ARGUMENT)."""
        start = machine_address(ARGUMENT)
        self.memory.octets[start : start + len(data)] = data

    def result(self, hypercall, *args: int) -> int:
        """Of a hypercall that is made again until it is done."""
        self.continued = 0
        try:
            result = hypercall(*args)
            while isinstance(result, Continuation):
                self.continued += 1
                self.check()
                result = hypercall(args[0], *result.args)
        except XenError as error:
            result = -error.errno
        self.check()
        return result

    def map(self, address: int, value: int, flags: int = 0) -> int:
        """update_va_mapping."""
        return self.result(self.page_tables.update_va_mapping, self.vcpu, address, value, flags)

    def protect(self, *pages: int) -> None:
        """Make them read-only where build() has mapped them."""
        for page in pages:
            assert self.map(va(page), entry(page, P)) == 0

    def unprotect(self, *pages: int) -> None:
        for page in pages:
            assert self.map(va(page), entry(page)) == 0

    def pin(self, page: int, level: int) -> int:
        return self.extended((MMUEXT_PIN_L1_TABLE + level - 1, mfn(page)))

    def use_as_gdt(self, page: int) -> None:
        """Refer to it as the first vCPU's descriptor table."""
        self.page_tables.take_descriptor_page(mfn(page))
        self.vcpu.gdt_frames[0] = mfn(page)

    def unpin(self, page: int) -> int:
        return self.extended((MMUEXT_UNPIN_TABLE, mfn(page)))

    def new_baseptr(self, page: int) -> int:
        return self.extended((MMUEXT_NEW_BASEPTR, mfn(page)))

    def set_m2p(self, frame: int, pfn: int) -> int:
        return self.update([(frame << 12 | MMU_MACHPHYS_UPDATE, pfn)])
