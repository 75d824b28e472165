"""CR0, CR2, CR3 and CR4 as a guest's kernel reads and writes them.

Follows read_cr and write_cr of xen/arch/x86/pv/emul-priv-op.c and pv_fixup_guest_cr4 (pv/domain.c) of Xen 4.17: of CR0
only TS may change; of CR4 the guest sees what its CPUID offers, and chooses TSD and DE (XSA-293).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT
from hypervisor.pv.vcpu import CR2_WORD

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

CR0: Final = 0x8005_0033
"""PG, AM, WP, NE, ET, MP, PE"""
CR0_TS: Final = 8

CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_GUEST: Final = CR4_TSD | CR4_DE
CR4_VISIBLE: Final = CR4_PAE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT


def guest_cr4(value: int) -> int:
    """CR4 as the guest has it when it writes `value`."""
    return value & CR4_GUEST | CR4_VISIBLE


def read_control_register(vcpu: PvVcpu, number: int) -> int:
    """Unsupported for one that guests do not have."""
    if number == 0:
        return CR0 | CR0_TS if vcpu.domain.cpu.task_switched else CR0
    if number == 2:
        return vcpu.cr2
    if number == 3:
        return vcpu.kernel_root << PAGE_SHIFT
    if number == 4:
        return vcpu.cr4
    raise Unsupported(f"CR{number}")


def write_control_register(vcpu: PvVcpu, number: int, value: int) -> None:
    """XenError for a value, or a register, that the guest must not write."""
    if number == 0:
        if (value ^ CR0) & ~CR0_TS:
            raise InvalidArgument("CR0", hex(value), "no change but of TS")
        vcpu.domain.cpu.task_switched = bool(value & CR0_TS)
    elif number == 2:
        vcpu.cr2 = value
        vcpu.info_words[CR2_WORD] = value
    elif number == 3:
        mfn = value >> PAGE_SHIFT
        if mfn >= MFN_END:
            raise InvalidArgument("CR3", hex(value), "a frame of the domain's")
        vcpu.domain.page_tables.load_kernel_root(vcpu, mfn)
    elif number == 4:
        vcpu.cr4 = guest_cr4(value)
        vcpu.domain.cpu.time_stamps_disabled = bool(value & CR4_TSD)
    else:
        raise Unsupported(f"CR{number}")
