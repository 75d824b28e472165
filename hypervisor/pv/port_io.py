"""Ports of a native domain: it may have the privilege to use them, but there is nothing behind any.

Follows guest_io_okay and guest_io_read of xen/arch/x86/pv/emul-priv-op.c: who has the I/O privilege level, or a clear
bit in the bitmap, reads all ones and writes nowhere; for anybody else it is #GP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import VMASST_TYPE_architectural_iopl
from hypervisor.errors import GuestFault
from hypervisor.pv.canonical import U64
from hypervisor.pv.cpu import Segment

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

IOPL_SHIFT: Final = 12
PIT_COUNTER_2: Final = 0x42
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl


def iopl_permits(vcpu: PvVcpu) -> bool:
    """Whether its privilege level lets it use all ports, CLI and STI. The kernel counts as ring 1, or as ring 0 if it
    asked for the architecture's rules.
    """
    if vcpu.in_kernel:
        return vcpu.iopl >= 1 << IOPL_SHIFT or bool(vcpu.domain.vm_assist & _ARCHITECTURAL_IOPL)
    return vcpu.iopl >= 3 << IOPL_SHIFT


def permitted(vcpu: PvVcpu, port: int, size: int) -> bool:
    """Whether it may access `size` bytes from `port` on."""
    if iopl_permits(vcpu):
        return True
    if vcpu.iobmp_ports <= port + size:
        return False
    try:
        data = vcpu.domain.page_tables.read(vcpu.kernel_root, vcpu.iobmp + port // 8 & U64, 2)
    except GuestFault:
        return False
    return not int.from_bytes(data, "little") & (1 << size) - 1 << port % 8


def read(port: int, size: int) -> int:
    """What is read where there is no device. The timer's second channel stands still at 0: a kernel that calibrates
    its clock by it gives up at once, where all ones keep it waiting for 100,000 reads.
    """
    return 0 if port == PIT_COUNTER_2 and size == 1 else (1 << size * 8) - 1


def source_address(vcpu: PvVcpu, override: Segment | None) -> int:
    """The linear address of DS:RSI or of its override, in 64-bit mode."""
    cpu = vcpu.domain.cpu
    if override is Segment.FS:
        return cpu.fs_base + cpu.rsi & U64
    if override is Segment.GS:
        return cpu.gs_base + cpu.rsi & U64
    return cpu.rsi
