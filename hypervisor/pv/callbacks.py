"""Where a guest's kernel wants to be entered: set_trap_table, set_callbacks, callback_op, nmi_op.

Follows xen/arch/x86/pv/callback.c of Xen 4.17. Every address is canonical; the code segment that a guest names does not
count, since its kernel is always entered with the hypervisor's flat one.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import FLAT_KERNEL_CS64, trap_info
from hypervisor.abi.callback import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    callback_register,
    callback_unregister,
)
from hypervisor.abi.nmi import XENNMI_register_callback, XENNMI_unregister_callback, xennmi_callback
from hypervisor.abi.xen import HYPERVISOR_set_trap_table
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.pv.canonical import U64, is_canonical
from hypervisor.pv.vcpu import VECTORS

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import Callback, PvVcpu

NMI: Final = 2
MASKS_EVENTS: Final = 4

_TRAP: Final = Codec("<BBHxxxxQ")


def set_trap_table(vcpu: PvVcpu, traps: int) -> int | Continuation:
    """The hypercall: trap_info structs from guest address `traps` on, to one with address 0; without a table, forget
    all.
    """
    if not traps:
        for table in (vcpu.trap_addresses, vcpu.trap_flags, vcpu.trap_selectors):
            table[:] = [0] * VECTORS
        return 0
    read, root = vcpu.domain.page_tables.read, vcpu.kernel_root
    for _ in range(SLICE_STEPS):
        vector, flags, selector, address = _TRAP.unpack(read(root, traps, _TRAP.size))
        if not address:
            return 0
        set_trap(vcpu, vector, flags, selector, address)
        traps = traps + _TRAP.size & U64
    return Continuation(HYPERVISOR_set_trap_table, (traps,))


def set_trap(vcpu: PvVcpu, vector: int, flags: int, selector: int, address: int) -> None:
    """One entry."""
    vcpu.trap_addresses[vector] = _checked(address)
    vcpu.trap_flags[vector] = flags
    vcpu.trap_selectors[vector] = selector | 3


def set_callbacks(vcpu: PvVcpu, event: int, failsafe: int, syscall: int) -> int:
    """The hypercall: three callbacks that mask no events (an upcall does anyway). Bad addresses are passed over, as
    with Xen.
    """
    for callback, address in ((vcpu.event, event), (vcpu.failsafe, failsafe), (vcpu.syscall, syscall)):
        if is_canonical(address):
            callback.address = address
            callback.masks_events = False
    return 0


def callback_op(vcpu: PvVcpu, command: int, arg: int) -> int:
    """The hypercall."""
    read, root = vcpu.domain.page_tables.read, vcpu.kernel_root
    if command == CALLBACKOP_register:
        _register(vcpu, callback_register.unpack(read(root, arg, callback_register.size)))
    elif command == CALLBACKOP_unregister:
        _unregister(vcpu, callback_unregister.unpack(read(root, arg, callback_unregister.size)).type)
    else:
        raise Unsupported(f"callback_op {command}")
    return 0


def _register(vcpu: PvVcpu, request: callback_register) -> None:
    address = _checked(request.address)
    if request.type == CALLBACKTYPE_nmi:
        _set_nmi(vcpu, address)
        return
    callback = _callback(vcpu, request.type)
    callback.address = address
    callback.masks_events = bool(request.flags & CALLBACKF_mask_events)


def _unregister(vcpu: PvVcpu, kind: int) -> None:
    """Only that for NMIs can be taken back."""
    if kind == CALLBACKTYPE_nmi:
        _clear_nmi(vcpu)
        return
    _callback(vcpu, kind)
    raise InvalidArgument("callback type", kind, "one that can be unregistered")


def _callback(vcpu: PvVcpu, kind: int) -> Callback:
    callbacks = {
        CALLBACKTYPE_event: vcpu.event,
        CALLBACKTYPE_failsafe: vcpu.failsafe,
        CALLBACKTYPE_syscall: vcpu.syscall,
        CALLBACKTYPE_syscall32: vcpu.syscall32,
        CALLBACKTYPE_sysenter: vcpu.sysenter,
    }
    if kind not in callbacks:
        raise Unsupported(f"callback type {kind}")
    return callbacks[kind]


def nmi_op(vcpu: PvVcpu, command: int, arg: int) -> int:
    """The hypercall: register or unregister the handler of NMIs."""
    if command == XENNMI_register_callback:
        data = vcpu.domain.page_tables.read(vcpu.kernel_root, arg, xennmi_callback.size)
        _set_nmi(vcpu, _checked(xennmi_callback.unpack(data).handler_address))
    elif command == XENNMI_unregister_callback:
        _clear_nmi(vcpu)
    else:
        raise Unsupported(f"nmi_op {command}")
    return 0


def _set_nmi(vcpu: PvVcpu, address: int) -> None:
    vcpu.trap_addresses[NMI] = address
    vcpu.trap_flags[NMI] = MASKS_EVENTS
    vcpu.trap_selectors[NMI] = FLAT_KERNEL_CS64


def _clear_nmi(vcpu: PvVcpu) -> None:
    vcpu.trap_addresses[NMI] = vcpu.trap_flags[NMI] = vcpu.trap_selectors[NMI] = 0


def _checked(address: int) -> int:
    if not is_canonical(address):
        raise InvalidArgument("handler", hex(address), "a canonical address")
    return address


assert _TRAP.size == trap_info.size
