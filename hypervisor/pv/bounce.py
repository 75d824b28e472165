"""Bounce frames: how a guest's kernel is entered, as by an interrupt gate, for exceptions, upcalls and system calls.

Follows create_bounce_frame (xen/arch/x86/x86_64/entry.S) and toggle_guest_mode (xen/arch/x86/pv/domain.c) of Xen 4.17.
From the top of a stack aligned to 16 bytes downwards lie SS, RSP, RFLAGS, CS with the saved upcall mask in bits 32 to
39, RIP, the error code if there is one, GS, FS, ES and DS if a return to the guest failed, R11 and RCX. IF in the
pushed RFLAGS is the upcall mask's inverse; RPL 0 in the pushed CS says that the kernel was interrupted.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import FLAT_KERNEL_CS64, FLAT_KERNEL_SS64
from hypervisor.abi.xen import VMASST_TYPE_architectural_iopl
from hypervisor.errors import GuestFault
from hypervisor.pv.canonical import U64
from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import FLAT_CODE_64, FLAT_DATA
from hypervisor.pv.layout import PAGE_SIZE
from hypervisor.pv.vcpu import UPCALL_MASK

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

EFLAGS_TF: Final = 1 << 8
EFLAGS_IF: Final = 1 << 9
EFLAGS_DF: Final = 1 << 10
EFLAGS_IOPL: Final = 3 << 12
EFLAGS_NT: Final = 1 << 14
EFLAGS_RF: Final = 1 << 16
EFLAGS_VM: Final = 1 << 17
EFLAGS_AC: Final = 1 << 18

_KEPT: Final = ~(EFLAGS_AC | EFLAGS_VM | EFLAGS_RF | EFLAGS_NT | EFLAGS_TF)
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl

_PLAIN: Final = Codec("<7Q")
_WITH_ERROR: Final = Codec("<8Q")
_FAILSAFE: Final = Codec("<11Q")

_CS: Final = Segment.CS
_SS: Final = Segment.SS


def toggle_mode(vcpu: PvVcpu) -> None:
    """The guest goes from its kernel mode to its user mode, or back: page table and GS base change."""
    domain = vcpu.domain
    cpu = domain.cpu
    if vcpu.in_kernel:
        vcpu.gs_base_kernel = cpu.gs_base
        cpu.gs_base = vcpu.gs_base_user
        domain.page_tables.toggle(vcpu, False)
        vcpu.in_kernel = False
    else:
        vcpu.gs_base_user = cpu.gs_base
        cpu.gs_base = vcpu.gs_base_kernel
        domain.page_tables.toggle(vcpu, True)
        vcpu.in_kernel = True


def load_flat(vcpu: PvVcpu) -> None:
    """CS and SS of guest kernel mode."""
    cpu = vcpu.domain.cpu
    if cpu.selector(_CS) != FLAT_KERNEL_CS64:
        cpu.load_segment(_CS, FLAT_KERNEL_CS64, FLAT_CODE_64)
    if cpu.selector(_SS) != FLAT_KERNEL_SS64:
        cpu.load_segment(_SS, FLAT_KERNEL_SS64, FLAT_DATA)


def enter_kernel(
    vcpu: PvVcpu,
    address: int,
    masks_events: int | bool,
    error_code: int | None = None,
    *,
    failsafe: bool = False,
    cs: int | None = None,
    ss: int | None = None,
) -> None:
    """Push a frame of the registers as they are and go on at `address` in kernel mode; DomainCrash if there is no
    address, or no room for the frame.

    masks_events: upcalls are masked from now on. cs, ss: pushed in the place of the selectors in the processor.
    """
    domain = vcpu.domain
    cpu = domain.cpu
    if cs is None:
        cs = cpu.selector(_CS)
    if ss is None:
        ss = cpu.selector(_SS)
    rsp = cpu.rsp
    if vcpu.in_kernel:
        top = rsp & ~15
        cs &= ~3
    else:
        toggle_mode(vcpu)
        top = vcpu.kernel_sp & ~15
    rflags = cpu.rflags
    info = vcpu.info
    mask = info[UPCALL_MASK]
    pushed = rflags & ~EFLAGS_IF if mask else rflags | EFLAGS_IF
    if domain.vm_assist & _ARCHITECTURAL_IOPL:
        pushed |= vcpu.iopl
    cs |= mask << 32
    if not address:
        domain.crash(vcpu, "no handler is registered for what its kernel is to be told")
    if failsafe:
        frame = _FAILSAFE.pack(
            cpu.rcx,
            cpu.r11,
            cpu.selector(Segment.DS),
            cpu.selector(Segment.ES),
            cpu.selector(Segment.FS),
            cpu.selector(Segment.GS),
            cpu.rip,
            cs,
            pushed,
            rsp,
            ss,
        )
    elif error_code is None:
        frame = _PLAIN.pack(cpu.rcx, cpu.r11, cpu.rip, cs, pushed, rsp, ss)
    else:
        frame = _WITH_ERROR.pack(cpu.rcx, cpu.r11, error_code, cpu.rip, cs, pushed, rsp, ss)
    bottom = top - len(frame) & U64
    _push(vcpu, bottom, frame)
    if masks_events:
        info[UPCALL_MASK] = mask | 1
    cpu.rsp = bottom
    cpu.rip = address
    cpu.rflags = rflags & _KEPT
    load_flat(vcpu)


def _push(vcpu: PvVcpu, bottom: int, frame: bytes) -> None:
    domain = vcpu.domain
    page_tables = domain.page_tables
    size = len(frame)
    if bottom % PAGE_SIZE <= PAGE_SIZE - size:
        machine = page_tables.translate(vcpu.kernel_root, bottom, True)
        if machine >= 0:
            domain.memory.octets[machine : machine + size] = frame
            return
    else:
        try:
            page_tables.write(vcpu.kernel_root, bottom, frame)
        except GuestFault:
            pass
        else:
            return
    domain.crash(vcpu, f"its kernel stack at {bottom:#x} cannot take a frame of {size} bytes")
