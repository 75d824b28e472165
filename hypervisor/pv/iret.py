"""The iret hypercall: a guest's kernel returns from a bounce frame.

Follows do_iret (xen/arch/x86/pv/iret.c) of Xen 4.17. Xen finds out by executing IRETQ whether the processor takes what
the guest left on its stack; here it is checked before anything is loaded. What the processor would refuse is told to
the guest's failsafe callback, with a frame of the state that could not be entered.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import (
    FLAT_KERNEL_CS64,
    FLAT_KERNEL_SS64,
    FLAT_USER_CS32,
    FLAT_USER_CS64,
    VGCF_in_syscall,
    iret_context,
)
from hypervisor.abi.xen import VMASST_TYPE_architectural_iopl
from hypervisor.errors import GuestFault
from hypervisor.pv import descriptors
from hypervisor.pv.bounce import EFLAGS_IF, EFLAGS_IOPL, EFLAGS_NT, EFLAGS_VM, enter_kernel, toggle_mode
from hypervisor.pv.canonical import U32, is_canonical
from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import FLAT_CODE_32, FLAT_CODE_64, FLAT_DATA
from hypervisor.pv.layout import PAGE_SIZE
from hypervisor.pv.segments import descriptor_of, is_code_for_user, is_stack_for_user
from hypervisor.pv.vcpu import UPCALL_MASK

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

EFLAGS_LOADED: Final = 0x254FD5
"""CF PF AF ZF SF TF IF DF OF NT RF AC ID: what IRET takes from the frame, VM and IOPL apart"""
EFLAGS_ALWAYS: Final = 0x2 | EFLAGS_IF
_SYSRET_FLAGS: Final = EFLAGS_LOADED & ~(1 << 16)
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl

_CONTEXT: Final = Codec("<9Q")
_CS: Final = Segment.CS
_SS: Final = Segment.SS


def iret(vcpu: PvVcpu) -> int:
    """The hypercall: its result is the RAX that the frame holds."""
    domain = vcpu.domain
    cpu = domain.cpu
    rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = _frame(vcpu, cpu.rsp)
    if cs & 3 == 3:
        if not vcpu.user_root:
            domain.crash(vcpu, "it returns to user mode without a page table for it")
        toggle_mode(vcpu)
    if domain.vm_assist & _ARCHITECTURAL_IOPL:
        vcpu.iopl = rflags & EFLAGS_IOPL
    cs = cs & 0xFFFF | 3
    ss = ss & 0xFFFF | 3
    cpu.rip = rip
    cpu.rsp = rsp
    vcpu.info[UPCALL_MASK] = not rflags & EFLAGS_IF
    if vcpu.nmi_masked:
        vcpu.nmi_masked = False
        if vcpu.nmi_pending:
            domain.reschedule()
    if flags & VGCF_in_syscall:
        # As SYSRET does it: whatever was on the stack, the selectors are the hypervisor's flat ones.
        cpu.rcx = rip
        cpu.r11 = cpu.rflags = rflags & _SYSRET_FLAGS | EFLAGS_ALWAYS
        cs, code = (FLAT_USER_CS32, FLAT_CODE_32) if cs == FLAT_USER_CS32 else (FLAT_USER_CS64, FLAT_CODE_64)
        ss, stack = FLAT_KERNEL_SS64, FLAT_DATA
        good = is_canonical(rip) if cs == FLAT_USER_CS64 else rip <= U32
    else:
        cpu.rcx = rcx
        cpu.r11 = r11
        cpu.rflags = rflags & EFLAGS_LOADED | EFLAGS_ALWAYS
        code = FLAT_CODE_64 if cs == FLAT_KERNEL_CS64 else descriptor_of(vcpu, cs)
        stack = FLAT_DATA if ss == FLAT_KERNEL_SS64 else descriptor_of(vcpu, ss)
        good = (
            is_code_for_user(code)
            and is_stack_for_user(stack)
            and (is_canonical(rip) if code & descriptors.LONG else rip <= descriptors.limit(code))
        )
    if not good:
        failed = vcpu.failsafe
        enter_kernel(vcpu, failed.address, failed.masks_events, failsafe=True, cs=cs, ss=ss)
        return rax
    if cs != FLAT_KERNEL_CS64 or cpu.selector(_CS) != cs:
        cpu.load_segment(_CS, cs, code)
    if ss != FLAT_KERNEL_SS64 or cpu.selector(_SS) != ss:
        cpu.load_segment(_SS, ss, stack)
    return rax


def _frame(vcpu: PvVcpu, address: int) -> tuple[int, ...]:
    """The iret_context at `address`, fetched once."""
    domain = vcpu.domain
    size = _CONTEXT.size
    if address % PAGE_SIZE <= PAGE_SIZE - size:
        machine = domain.page_tables.translate(vcpu.kernel_root, address, False)
        if machine >= 0:
            return _CONTEXT.unpack_from(domain.memory.octets, machine)
    else:
        try:
            return _CONTEXT.unpack(domain.page_tables.read(vcpu.kernel_root, address, size))
        except GuestFault:
            pass
    return domain.crash(vcpu, f"its stack at {address:#x} holds no frame to return by")


assert _CONTEXT.size == iret_context.size
assert not EFLAGS_LOADED & (EFLAGS_VM | EFLAGS_IOPL) and EFLAGS_LOADED & EFLAGS_NT  # noqa: PT018
