"""The operations that the ABI knows, whether this Xen implements them or not: hypercall by hypercall."""

from collections.abc import Mapping
from typing import Final

from hypervisor.abi import (
    callback,
    domctl,
    event_channel,
    grant_table,
    hvm_op,
    memory,
    mmu,
    physdev,
    sched,
    sysctl,
    vcpu,
    version,
    xen,
)
from hypervisor.abi.names import names

HYPERCALLS: Final[Mapping[int, str]] = names(xen, "HYPERVISOR_")
"""The name of each hypercall by its number: 12 is memory_op."""

OPERATIONS: Final[Mapping[str, Mapping[int, str]]] = {
    "callback_op": names(callback, "CALLBACKOP_"),
    "console_io": names(xen, "CONSOLEIO_"),
    "domctl": names(domctl, "XEN_DOMCTL_", but="[A-Z]"),
    "event_channel_op": names(event_channel, "EVTCHNOP_"),
    "grant_table_op": names(grant_table, "GNTTABOP_"),
    "hvm_op": names(hvm_op, "HVMOP_", but="altp2m_|[A-Z]"),
    "memory_op": names(memory, "XENMEM_", but=r"[A-Z]|\w+_op_|resource_"),
    "mmuext_op": names(mmu, "MMUEXT_"),
    "physdev_op": names(physdev, "PHYSDEVOP_", but="[A-Z]"),
    "sched_op": names(sched, "SCHEDOP_"),
    "sysctl": names(sysctl, "XEN_SYSCTL_", but="[A-Z]"),
    "vcpu_op": names(vcpu, "VCPUOP_"),
    "vm_assist": names(xen, "VMASST_CMD_"),
    "xen_version": names(version, "XENVER_"),
}
"""The name of each operation by its number, for the hypercalls that have operations of their own."""
