"""A guest with a kernel and a user mode, page tables for each, and a processor that executes nothing."""

from struct import Struct, pack

from hypervisor.abi.arch_x86_64 import SEGBASE_GS_KERNEL, iret_context, trap_info
from hypervisor.abi.mmu import MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L4_TABLE
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.pv.cpu_hypercalls import CPU_HYPERCALLS
from hypervisor.pv.layout import SHARED_INFO_MFN
from hypervisor.pv.page_tables import PageTables
from hypervisor.pv.vcpu import PvVcpu
from tests.hypervisor.pv.fake_cpu import FakeCpu
from tests.hypervisor.pv.paging import FIRST_FREE, L3, P, PagedGuest, entry, mfn, va

USER_L4 = FIRST_FREE
GDT = FIRST_FREE + 1
STACK = FIRST_FREE + 2
"""Two pages; STACK_TOP is the end of the second one."""
USER_STACK = FIRST_FREE + 4
CODE = FIRST_FREE + 5
"""Two pages, and behind them one that is not mapped."""
HOLE = CODE + 2
DATA = CODE + 3
STACK_TOP = va(STACK + 2)
USER_SP = va(USER_STACK + 1) - 256

KERNEL_CODE, KERNEL_DATA, USER_CODE_32, USER_DATA, USER_CODE_64, NOT_PRESENT, BASED = range(1, 8)
"""Entries of the GDT that the guest begins with."""
DESCRIPTORS = {
    KERNEL_CODE: 0x00AF_9B00_0000_FFFF,
    KERNEL_DATA: 0x00CF_9300_0000_FFFF,
    USER_CODE_32: 0x00CF_FB00_0000_FFFF,
    USER_DATA: 0x00CF_F300_0000_FFFF,
    USER_CODE_64: 0x00AF_FB00_0000_FFFF,
    NOT_PRESENT: 0x00CF_7300_0000_FFFF,
    BASED: 0x12CF_F334_5678_FFFF,
}
BASED_AT = 0x1234_5678
GDT_ENTRIES = 16
SELECTOR_CODE_32 = USER_CODE_32 << 3 | 3
SELECTOR_CODE_64 = USER_CODE_64 << 3 | 3
SELECTOR_DATA = USER_DATA << 3 | 3

EVENT, FAILSAFE, SYSCALL, SYSCALL32, SYSENTER = (0xFFFF_FFFF_8100_0000 + 0x100 * n for n in range(5))
HANDLERS = 0xFFFF_FFFF_8200_0000
"""Vector n is handled HANDLERS + 16 n."""

U64 = (1 << 64) - 1
FRAME = ("rcx", "r11", "rip", "cs", "rflags", "rsp", "ss")


def handler(vector: int) -> int:
    return HANDLERS + 16 * vector


class Monitor:
    def __init__(self) -> None:
        self.gdts: dict[int, tuple[list[int], int]] = {}
        self.ldts: list[tuple[int, list[int], int]] = []

    def set_gdt(self, vcpu_id: int, frames: list[int], entries: int) -> None:
        self.gdts[vcpu_id] = list(frames), entries

    def set_ldt(self, vcpu_id: int, frames: list[int], entries: int) -> None:
        self.ldts.append((vcpu_id, list(frames), entries))


