"""Who may do what: one table, looked at in front of every operation.

Follows the default policy of Xen (xen/include/xsm/dummy.h). The boundary looks an operation up and
refuses it to a caller that may not do it to anybody; a handler whose operation names a target then passes
it through `may_target`, which refuses other domains than the caller itself to all but control domains.
What the table does not list is not implemented: -ENOSYS.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import (
    domctl,
    event_channel,
    grant_table,
    hvm_op,
    memory,
    sched,
    sysctl,
    vcpu,
    version,
    xen,
)
from hypervisor.errors import NotPermitted

if TYPE_CHECKING:
    from hypervisor.domain import Domain


class Who(Enum):
    """Who may call an operation."""

    ANY = "any domain"
    TARGET = "any domain on itself, control domains on others"
    CONTROL = "control domains"


NO_OPERATION: Final = 0
"""the key of a hypercall whose first argument is no operation; those of domctl and sysctl stand in guest
memory
"""


def _each(who: Who, *operations: int) -> dict[int, Who]:
    return dict.fromkeys(operations, who)


PRIVILEGES: Final[Mapping[int, Mapping[int, Who]]] = MappingProxyType(
    {
        xen.__HYPERVISOR_multicall: _each(Who.ANY, NO_OPERATION),
        xen.__HYPERVISOR_set_timer_op: _each(Who.ANY, NO_OPERATION),
        xen.__HYPERVISOR_domctl: _each(
            Who.CONTROL,
            NO_OPERATION,
            domctl.XEN_DOMCTL_createdomain,
            domctl.XEN_DOMCTL_destroydomain,
            domctl.XEN_DOMCTL_pausedomain,
            domctl.XEN_DOMCTL_unpausedomain,
            domctl.XEN_DOMCTL_resumedomain,
            domctl.XEN_DOMCTL_getdomaininfo,
            domctl.XEN_DOMCTL_getvcpuinfo,
            domctl.XEN_DOMCTL_setvcpucontext,
            domctl.XEN_DOMCTL_getvcpucontext,
            domctl.XEN_DOMCTL_hypercall_init,
            domctl.XEN_DOMCTL_max_vcpus,
            domctl.XEN_DOMCTL_scheduler_op,
            domctl.XEN_DOMCTL_max_mem,
            domctl.XEN_DOMCTL_setdomainhandle,
        ),
        xen.__HYPERVISOR_sysctl: _each(
            Who.CONTROL,
            NO_OPERATION,
            sysctl.XEN_SYSCTL_physinfo,
            sysctl.XEN_SYSCTL_sched_id,
            sysctl.XEN_SYSCTL_getdomaininfolist,
            sysctl.XEN_SYSCTL_scheduler_op,
        ),
        xen.__HYPERVISOR_console_io: _each(Who.ANY, xen.CONSOLEIO_write)
        | _each(Who.CONTROL, xen.CONSOLEIO_read),
        xen.__HYPERVISOR_xen_version: _each(
            Who.ANY,
            version.XENVER_version,
            version.XENVER_extraversion,
            version.XENVER_compile_info,
            version.XENVER_capabilities,
            version.XENVER_changeset,
            version.XENVER_platform_parameters,
            version.XENVER_get_features,
            version.XENVER_pagesize,
            version.XENVER_guest_handle,
            version.XENVER_commandline,
        )
        | _each(Who.CONTROL, version.XENVER_build_id),
        xen.__HYPERVISOR_memory_op: _each(
            Who.TARGET,
            memory.XENMEM_increase_reservation,
            memory.XENMEM_decrease_reservation,
            memory.XENMEM_populate_physmap,
            memory.XENMEM_current_reservation,
            memory.XENMEM_maximum_reservation,
            memory.XENMEM_maximum_gpfn,
            memory.XENMEM_set_memory_map,
            memory.XENMEM_add_to_physmap,
            memory.XENMEM_add_to_physmap_batch,
            memory.XENMEM_remove_from_physmap,
        )
        | _each(Who.ANY, memory.XENMEM_maximum_ram_page, memory.XENMEM_memory_map),
        xen.__HYPERVISOR_hvm_op: _each(Who.TARGET, hvm_op.HVMOP_set_param, hvm_op.HVMOP_get_param),
        xen.__HYPERVISOR_event_channel_op: _each(
            Who.ANY,
            event_channel.EVTCHNOP_bind_interdomain,
            event_channel.EVTCHNOP_bind_virq,
            event_channel.EVTCHNOP_bind_ipi,
            event_channel.EVTCHNOP_bind_vcpu,
            event_channel.EVTCHNOP_close,
            event_channel.EVTCHNOP_send,
            event_channel.EVTCHNOP_unmask,
        )
        | _each(
            Who.TARGET,
            event_channel.EVTCHNOP_alloc_unbound,
            event_channel.EVTCHNOP_status,
            event_channel.EVTCHNOP_reset,
            event_channel.EVTCHNOP_reset_cont,
        ),
        xen.__HYPERVISOR_grant_table_op: _each(
            Who.ANY,
            grant_table.GNTTABOP_map_grant_ref,
            grant_table.GNTTABOP_unmap_grant_ref,
            grant_table.GNTTABOP_copy,
            grant_table.GNTTABOP_swap_grant_ref,
            grant_table.GNTTABOP_set_version,
        )
        | _each(
            Who.TARGET,
            grant_table.GNTTABOP_setup_table,
            grant_table.GNTTABOP_query_size,
            grant_table.GNTTABOP_get_version,
        ),
        xen.__HYPERVISOR_sched_op: _each(
            Who.ANY,
            sched.SCHEDOP_yield,
            sched.SCHEDOP_block,
            sched.SCHEDOP_poll,
            sched.SCHEDOP_shutdown,
            sched.SCHEDOP_shutdown_code,
            sched.SCHEDOP_watchdog,
        )
        | _each(Who.CONTROL, sched.SCHEDOP_remote_shutdown),
        xen.__HYPERVISOR_vcpu_op: _each(
            Who.ANY,
            vcpu.VCPUOP_up,
            vcpu.VCPUOP_down,
            vcpu.VCPUOP_is_up,
            vcpu.VCPUOP_get_runstate_info,
            vcpu.VCPUOP_set_periodic_timer,
            vcpu.VCPUOP_stop_periodic_timer,
            vcpu.VCPUOP_set_singleshot_timer,
            vcpu.VCPUOP_stop_singleshot_timer,
            vcpu.VCPUOP_register_vcpu_info,
            vcpu.VCPUOP_register_runstate_memory_area,
            vcpu.VCPUOP_register_vcpu_time_memory_area,
        ),
    }
)


def may_target(caller: Domain, target: Domain, what: str) -> None:
    """NotPermitted unless the caller does it to itself or is a control domain."""
    if target is not caller and not caller.privileged:
        raise NotPermitted(caller.domid, f"{what} domain {target.domid}")
