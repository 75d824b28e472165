"""A processor that executes nothing: its registers, and what it was told."""

from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import FLAT, RPL, base
from hypervisor.pv.machine_memory import MachineMemory
from tests.hypervisor.pv.paging import CachingCpu

NAMES = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]  # in the order of their numbers


class FakeCpu(CachingCpu):
    """Implements hypervisor.pv.cpu.Cpu. loaded: descriptors of the segment registers."""

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int

    def __init__(self, memory: MachineMemory) -> None:
        super().__init__(memory)
        self.reset()

    def reset(self) -> None:
        for name in NAMES:
            setattr(self, name, 0)
        self.rip = 0
        self.rflags = 0x202
        self.fs_base = self.gs_base = 0
        self.cr2 = 0
        self.task_switched = self.time_stamps_disabled = False
        self.selectors = dict.fromkeys(Segment, 0xE02B) | {Segment.CS: 0xE033}
        self.loaded = {register: FLAT[selector & ~RPL] for register, selector in self.selectors.items()}
        self.dr = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]

    def gpr(self, number: int) -> int:
        value: int = getattr(self, NAMES[number])
        return value

    def set_gpr(self, number: int, value: int) -> None:
        assert 0 <= value < 1 << 64
        setattr(self, NAMES[number], value)

    def general(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in NAMES}

    def selector(self, register: Segment) -> int:
        return self.selectors[register]

    def load_segment(self, register: Segment, selector: int, descriptor: int) -> None:
        self.selectors[register] = selector
        self.loaded[register] = descriptor
        if descriptor and register is Segment.FS:
            self.fs_base = base(descriptor)
        if descriptor and register is Segment.GS:
            self.gs_base = base(descriptor)

    def debug_register(self, number: int) -> int:
        return self.dr[number]

    def set_debug_register(self, number: int, value: int) -> None:
        self.dr[number] = value

    def forget_code(self, mfn: int) -> None:
        pass
