"""What a vCPU of a native domain starts with: XEN_DOMCTL_setvcpucontext and getvcpucontext.

Follows arch_set_info_guest (xen/arch/x86/domain.c) for 64-bit PV guests. Whatever is an address must be canonical,
whatever is a frame the domain's own memory; the domain's process validates page tables and descriptors when it
starts. A context is set before the domain is unpaused for the first time, and told again as it was set.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import (
    FIRST_RESERVED_GDT_ENTRY,
    VGCF_online,
    vcpu_guest_context,
)
from hypervisor.abi.errno import XEN_ENODATA
from hypervisor.errors import BadGpfn, Busy, InvalidArgument, NoSuchDomain, Unsupported
from hypervisor.extent import PAGE_SHIFT, PAGE_SIZE
from hypervisor.lifecycle import Life

if TYPE_CHECKING:
    from hypervisor.abi.domctl import xen_domctl_vcpucontext
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

LDT_ENTRIES: Final = 8192
GDT_ENTRIES_PER_FRAME: Final = 512
CR3: Final = 3
USER_CR3: Final = 1  # where vcpu_guest_context has the page table of user mode
_UPPER_HALF: Final = (1 << 64) - (1 << 47)


def set_context(caller: Vcpu, domain: Domain, request: xen_domctl_vcpucontext) -> None:
    """Take over the context that the caller has prepared; without one, the vCPU has nothing to execute.
    InvalidArgument, BadGpfn, Busy, and nothing has changed.
    """
    vcpu = _vcpu(domain, request.vcpu)
    if domain.life is not Life.CREATED:
        raise Busy(f"vcpu {vcpu.id} of domain {domain.domid}: the domain has been started")
    if not request.ctxt:
        vcpu.context = None
        vcpu.initialised = vcpu.online = False
        return
    context = caller.access.read_struct(vcpu_guest_context, request.ctxt)
    _check_addresses(context)
    _check_frames(domain, context)
    vcpu.context = context
    vcpu.initialised = True
    vcpu.online = bool(context.flags & VGCF_online)


def get_context(caller: Vcpu, domain: Domain, request: xen_domctl_vcpucontext) -> None:
    """Write the context to where the caller wants it. InvalidArgument (ENODATA) if the vCPU has none."""
    vcpu = _vcpu(domain, request.vcpu)
    if vcpu.context is None:
        raise InvalidArgument("vcpu", vcpu.id, "an initialised one", errno=XEN_ENODATA)
    caller.access.write_struct(request.ctxt, vcpu.context)


def _vcpu(domain: Domain, vcpu_id: int) -> Vcpu:
    if not domain.traits.pv:
        raise Unsupported("the context of a vCPU that no native kernel runs on", known=True)
    if vcpu_id >= domain.traits.max_vcpus:
        raise InvalidArgument("vcpu", vcpu_id, f"below {domain.traits.max_vcpus}")
    if vcpu_id >= len(domain.vcpus):
        raise NoSuchDomain(domain.domid)  # -ESRCH: the vCPU does not exist yet
    return domain.vcpus[vcpu_id]


def _check_addresses(context: vcpu_guest_context) -> None:
    regs = context.user_regs
    named = {
        "rip": regs.rip,
        "rsp": regs.rsp,
        "kernel_sp": context.kernel_sp,
        "ldt_base": context.ldt_base if context.ldt_ents else 0,
        "event_callback_eip": context.event_callback_eip,
        "failsafe_callback_eip": context.failsafe_callback_eip,
        "syscall_callback_eip": context.syscall_callback_eip,
        "fs_base": context.fs_base,
        "gs_base_kernel": context.gs_base_kernel,
        "gs_base_user": context.gs_base_user,
    }
    traps = (("trap_ctxt", trap.address) for trap in context.trap_ctxt)
    for name, address in chain(named.items(), traps):
        if not (address < 1 << 47 or address >= _UPPER_HALF):
            raise InvalidArgument(name, hex(address), "a canonical address")
    if context.ldt_ents > LDT_ENTRIES or (context.ldt_ents and context.ldt_base % PAGE_SIZE):
        ldt = (hex(context.ldt_base), context.ldt_ents)
        raise InvalidArgument("ldt", ldt, f"the start of a page, at most {LDT_ENTRIES} entries")
    if context.gdt_ents > FIRST_RESERVED_GDT_ENTRY:
        raise InvalidArgument("gdt_ents", context.gdt_ents, f"at most {FIRST_RESERVED_GDT_ENTRY}")


def _check_frames(domain: Domain, context: vcpu_guest_context) -> None:
    gdt_frames = -(-context.gdt_ents // GDT_ENTRIES_PER_FRAME)
    frames = [context.ctrlreg[CR3] >> PAGE_SHIFT, *context.gdt_frames[:gdt_frames]]
    if context.ctrlreg[USER_CR3]:
        frames.append(context.ctrlreg[USER_CR3] >> PAGE_SHIFT)
    for mfn in frames:
        if domain.memory.ram_page(mfn) is None:
            raise BadGpfn(domain.domid, mfn, "no RAM of its own there")
