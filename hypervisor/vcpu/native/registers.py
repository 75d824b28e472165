"""The engine's registers, read and written where the engine keeps them (CPUX86State of its target/i386/cpu.h).

A field costs 50 ns this way, a call into the library forty times that. Registers implements hypervisor.pv.cpu.Cpu.
It lies over the engine's memory and must not be used after the engine is gone. Flags are kept by the engine as the
operands of the last operation: only `rflags` gives them as a register.
"""

from __future__ import annotations

import ctypes
from typing import Final

from hypervisor.pv.cpu import Segment
from hypervisor.vcpu.native.library import Library

CC_OP_EFLAGS: Final = 1
ARITHMETIC_FLAGS: Final = 0x8D5
"""CF, PF, AF, ZF, SF, OF: the engine keeps them in cc_src"""
DIRECTION_FLAG: Final = 0x400
OTHER_FLAGS: Final = 0x3F7FD7 & ~(ARITHMETIC_FLAGS | DIRECTION_FLAG)
ALWAYS_SET: Final = 2

CR0_TS: Final = 1 << 3
CR4_TSD: Final = 1 << 2

FLAGS_START: Final = 136
FLAGS_END: Final = 176
EFLAGS, SOURCE, OPERATION = 0, 2, 4
"""What the flags are made of, as u64s: eflags, cc_dst, cc_src, cc_src2, and cc_op with df in its upper half."""
U32: Final = 0xFFFF_FFFF
FORWARDS: Final = CC_OP_EFLAGS | 1 << 32
BACKWARDS: Final = CC_OP_EFLAGS | U32 << 32

HF_CPL: Final = 3
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_TS: Final = 1 << 11
HF_CS64: Final = 1 << 15

DESC_G: Final = 1 << 23
DESC_B: Final = 1 << 22
DESC_L: Final = 1 << 21
NULL_DATA_FLAGS: Final = 3 << 13
"""of a null selector: not present, but loaded at privilege level 3"""


_CS: Final = Segment.CS
_SS: Final = Segment.SS
_DS: Final = Segment.DS
_ES: Final = Segment.ES
_WITH_BASE: Final = frozenset({Segment.FS, Segment.GS})
"""registers whose base is not their selector's alone; nor do flags of the translator depend on them"""


class SegmentCache(ctypes.Structure):
    """SegmentCache: a segment register with its hidden part; flags are the high half of the descriptor."""

    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )
    selector: int
    base: int
    limit: int
    flags: int


