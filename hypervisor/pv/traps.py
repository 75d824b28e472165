"""Entry points for what the engine meets while it executes a vCPU: exceptions, software interrupts, system calls.

Each changes the registers of `vcpu.domain.cpu` in place, so that the engine goes on where the guest is to go on: behind
an instruction that was emulated, or at a handler of its kernel with a frame on the kernel's stack (bounce.py). RIP is
on entry that of the instruction for faults, and of the next one for traps and SYSCALL; on return it is the one to
execute next. DomainCrash means that the guest has left nowhere to go.

Follows xen/arch/x86/traps.c, pv/traps.c and x86_64/entry.S of Xen 4.17. The engine is always at CPL 3, so that whether
the guest's kernel or its user mode has trapped is `vcpu.in_kernel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import FLAT_KERNEL_SS64, FLAT_USER_CS32, FLAT_USER_CS64, FLAT_USER_SS32
from hypervisor.abi.vcpu import RUNSTATE_running
from hypervisor.abi.xen import VMASST_TYPE_writable_pagetables
from hypervisor.pv import cpuid as cpuid_leaves
from hypervisor.pv import pvclock, runstate
from hypervisor.pv.bounce import EFLAGS_DF, EFLAGS_NT, EFLAGS_RF, EFLAGS_TF, enter_kernel
from hypervisor.pv.control_registers import CR4_TSD
from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import LONG
from hypervisor.pv.emulate import emulate_forced_cpuid, emulate_privileged
from hypervisor.pv.fetch import FetchFault
from hypervisor.pv.segments import descriptor_of
from hypervisor.pv.start_of_day import load_registers
from hypervisor.pv.vcpu import CR2_WORD, UPCALL_MASK, UPCALL_PENDING
from hypervisor.pv.writable_tables import emulate_table_write

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

DIVIDE_ERROR: Final = 0
DEBUG: Final = 1
NMI: Final = 2
BREAKPOINT: Final = 3
OVERFLOW: Final = 4
INVALID_OPCODE: Final = 6
NO_DEVICE: Final = 7
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14

WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21})

PFEC_PRESENT: Final = 1
PFEC_WRITE: Final = 2
PFEC_USER: Final = 4

XEC_EXTERNAL: Final = 1
XEC_IDT: Final = 2

TRAP_DPL: Final = 3
TRAP_MASKS_EVENTS: Final = 4
"""trap_info.flags: lowest privilege that may raise the vector by INT, and whether upcalls are masked on entry"""

DR6_SINGLE_STEP: Final = 1 << 14
NULL_CS: Final = 3

_WRITABLE_TABLES: Final = 1 << VMASST_TYPE_writable_pagetables
_PROTECTED_WRITE: Final = PFEC_PRESENT | PFEC_WRITE


def deliver_exception(
    vcpu: PvVcpu, vector: int, error_code: int | None = None, cr2: int | None = None
) -> None:
    """Let the guest's kernel handle hardware exception `vector`; without an entry in its trap table it crashes."""
    if cr2 is not None:
        vcpu.cr2 = cr2
        vcpu.info_words[CR2_WORD] = cr2
        error_code = (error_code or 0) & ~PFEC_USER if vcpu.in_kernel else (error_code or 0) | PFEC_USER
    address = vcpu.trap_addresses[vector]
    if not address:
        code = "" if error_code is None else f" with error code {error_code:#x}"
        at = "" if cr2 is None else f" at {cr2:#x}"
        vcpu.domain.crash(vcpu, f"its kernel handles no exception {vector}{code}{at}")
    enter_kernel(vcpu, address, vcpu.trap_flags[vector] & TRAP_MASKS_EVENTS, error_code)


def exception(vcpu: PvVcpu, vector: int, error_code: int, cr2: int) -> None:
    """Any exception of the engine, by vector; error_code and cr2 are looked at only if the vector has them."""
    if vector == PAGE_FAULT:
        page_fault(vcpu, error_code, cr2)
    elif vector == GENERAL_PROTECTION:
        general_protection(vcpu, error_code)
    elif vector == NO_DEVICE:
        device_not_available(vcpu)
    elif vector == INVALID_OPCODE:
        invalid_opcode(vcpu)
    elif vector in WITH_ERROR_CODE:
        deliver_exception(vcpu, vector, error_code)
    else:
        deliver_exception(vcpu, vector)


def page_fault(vcpu: PvVcpu, error_code: int, address: int) -> None:
    """#PF: a write to a level-1 table is emulated, anything else is the guest's."""
    if (
        error_code & ~PFEC_USER == _PROTECTED_WRITE
        and vcpu.in_kernel
        and vcpu.domain.vm_assist & _WRITABLE_TABLES
        and emulate_table_write(vcpu, address)
    ):
        _step_over(vcpu)
        return
    deliver_exception(vcpu, PAGE_FAULT, error_code, address)


def general_protection(vcpu: PvVcpu, error_code: int) -> None:
    """#GP: INT n, a privileged instruction that is emulated, or the guest's."""
    if error_code == 0:
        try:
            if emulate_privileged(vcpu):
                _step_over(vcpu)
                return
        except FetchFault as fault:
            deliver_exception(vcpu, PAGE_FAULT, 0, fault.address)
            return
    elif error_code & (XEC_IDT | XEC_EXTERNAL) == XEC_IDT:
        software_interrupt(vcpu, error_code >> 3 & 0xFF, vcpu.domain.cpu.rip + 2)
        return
    deliver_exception(vcpu, GENERAL_PROTECTION, error_code)


