"""vm_assist: what a domain asks its hypervisor to do for it, or differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import (
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)
from hypervisor.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.pv.vcpu import PvVcpu

VALID_ASSISTS: Final = (
    1 << VMASST_TYPE_4gb_segments
    | 1 << VMASST_TYPE_4gb_segments_notify
    | 1 << VMASST_TYPE_writable_pagetables
    | 1 << VMASST_TYPE_pae_extended_cr3
    | 1 << VMASST_TYPE_architectural_iopl
    | 1 << VMASST_TYPE_runstate_update_flag
    | 1 << VMASST_TYPE_m2p_strict
)
"""Those for segments of 4 GiB and for CR3 of PAE mean nothing to 64-bit guests, but Xen takes them."""
ASSIST_BITS: Final = 64


def vm_assist(vcpu: PvVcpu, command: int, kind: int) -> int:
    """The hypercall."""
    if kind >= ASSIST_BITS or not VALID_ASSISTS >> kind & 1:
        raise InvalidArgument("vm_assist type", kind, "VMASST_TYPE_* of 64-bit guests")
    domain = vcpu.domain
    if command == VMASST_CMD_enable:
        set_assists(domain, domain.vm_assist | 1 << kind)
    elif command == VMASST_CMD_disable:
        set_assists(domain, domain.vm_assist & ~(1 << kind))
    else:
        raise Unsupported(f"vm_assist command {command}")
    return 0


def set_assists(domain: PvDomain, assists: int) -> None:
    """All at once, one bit each."""
    domain.vm_assist = assists
    domain.page_tables.strict_m2p = bool(assists >> VMASST_TYPE_m2p_strict & 1)
