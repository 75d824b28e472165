"""The hypercalls of the PV CPU interface, all local to the domain's process. Arguments come masked to their widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import xen
from hypervisor.abi.physdev import (
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    physdev_set_iobitmap,
    physdev_set_iopl,
)
from hypervisor.continuation import Continuation
from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.pv.callbacks import callback_op, nmi_op, set_callbacks, set_trap_table
from hypervisor.pv.debug import get_debugreg, set_debugreg
from hypervisor.pv.iret import iret
from hypervisor.pv.port_io import IOPL_SHIFT
from hypervisor.pv.segments import set_gdt, set_segment_base, update_descriptor
from hypervisor.pv.timers import set_timer_op
from hypervisor.pv.vcpu_op import vcpu_op
from hypervisor.pv.vm_assist import vm_assist

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

PORTS: Final = 65536


def stack_switch(vcpu: PvVcpu, ss: int, sp: int) -> int:
    """stack_switch: where frames go that come from user mode. It is looked at when it is used."""
    vcpu.kernel_ss = ss | 3
    vcpu.kernel_sp = sp
    return 0


def fpu_taskswitch(vcpu: PvVcpu, is_set: int) -> int:
    """fpu_taskswitch: CR0.TS."""
    vcpu.domain.cpu.task_switched = bool(is_set)
    return 0


def physdev_op(vcpu: PvVcpu, command: int, arg: int) -> int:
    """physdev_op, as far as a domain without devices has it: its own privilege to use ports."""
    read, root = vcpu.domain.page_tables.read, vcpu.kernel_root
    if command == PHYSDEVOP_set_iopl:
        level = physdev_set_iopl.unpack(read(root, arg, physdev_set_iopl.size)).iopl
        if level > 3:
            raise InvalidArgument("iopl", level, "0 to 3")
        vcpu.iopl = level << IOPL_SHIFT
    elif command == PHYSDEVOP_set_iobitmap:
        request = physdev_set_iobitmap.unpack(read(root, arg, physdev_set_iobitmap.size))
        if request.nr_ports > PORTS:
            raise InvalidArgument("nr_ports", request.nr_ports, f"at most {PORTS}")
        vcpu.iobmp = request.bitmap
        vcpu.iobmp_ports = request.nr_ports
    else:
        raise Unsupported(f"physdev_op {command}")
    return 0


CPU_HYPERCALLS: Final[Mapping[int, Callable[..., int | Continuation]]] = MappingProxyType(
    {
        xen.HYPERVISOR_set_trap_table: set_trap_table,
        xen.HYPERVISOR_set_gdt: set_gdt,
        xen.HYPERVISOR_stack_switch: stack_switch,
        xen.HYPERVISOR_set_callbacks: set_callbacks,
        xen.HYPERVISOR_fpu_taskswitch: fpu_taskswitch,
        xen.HYPERVISOR_set_debugreg: set_debugreg,
        xen.HYPERVISOR_get_debugreg: get_debugreg,
        xen.HYPERVISOR_update_descriptor: update_descriptor,
        xen.HYPERVISOR_set_timer_op: set_timer_op,
        xen.HYPERVISOR_vm_assist: vm_assist,
        xen.HYPERVISOR_iret: iret,
        xen.HYPERVISOR_vcpu_op: vcpu_op,
        xen.HYPERVISOR_set_segment_base: set_segment_base,
        xen.HYPERVISOR_nmi_op: nmi_op,
        xen.HYPERVISOR_callback_op: callback_op,
        xen.HYPERVISOR_physdev_op: physdev_op,
    }
)
"""number -> handler(vcpu, *args), which raises XenError"""