def invalid_opcode(vcpu: PvVcpu) -> None:
    """#UD: CPUID behind the forced emulation prefix, or the guest's."""
    try:
        if emulate_forced_cpuid(vcpu):
            _step_over(vcpu)
            return
    except FetchFault as fault:
        deliver_exception(vcpu, PAGE_FAULT, 0, fault.address)
        return
    deliver_exception(vcpu, INVALID_OPCODE)


def device_not_available(vcpu: PvVcpu) -> None:
    """#NM: CR0.TS is cleared, then the guest is told."""
    vcpu.domain.cpu.task_switched = False
    deliver_exception(vcpu, NO_DEVICE)


def debug(vcpu: PvVcpu) -> None:
    """#DB, with DR6 of the processor saying why."""
    deliver_exception(vcpu, DEBUG)


def breakpoint_trap(vcpu: PvVcpu) -> None:
    """INT3: RIP is behind it. The trap table's DPL does not count, as with Xen."""
    deliver_exception(vcpu, BREAKPOINT)


def software_interrupt(vcpu: PvVcpu, vector: int, next_rip: int) -> None:
    """INT n: allowed if the trap table's DPL says so, else #GP."""
    if vector in (BREAKPOINT, OVERFLOW):
        vcpu.domain.cpu.rip = next_rip
        deliver_exception(vcpu, vector)
        return
    flags = vcpu.trap_flags[vector]
    if flags & TRAP_DPL < (1 if vcpu.in_kernel else 3):
        deliver_exception(vcpu, GENERAL_PROTECTION, vector << 3 | XEC_IDT)
        return
    vcpu.domain.cpu.rip = next_rip
    enter_kernel(vcpu, vcpu.trap_addresses[vector], flags & TRAP_MASKS_EVENTS)


def _step_over(vcpu: PvVcpu) -> None:
    """An instruction was emulated: single-stepping goes on."""
    cpu = vcpu.domain.cpu
    rflags = cpu.rflags
    if rflags & (EFLAGS_RF | EFLAGS_TF):
        cpu.rflags = rflags & ~EFLAGS_RF
        if rflags & EFLAGS_TF:
            cpu.set_debug_register(6, cpu.debug_register(6) | DR6_SINGLE_STEP)
            deliver_exception(vcpu, DEBUG)


def syscall(vcpu: PvVcpu) -> None:
    """SYSCALL in guest user mode: RCX and R11 are as the instruction leaves them. Without a callback it is #UD."""
    cpu = vcpu.domain.cpu
    rip = cpu.rip
    if descriptor_of(vcpu, cpu.selector(Segment.CS)) & LONG:
        callback, cs = vcpu.syscall, FLAT_USER_CS64
        masks_events = callback.masks_events
    else:
        callback, cs = vcpu.syscall32, FLAT_USER_CS32
        # One flag serves both widths (switch_to_kernel of entry.S).
        masks_events = vcpu.syscall.masks_events
    if not callback.address:
        cpu.rip = rip - 2
        deliver_exception(vcpu, INVALID_OPCODE)
        return
    rflags = cpu.rflags
    cpu.rcx = rip
    cpu.r11 = rflags
    enter_kernel(vcpu, callback.address, masks_events, cs=cs, ss=FLAT_KERNEL_SS64)
    cpu.rflags &= ~EFLAGS_DF


def sysenter(vcpu: PvVcpu) -> None:
    """SYSENTER: nobody knows where it came from, so the frame says RIP and RSP 0. Without a callback it is #GP."""
    cpu = vcpu.domain.cpu
    if vcpu.in_kernel:
        vcpu.domain.crash(vcpu, "its kernel executed SYSENTER, which leaves it no stack")
    callback = vcpu.sysenter
    cpu.rip = cpu.rsp = 0
    cpu.rflags &= ~EFLAGS_NT
    if callback.address:
        enter_kernel(vcpu, callback.address, callback.masks_events, cs=NULL_CS, ss=FLAT_USER_SS32)
    else:
        flags = vcpu.trap_flags[GENERAL_PROTECTION]
        address = vcpu.trap_addresses[GENERAL_PROTECTION]
        enter_kernel(vcpu, address, flags & TRAP_MASKS_EVENTS, 0, cs=NULL_CS, ss=FLAT_USER_SS32)


def deliver_upcall(vcpu: PvVcpu) -> None:
    """To be called before the engine goes on: an event upcall or NMI if one is due."""
    if vcpu.nmi_pending and not vcpu.nmi_masked:
        vcpu.nmi_pending = False
        if vcpu.trap_addresses[NMI]:
            vcpu.nmi_masked = True
            enter_kernel(vcpu, vcpu.trap_addresses[NMI], vcpu.trap_flags[NMI] & TRAP_MASKS_EVENTS)
    info = vcpu.info
    if info[UPCALL_PENDING] and not info[UPCALL_MASK]:
        enter_kernel(vcpu, vcpu.event.address, True)


def cpuid(vcpu: PvVcpu) -> None:
    """A CPUID instruction, if the engine asks: registers get the answer, RIP stays."""
    cpuid_leaves.execute(vcpu)


def switch_in(vcpu: PvVcpu) -> None:
    """The vCPU is going to be executed; its register file is loaded (a reset one the first time)."""
    domain = vcpu.domain
    runstate.enter(vcpu, RUNSTATE_running, domain.now_ns())
    domain.cpu.load_root(vcpu.root)
    if vcpu.context is not None:
        load_registers(vcpu)
    domain.cpu.time_stamps_disabled = bool(vcpu.cr4 & CR4_TSD)
    pvclock.publish(vcpu)
    runstate.publish(vcpu)


def switch_out(vcpu: PvVcpu) -> None:
    """The vCPU has been executed; its register file is saved afterwards. Others of the domain, which wait for what it
    holds, see that it is not executed.
    """
    runstate.stand(vcpu, vcpu.domain.now_ns())
    runstate.publish(vcpu)
