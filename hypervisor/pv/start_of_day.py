"""Giving a vCPU its first state: a vcpu_guest_context, of the domain's builder or of VCPUOP_initialise.

Follows arch_set_info_guest (xen/arch/x86/domain.c) of Xen 4.17. All of it is checked before anything is taken over; the
registers are loaded when the vCPU is first executed. Its FPU starts as after a reset, whatever fpu_ctxt holds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import (
    FLAT_KERNEL_SS64,
    VGCF_failsafe_disables_events,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    vcpu_guest_context,
)
from hypervisor.errors import InvalidArgument, XenError
from hypervisor.pv.bounce import EFLAGS_IOPL, enter_kernel
from hypervisor.pv.callbacks import set_trap
from hypervisor.pv.canonical import is_canonical
from hypervisor.pv.control_registers import CR0_TS, guest_cr4
from hypervisor.pv.cpu import Segment
from hypervisor.pv.debug import set_debugreg
from hypervisor.pv.iret import EFLAGS_ALWAYS, EFLAGS_LOADED
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT, PAGE_SIZE
from hypervisor.pv.segments import (
    DESCRIPTORS_A_PAGE,
    descriptor_of,
    install_gdt,
    is_code_for_user,
    is_stack_for_user,
    load_data_segment,
    release_gdt,
)
from hypervisor.pv.vm_assist import VALID_ASSISTS, set_assists

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MAX_LDT_ENTRIES: Final = 8192
NULL_SELECTORS: Final = 4


def start_of_day(vcpu: PvVcpu, context: vcpu_guest_context) -> None:
    """XenError, and nothing has changed, unless the guest could have set all of it by hypercalls."""
    kernel_root, user_root = _checked_roots(context)
    if vcpu.id == 0 and user_root:
        raise InvalidArgument(
            "page table for user mode", hex(user_root), "none: the first vCPU sets it itself"
        )
    _check_addresses(context)
    frames = list(context.gdt_frames[: -(-context.gdt_ents // DESCRIPTORS_A_PAGE)])
    install_gdt(vcpu, frames, context.gdt_ents)
    page_tables = vcpu.domain.page_tables
    try:
        if vcpu.id == 0:
            page_tables.set_initial_root(vcpu, kernel_root)
        else:
            page_tables.set_roots(vcpu, kernel_root, user_root)
    except XenError:
        release_gdt(vcpu)
        raise
    _set_state(vcpu, context)
    vcpu.context = context
    vcpu.initialised = True
    vcpu.online = bool(context.flags & VGCF_online)


def _checked_roots(context: vcpu_guest_context) -> tuple[int, int]:
    kernel_root, user_root = context.ctrlreg[3] >> PAGE_SHIFT, context.ctrlreg[1] >> PAGE_SHIFT
    if not 0 < kernel_root < MFN_END or user_root >= MFN_END:
        raise InvalidArgument("page tables", (hex(kernel_root), hex(user_root)), "frames of the domain's")
    if not context.flags & VGCF_in_kernel:
        raise InvalidArgument("flags", hex(context.flags), "VGCF_in_kernel")
    return kernel_root, user_root


def _check_addresses(context: vcpu_guest_context) -> None:
    addresses = {
        "rip": context.user_regs.rip,
        "rsp": context.user_regs.rsp,
        "kernel_sp": context.kernel_sp,
        "event callback": context.event_callback_eip,
        "failsafe callback": context.failsafe_callback_eip,
        "syscall callback": context.syscall_callback_eip,
        "fs_base": context.fs_base,
        "gs_base_kernel": context.gs_base_kernel,
        "gs_base_user": context.gs_base_user,
    }
    for name, address in addresses.items():
        if not is_canonical(address):
            raise InvalidArgument(name, hex(address), "canonical")
    for vector, trap in enumerate(context.trap_ctxt):
        if not is_canonical(trap.address):
            raise InvalidArgument(f"handler of trap {vector}", hex(trap.address), "canonical")
    if context.ldt_ents:
        raise InvalidArgument("ldt_ents", context.ldt_ents, "0: the guest sets its LDT by mmuext_op")


def _set_state(vcpu: PvVcpu, context: vcpu_guest_context) -> None:
    for vector, trap in enumerate(context.trap_ctxt):
        set_trap(vcpu, vector, trap.flags, trap.cs, trap.address)
    vcpu.kernel_ss = context.kernel_ss
    vcpu.kernel_sp = context.kernel_sp
    vcpu.event.address = context.event_callback_eip
    vcpu.failsafe.address = context.failsafe_callback_eip
    vcpu.failsafe.masks_events = bool(context.flags & VGCF_failsafe_disables_events)
    vcpu.syscall.address = context.syscall_callback_eip
    vcpu.syscall.masks_events = bool(context.flags & VGCF_syscall_disables_events)
    vcpu.gs_base_kernel = context.gs_base_kernel
    vcpu.gs_base_user = context.gs_base_user
    vcpu.iopl = context.user_regs.rflags & EFLAGS_IOPL
    vcpu.cr4 = guest_cr4(context.ctrlreg[4])
    if vcpu.id == 0:
        set_assists(vcpu.domain, context.vm_assist & VALID_ASSISTS)


def load_registers(vcpu: PvVcpu) -> None:
    """The vCPU's context into the processor, whose registers are as after a reset (XSA-165), in guest kernel mode."""
    context = vcpu.context
    assert context is not None
    vcpu.context = None
    cpu = vcpu.domain.cpu
    regs = context.user_regs
    cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx = regs.rax, regs.rbx, regs.rcx, regs.rdx
    cpu.rsi, cpu.rdi, cpu.rbp, cpu.rsp = regs.rsi, regs.rdi, regs.rbp, regs.rsp
    cpu.r8, cpu.r9, cpu.r10, cpu.r11 = regs.r8, regs.r9, regs.r10, regs.r11
    cpu.r12, cpu.r13, cpu.r14, cpu.r15 = regs.r12, regs.r13, regs.r14, regs.r15
    cpu.rip = regs.rip
    cpu.rflags = regs.rflags & EFLAGS_LOADED | EFLAGS_ALWAYS
    cpu.task_switched = bool(context.ctrlreg[0] & CR0_TS)
    for number, value in enumerate(context.debugreg):
        with suppress(XenError):  # left as it was, as with Xen
            set_debugreg(vcpu, number, value)
    for register, selector in (
        (Segment.DS, regs.ds),
        (Segment.ES, regs.es),
        (Segment.FS, regs.fs),
        (Segment.GS, regs.gs),
    ):
        if not load_data_segment(vcpu, register, selector):
            cpu.load_segment(register, 0, 0)
    cpu.fs_base = context.fs_base
    cpu.gs_base = context.gs_base_kernel
    _load_code_and_stack(vcpu, regs.cs | 3, regs.ss | 3)


def _load_code_and_stack(vcpu: PvVcpu, cs: int, ss: int) -> None:
    cpu = vcpu.domain.cpu
    code, stack = descriptor_of(vcpu, cs), descriptor_of(vcpu, ss)
    if ss < NULL_SELECTORS:  # what older builders of 64-bit guests leave there
        ss, stack = FLAT_KERNEL_SS64, descriptor_of(vcpu, FLAT_KERNEL_SS64)
    if is_code_for_user(code) and is_stack_for_user(stack):
        cpu.load_segment(Segment.CS, cs, code)
        cpu.load_segment(Segment.SS, ss, stack)
    else:
        failed = vcpu.failsafe
        enter_kernel(vcpu, failed.address, failed.masks_events, failsafe=True, cs=cs, ss=ss)


assert MAX_LDT_ENTRIES * 8 == 16 * PAGE_SIZE
