"""Debug registers: set_debugreg and get_debugreg.

Follows set_debugreg (xen/arch/x86/pv/misc-hypercalls.c) and asm/debugreg.h of Xen 4.17. Breakpoints may lie where the
guest may have pages, nowhere else (XSA-444); reserved bits are what the processor has there (XSA-12, XSA-265), and
general detect is refused. Breakpoints on I/O are the guest's to ask for, but no I/O reaches the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.errno import XEN_ENODEV, XEN_EPERM
from hypervisor.errors import InvalidArgument
from hypervisor.pv.canonical import U32, is_canonical
from hypervisor.pv.control_registers import CR4_DE
from hypervisor.pv.layout import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

DR6_DEFAULT: Final = 0xFFFF_0FF0
DR7_DEFAULT: Final = 0x400
DR6_GUEST: Final = 0xE00F
"""B0 to B3, BD, BS, BT"""
DR7_RESERVED: Final = 0xD800
DR7_GENERAL_DETECT: Final = 0x2000
DR7_ACTIVE: Final = 0xFF
_IO: Final = 2

_ADDRESSES: Final = range(4)


def set_debugreg(vcpu: PvVcpu, register: int, value: int) -> int:
    """The hypercall."""
    cpu = vcpu.domain.cpu
    number = _known(vcpu, register)
    if number in _ADDRESSES:
        if not is_canonical(value) or HYPERVISOR_VIRT_START <= value < HYPERVISOR_VIRT_END:
            raise InvalidArgument("breakpoint", hex(value), "an address of the guest's", errno=XEN_EPERM)
        cpu.set_debug_register(number, value)
    elif value > U32:
        raise InvalidArgument(f"DR{number}", hex(value), "32 bits")
    elif number == 6:
        cpu.set_debug_register(6, value & DR6_GUEST | DR6_DEFAULT)
    else:
        _set_dr7(vcpu, value)
    return 0


def _set_dr7(vcpu: PvVcpu, value: int) -> None:
    value = value & ~DR7_RESERVED | DR7_DEFAULT
    if value & DR7_GENERAL_DETECT:
        raise InvalidArgument("DR7", hex(value), "general detect off", errno=XEN_EPERM)
    on_io = 0
    if value & DR7_ACTIVE:
        for breakpoint_number in _ADDRESSES:
            if value >> 16 + 4 * breakpoint_number & 3 == _IO:
                if not vcpu.cr4 & CR4_DE:
                    raise InvalidArgument("DR7", hex(value), "I/O breakpoints with CR4.DE", errno=XEN_EPERM)
                on_io |= value & 3 << 2 * breakpoint_number
    vcpu.dr7_io = on_io
    vcpu.domain.cpu.set_debug_register(7, value & ~on_io)


def get_debugreg(vcpu: PvVcpu, register: int) -> int:
    """The hypercall: the register is its result."""
    number = _known(vcpu, register)
    value = vcpu.domain.cpu.debug_register(number)
    if number == 6:
        return value & DR6_GUEST | DR6_DEFAULT
    if number == 7:
        return value | vcpu.dr7_io
    return value


def _known(vcpu: PvVcpu, register: int) -> int:
    """4 and 5 are other names of 6 and 7, unless CR4.DE is set."""
    if register in (4, 5) and not vcpu.cr4 & CR4_DE:
        return register + 2
    if register in (0, 1, 2, 3, 6, 7):
        return register
    raise InvalidArgument("debug register", register, "0 to 3, 6 or 7", errno=XEN_ENODEV)
