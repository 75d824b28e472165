"""The processor that executes a native domain, as the domain-local core sees it.

The x86-64 engine implements it (hypervisor/vcpu/native/engine.py), and a plain record in tests. It executes one vCPU
at a time, always at CPL 3; whether that is the guest's kernel or its user mode is the core's knowledge.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol


class Segment(IntEnum):
    """Segment registers, by their number in the instruction set."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5


class Cpu(Protocol):
    """Registers are read and written in place, inside hooks and between slices."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    fs_base: int
    gs_base: int
    cr2: int
    """of the last page fault that the engine met"""
    task_switched: bool
    """CR0.TS: the next FPU instruction raises #NM"""
    time_stamps_disabled: bool
    """CR4.TSD: RDTSC raises #GP, in guest kernel mode, too"""

    def gpr(self, number: int) -> int:
        """A general register by its number in the instruction set (0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, …)."""

    def set_gpr(self, number: int, value: int) -> None:
        """The same, to write 64 bits."""

    def selector(self, register: Segment) -> int:
        """The selector that a segment register holds."""

    def load_segment(self, register: Segment, selector: int, descriptor: int) -> None:
        """Load a segment register with its hidden part: `descriptor` is the 8-byte descriptor, 0 for a null
        selector. RPL and DPL are 3. It was checked by the caller. A FS or GS base is not set by a null selector.
        """

    def debug_register(self, number: int) -> int:
        """DR0 to DR3, DR6, DR7."""

    def set_debug_register(self, number: int, value: int) -> None:
        """The same, to write; checked by the caller."""

    def load_root(self, mfn: int) -> None:
        """CR3, with a flush of all translations."""

    def flush(self) -> None:
        """Forget all translations."""

    def flush_page(self, address: int) -> None:
        """Forget the translation of one linear address."""

    def forget_code(self, mfn: int) -> None:
        """Somebody else has written into this frame: drop what was translated of it."""