class CpuGuest(PagedGuest):
    """In kernel mode, with a GDT, nothing else set."""

    cpu: FakeCpu
    vcpus: list[PvVcpu]

    def __init__(self, vcpus: int = 2) -> None:
        super().__init__(vcpus=vcpus)
        self.time_ns = 1_000_000_000
        self.virqs: list[tuple[int, int]] = []
        self.requests: list[tuple[int, tuple[int, ...]]] = []
        self.reschedules = 0
        self.deadlines: list[int] = []
        self.monitor = Monitor()
        shared_info = self.memory.frame(SHARED_INFO_MFN)
        vars(self.domain).update(
            domid=7,
            cpu=self.cpu,
            frames=self.frames,
            memory=self.memory,
            vcpus=self.vcpus,
            vm_assist=0,
            monitor=self.monitor,
            shared_info=shared_info,
            now_ns=lambda: self.time_ns,
            wall_clock_ns=lambda: self.time_ns + 1_700_000_000_000_000_000,
            read_tsc=lambda: self.time_ns * 2,
            tsc_hz=2_000_000_000,
            raise_virq=lambda vcpu, virq: self.virqs.append((vcpu.id, virq)),
            reschedule=self._reschedule,
            timer_set=self.deadlines.append,
            argument=memoryview(bytearray(4096)),
            argument_address=0x1000,
            hypervisor=self,
        )
        for vcpu in self.vcpus:
            vcpu.place_info(shared_info[64 * vcpu.id : 64 * vcpu.id + 64], 0, 0)
        self.start()

    def new_page_tables(self) -> PageTables:
        self.cpu = FakeCpu(self.memory)
        return super().new_page_tables()

    def _reschedule(self) -> None:
        self.reschedules += 1

    def request(self, number: int, args: tuple[int, ...], _root: int, _vcpu_id: int) -> int:
        self.requests.append((number, args))
        return 0

    def start(self) -> "CpuGuest":
        for number, descriptor in DESCRIPTORS.items():
            self.set(GDT, number, descriptor)
        self.build()
        for page in (GDT, USER_L4):
            self.set(3, page, entry(page, P))
        self.set(3, HOLE, 0)
        self.set(USER_L4, 511, entry(L3))
        self.page_tables.set_initial_root(self.vcpu, mfn(0))
        self.put(DATA, pack("<Q", mfn(GDT)))
        assert self.call("set_gdt", va(DATA), GDT_ENTRIES) == 0
        self.check()
        return self

    def with_user(self) -> "CpuGuest":
        """A page table for user mode, and a kernel stack."""
        assert (
            self.extended((MMUEXT_PIN_L4_TABLE, mfn(USER_L4)), (MMUEXT_NEW_USER_BASEPTR, mfn(USER_L4))) == 0
        )
        assert self.call("stack_switch", 0xE02B, STACK_TOP) == 0
        self.cpu.rsp = va(STACK + 1)
        return self

    def with_handlers(self, masks: int = 0) -> "CpuGuest":
        """All traps, with DPL 3 for 0x80, and all callbacks."""
        for vector in range(256):
            flags = masks | (3 if vector == 0x80 else 0)
            self.set_trap(vector, flags, handler(vector))
        callbacks = ((0, EVENT), (1, FAILSAFE), (2, SYSCALL), (7, SYSCALL32), (5, SYSENTER))
        for kind, address in callbacks:
            assert self.register(kind, address) == 0
        return self

    def set_trap(self, vector: int, flags: int, address: int) -> None:
        self.put(DATA, trap_info(vector, flags, 0x10, address).pack() + bytes(16))
        assert self.call("set_trap_table", va(DATA)) == 0

    def register(self, kind: int, address: int, flags: int = 0) -> int:
        self.put(DATA, pack("<HHxxxxQ", kind, flags, address))
        return self.call("callback_op", 0, va(DATA))

    # Memory

    def put(self, page: int, data: bytes, offset: int = 0) -> None:
        start = mfn(page) << 12 | offset
        self.memory.octets[start : start + len(data)] = data

    def take(self, page: int, size: int, offset: int = 0) -> bytes:
        start = mfn(page) << 12 | offset
        return bytes(self.memory.octets[start : start + size])

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """u64s of kernel memory."""
        return Struct(f"<{count}Q").unpack(self.page_tables.read(self.vcpu.kernel_root, address, 8 * count))

    def frame(self, *above: str) -> dict[str, int]:
        """What lies on the kernel's stack; `above`: names between r11 and rip."""
        names = (*FRAME[:2], *above, *FRAME[2:])
        return dict(zip(names, self.words(self.cpu.rsp, len(names))))

    def contents(self) -> list[bytes]:
        """Of all pages."""
        return [self.take(page, 4096) for page in range(self.pages)]

    # Execution

    def call(self, name: str, *args: int, vcpu: int = 0) -> int:
        """A hypercall of the CPU interface, to its end."""
        table = {handler.__name__: handler for handler in CPU_HYPERCALLS.values()}
        try:
            result = table[name](self.vcpus[vcpu], *args)
            while isinstance(result, Continuation):
                result = table[name](self.vcpus[vcpu], *result.args)
        except XenError as error:
            result = -error.errno
        assert isinstance(result, int)
        return result

    def leave(self, address: int = 0, **changes: int) -> int:
        """iret with a frame on the kernel's stack, for 64-bit user mode unless changed."""
        plain = {
            "rax": 0xAA,
            "r11": 0x11,
            "rcx": 0xCC,
            "rip": va(CODE),
            "cs": SELECTOR_CODE_64,
            "rflags": 0x246,
            "rsp": USER_SP,
            "ss": SELECTOR_DATA,
        }
        self.cpu.rsp = address or va(STACK + 1)
        self.page_tables.write(self.vcpu.kernel_root, self.cpu.rsp, iret_context(**plain | changes).pack())
        return self.call("iret")

    def user(self, code: bytes = b"", **changes: int) -> "CpuGuest":
        """In user mode, at `code`."""
        self.put(CODE, code)
        self.leave(**changes)
        assert not self.vcpu.in_kernel
        return self

    def kernel(self, code: bytes) -> "CpuGuest":
        """In kernel mode, at `code`."""
        self.put(CODE, code)
        self.cpu.rip = va(CODE)
        return self


def booted(masks: int = 0) -> CpuGuest:
    """Whatever a kernel has set up when it has booted."""
    guest = CpuGuest().with_user().with_handlers(masks)
    assert guest.call("set_segment_base", SEGBASE_GS_KERNEL, 0xFFFF_FFFF_9000_0000) == 0
    return guest
