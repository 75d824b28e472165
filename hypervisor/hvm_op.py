"""hvm_op: the parameters of an auto-translated domain, through which it finds its store and its console.

Follows xen/arch/x86/hvm/hvm.c. The toolstack says where the rings of a domain are when it builds it; the
guest reads it. What a guest may set or read by itself is Xen's list. The values are the guest's and the
toolstack's business: none is acted upon here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi import hvm_params as params
from hypervisor.abi.hvm_op import HVMOP_set_param, xen_hvm_param
from hypervisor.errors import AlreadyExists, InvalidArgument, NotPermitted
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

WRITABLE: Final = frozenset(
    {
        params.HVM_PARAM_CALLBACK_IRQ,
        params.HVM_PARAM_VM86_TSS,
        params.HVM_PARAM_VM86_TSS_SIZED,
        params.HVM_PARAM_ACPI_IOPORTS_LOCATION,
        params.HVM_PARAM_VM_GENERATION_ID_ADDR,
        params.HVM_PARAM_STORE_EVTCHN,
        params.HVM_PARAM_CONSOLE_EVTCHN,
        params.HVM_PARAM_X87_FIP_WIDTH,
    }
)
"""what a guest may set for itself"""

READABLE: Final = WRITABLE | {
    params.HVM_PARAM_STORE_PFN,
    params.HVM_PARAM_CONSOLE_PFN,
    params.HVM_PARAM_ALTP2M,
}
"""what a guest may read of itself"""

DEPRECATED: Final = frozenset(
    {
        params.HVM_PARAM_PAE_ENABLED,
        params.HVM_PARAM_DM_DOMAIN,
        params.HVM_PARAM_MEMORY_EVENT_CR0,
        params.HVM_PARAM_MEMORY_EVENT_CR3,
        params.HVM_PARAM_MEMORY_EVENT_CR4,
        params.HVM_PARAM_MEMORY_EVENT_INT3,
        params.HVM_PARAM_NESTEDHVM,
        params.HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
        params.HVM_PARAM_BUFIOREQ_EVTCHN,
        params.HVM_PARAM_MEMORY_EVENT_MSR,
    }
)
"""neither set nor read by anybody"""

SET_ONCE: Final = frozenset(
    {
        params.HVM_PARAM_VIRIDIAN,
        params.HVM_PARAM_IOREQ_PFN,
        params.HVM_PARAM_BUFIOREQ_PFN,
        params.HVM_PARAM_IOREQ_SERVER_PFN,
        params.HVM_PARAM_NR_IOREQ_SERVER_PAGES,
        params.HVM_PARAM_ALTP2M,
        params.HVM_PARAM_MCA_CAP,
    }
)


def hvm_op(caller: Vcpu, operation: int, arg: int) -> int:
    """The hypercall: `arg` is the guest address of a xen_hvm_param; the value that is read goes there."""
    memory = caller.access
    request = memory.read_struct(xen_hvm_param, arg)
    if request.index >= params.HVM_NR_PARAMS or request.index in DEPRECATED:
        raise InvalidArgument("hvm param", request.index, "a parameter in use")
    domain = caller.domain.machine.resolve(caller.domain, request.domid)
    may_target(caller.domain, domain, "look at the parameters of")
    if domain.traits.pv:
        raise InvalidArgument("domain", domain.domid, "one that is auto-translated")
    if operation == HVMOP_set_param:
        _set(caller.domain, domain, request.index, request.value)
    else:
        request.value = _get(caller.domain, domain, request.index)
        memory.write_struct(arg, request)
    return 0


def _set(caller: Domain, domain: Domain, index: int, value: int) -> None:
    if caller is domain and index not in WRITABLE:
        raise NotPermitted(caller.domid, f"set its HVM parameter {index}")
    before = domain.hvm_params.get(index, 0)
    if index in SET_ONCE and before not in (0, value):
        raise AlreadyExists(f"HVM parameter {index} of domain {domain.domid}")
    domain.hvm_params[index] = value


def _get(caller: Domain, domain: Domain, index: int) -> int:
    if caller is domain and index not in READABLE:
        raise NotPermitted(caller.domid, f"read its HVM parameter {index}")
    return domain.hvm_params.get(index, 0)