class Registers(ctypes.Structure):
    """CPUX86State, as far as we look into it; Cpu is implemented by it. Made by Engine."""

    _fields_ = (
        ("rax", ctypes.c_uint64),
        ("rcx", ctypes.c_uint64),
        ("rdx", ctypes.c_uint64),
        ("rbx", ctypes.c_uint64),
        ("rsp", ctypes.c_uint64),
        ("rbp", ctypes.c_uint64),
        ("rsi", ctypes.c_uint64),
        ("rdi", ctypes.c_uint64),
        ("r8", ctypes.c_uint64),
        ("r9", ctypes.c_uint64),
        ("r10", ctypes.c_uint64),
        ("r11", ctypes.c_uint64),
        ("r12", ctypes.c_uint64),
        ("r13", ctypes.c_uint64),
        ("r14", ctypes.c_uint64),
        ("r15", ctypes.c_uint64),
        ("rip", ctypes.c_uint64),
        ("eflags", ctypes.c_uint64),
        ("cc_dst", ctypes.c_uint64),
        ("cc_src", ctypes.c_uint64),
        ("cc_src2", ctypes.c_uint64),
        ("cc_op", ctypes.c_uint32),
        ("df", ctypes.c_int32),
        ("hflags", ctypes.c_uint32),
        ("hflags2", ctypes.c_uint32),
        ("segments", SegmentCache * 6),
        ("ldt", SegmentCache),
        ("tr", SegmentCache),
        ("gdt", SegmentCache),
        ("idt", SegmentCache),
        ("cr", ctypes.c_uint64 * 9),
        ("a20_mask", ctypes.c_int32),
        ("bounds", ctypes.c_uint8 * (592 - 500)),
        ("efer", ctypes.c_uint64),
        ("start_init_save", ctypes.c_uint32),
        ("fpu_top", ctypes.c_uint32),
        ("fpu_status", ctypes.c_uint16),
        ("fpu_control", ctypes.c_uint16),
        ("fpu_tags", ctypes.c_uint8 * 8),
        ("gap", ctypes.c_uint8 * 4),
        ("fpu", ctypes.c_uint8 * 128),
        ("fpu_rest", ctypes.c_uint8 * (816 - 752)),
        ("mxcsr", ctypes.c_uint32),
        ("gap2", ctypes.c_uint8 * 4),
        ("xmm", ctypes.c_uint8 * 64 * 32),
        ("middle", ctypes.c_uint8 * (5384 - 2872)),
        ("error_code", ctypes.c_int32),
        ("exception_is_int", ctypes.c_int32),
        ("exception_next_eip", ctypes.c_uint64),
        ("dr", ctypes.c_uint64 * 8),
        ("breakpoints", ctypes.c_void_p * 4),
        ("old_exception", ctypes.c_int32),
        ("vm_vmcb", ctypes.c_uint64),
        ("tsc_offset", ctypes.c_uint64),
    )

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
    rip: int
    eflags: int
    """within a run without the arithmetic flags and the direction flag: see rflags"""
    cc_src: int
    cc_op: int
    df: int
    hflags: int
    segments: ctypes.Array[SegmentCache]
    ldt: SegmentCache
    gdt: SegmentCache
    cr: ctypes.Array[ctypes.c_uint64]
    efer: int
    fpu_top: int
    fpu_status: int
    fpu_control: int
    fpu_tags: ctypes.Array[ctypes.c_uint8]
    fpu: ctypes.Array[ctypes.c_uint8]
    mxcsr: int
    xmm: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
    error_code: int
    exception_is_int: int
    exception_next_eip: int
    dr: ctypes.Array[ctypes.c_uint64]
    old_exception: int
    tsc_offset: int

    def attach(self, library: Library, cpu: int) -> None:
        """Know the library and the engine's CPUState: what Engine does right after making it."""
        self._library = library.held
        self._cpu = cpu
        self._env = ctypes.addressof(self)
        self._general = memoryview(self).cast("B")[:128].cast("Q")
        self._flags = memoryview(self).cast("B")[FLAGS_START:FLAGS_END].cast("Q")
        self._caches = [self.segments[register] for register in Segment]
        self._fs = self.segments[Segment.FS]
        self._gs = self.segments[Segment.GS]
        self._tlb_flush = library.held.tlb_flush_x86_64
        self._tlb_flush_page = library.held.tlb_flush_page_x86_64

    def gpr(self, number: int) -> int:
        """A general register by its number in the instruction set."""
        return self._general[number]

    def set_gpr(self, number: int, value: int) -> None:
        """The same, to write 64 bits."""
        self._general[number] = value

    @property
    def rflags(self) -> int:
        """RFLAGS, with all that it has."""
        words = self._flags
        operation = words[OPERATION]
        if operation & U32 == CC_OP_EFLAGS:
            return (
                words[EFLAGS] & OTHER_FLAGS
                | words[SOURCE] & ARITHMETIC_FLAGS
                | operation >> 32 & DIRECTION_FLAG
            )
        flags: int = self._library.helper_read_eflags_x86_64(self._env)
        return flags

    @rflags.setter
    def rflags(self, value: int) -> None:
        words = self._flags
        words[SOURCE] = value & ARITHMETIC_FLAGS
        words[OPERATION] = BACKWARDS if value & DIRECTION_FLAG else FORWARDS
        # all of them: the engine takes them from here when it begins to run, and ignores them within its run
        words[EFLAGS] = value & (OTHER_FLAGS | ARITHMETIC_FLAGS | DIRECTION_FLAG) | ALWAYS_SET

    @property
    def fs_base(self) -> int:
        """FS base, 64 bits."""
        return self._fs.base

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self._fs.base = value

    @property
    def gs_base(self) -> int:
        """GS base, 64 bits."""
        return self._gs.base

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self._gs.base = value

    @property
    def cr2(self) -> int:
        """The address of the last page fault that the engine met."""
        return self.cr[2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.cr[2] = value

    @property
    def task_switched(self) -> bool:
        """CR0.TS: the next FPU instruction raises #NM."""
        return bool(self.hflags & HF_TS)

    @task_switched.setter
    def task_switched(self, value: bool) -> None:
        if value:
            self.hflags |= HF_TS
            self.cr[0] |= CR0_TS
        else:
            self.hflags &= ~HF_TS
            self.cr[0] &= ~CR0_TS

    @property
    def time_stamps_disabled(self) -> bool:
        """CR4.TSD: RDTSC raises #GP."""
        return bool(self.cr[4] & CR4_TSD)

    @time_stamps_disabled.setter
    def time_stamps_disabled(self, value: bool) -> None:
        self.cr[4] = self.cr[4] & ~CR4_TSD | (CR4_TSD if value else 0)

    def selector(self, register: Segment) -> int:
        """The selector that a segment register holds."""
        return self._caches[register].selector

    def load_segment(self, register: Segment, selector: int, descriptor: int) -> None:
        """Load a segment register with its hidden part; a null selector (`descriptor` 0) leaves the bases of FS and
        GS as they are.
        """
        cache = self._caches[register]
        cache.selector = selector
        if descriptor:
            high = descriptor >> 32
            cache.flags = high & 0xF0FF00
            cache.base = descriptor >> 16 & 0xFF_FFFF | high & 0xFF00_0000
            limit = descriptor & 0xFFFF | high & 0xF_0000
            cache.limit = limit << 12 | 0xFFF if high & DESC_G else limit
        else:
            if register not in _WITH_BASE:
                cache.base = 0
            cache.limit = 0
            cache.flags = NULL_DATA_FLAGS
        if register not in _WITH_BASE:
            self.refresh_hidden_flags()

    def refresh_hidden_flags(self) -> None:
        """What the engine's translator must know of CS, SS, DS and ES (cpu_x86_load_seg_cache)."""
        caches = self._caches
        code = caches[_CS].flags
        hidden = self.hflags & ~(HF_CPL | HF_CS32 | HF_CS64 | HF_SS32 | HF_ADDSEG) | 3
        if code & DESC_L:
            hidden |= HF_CS32 | HF_SS32 | HF_CS64
        else:
            if caches[_SS].flags & DESC_B:
                hidden |= HF_SS32
            if code & DESC_B:
                hidden |= HF_CS32
            if not code & DESC_B or caches[_DS].base or caches[_ES].base or caches[_SS].base:
                hidden |= HF_ADDSEG
        self.hflags = hidden

    def set_floating_point_modes(self, fpu_control: int, mxcsr: int) -> None:
        """The FPU's control word and MXCSR, with what the engine derives from them."""
        self.fpu_control, self.mxcsr = fpu_control, mxcsr
        self._library.update_fp_status_x86_64(self._env)
        self._library.update_mxcsr_status_x86_64(self._env)

    def debug_register(self, number: int) -> int:
        """DR0 to DR3, DR6, DR7."""
        return self.dr[number]

    def set_debug_register(self, number: int, value: int) -> None:
        """The same, to write; checked by the caller."""
        if number == 7:
            self._library.cpu_x86_update_dr7_x86_64(self._env, value)
        else:
            enabled = self.dr[7]
            if number < 4 and enabled >> number * 2 & 3:
                self._library.cpu_x86_update_dr7_x86_64(self._env, enabled & ~(3 << number * 2))
                self.dr[number] = value
                self._library.cpu_x86_update_dr7_x86_64(self._env, enabled)
            else:
                self.dr[number] = value

    def load_root(self, mfn: int) -> None:
        """CR3, with a flush of all translations."""
        self.cr[3] = mfn << 12
        self._tlb_flush(self._cpu)

    def flush(self) -> None:
        """Forget all translations."""
        self._tlb_flush(self._cpu)

    def flush_page(self, address: int) -> None:
        """Forget the translation of one linear address."""
        self._tlb_flush_page(self._cpu, address)


assert (Registers.eflags.offset, Registers.df.offset + 4) == (FLAGS_START, FLAGS_END)  # type: ignore[attr-defined]
assert Registers.cc_src.offset == FLAGS_START + 8 * SOURCE  # type: ignore[attr-defined]
assert Registers.cc_op.offset == FLAGS_START + 8 * OPERATION  # type: ignore[attr-defined]
