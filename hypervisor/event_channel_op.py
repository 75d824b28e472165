"""event_channel_op: the structs of public/event_channel.h, from and to guest memory, around
event_channels.py.

Follows do_event_channel_op of Xen 4.17, but where a result is to be written back, the place is checked before
anything is changed: a guest that passes a read-only struct loses no port by it. The FIFO ABI is not offered
(-ENOSYS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_status,
)
from hypervisor.abi.xen import DOMID_SELF, __HYPERVISOR_event_channel_op
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.event_channel import ChannelState
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

_ALLOC_UNBOUND_PORT: Final = evtchn_alloc_unbound.offsets["port"]
_BIND_INTERDOMAIN_PORT: Final = evtchn_bind_interdomain.offsets["local_port"]
_BIND_VIRQ_PORT: Final = evtchn_bind_virq.offsets["port"]
_BIND_IPI_PORT: Final = evtchn_bind_ipi.offsets["port"]


def event_channel_op(caller: Vcpu, operation: int, arg: int) -> int | Continuation:
    """The hypercall: `arg` is the guest address of the operation's struct."""
    domain = caller.domain
    if operation == EVTCHNOP_send:
        domain.events.send(caller.access.read_u32(arg))
        return 0
    handler = _OPERATIONS.get(operation)
    if handler is None:
        raise Unsupported(f"event_channel_op {operation}")
    return handler(caller, arg)


def _target(domain: Domain, domid: int, what: str) -> Domain:
    target = domain.machine.resolve(domain, domid)
    may_target(domain, target, what)
    return target


def _alloc_unbound(caller: Vcpu, arg: int) -> int:
    domain, memory = caller.domain, caller.access
    request = memory.read_struct(evtchn_alloc_unbound, arg)
    memory.check_writable(arg, evtchn_alloc_unbound.size)
    target = _target(domain, request.dom, "allocate an event channel of")
    remote = domain.domid if request.remote_dom == DOMID_SELF else request.remote_dom
    memory.write_u32(arg + _ALLOC_UNBOUND_PORT, target.events.alloc_unbound(remote))
    return 0


def _bind_interdomain(caller: Vcpu, arg: int) -> int:
    domain, memory = caller.domain, caller.access
    request = memory.read_struct(evtchn_bind_interdomain, arg)
    memory.check_writable(arg, evtchn_bind_interdomain.size)
    remote = domain.machine.resolve(domain, request.remote_dom)
    port = domain.events.bind_interdomain(remote.events, request.remote_port)
    memory.write_u32(arg + _BIND_INTERDOMAIN_PORT, port)
    return 0


def _bind_virq(caller: Vcpu, arg: int) -> int:
    domain, memory = caller.domain, caller.access
    request = memory.read_struct(evtchn_bind_virq, arg)
    memory.check_writable(arg, evtchn_bind_virq.size)
    memory.write_u32(arg + _BIND_VIRQ_PORT, domain.events.bind_virq(request.virq, request.vcpu))
    return 0


def _bind_ipi(caller: Vcpu, arg: int) -> int:
    domain, memory = caller.domain, caller.access
    request = memory.read_struct(evtchn_bind_ipi, arg)
    memory.check_writable(arg, evtchn_bind_ipi.size)
    memory.write_u32(arg + _BIND_IPI_PORT, domain.events.bind_ipi(request.vcpu))
    return 0


def _bind_vcpu(caller: Vcpu, arg: int) -> int:
    request = caller.access.read_struct(evtchn_bind_vcpu, arg)
    caller.domain.events.bind_vcpu(request.port, request.vcpu)
    return 0


def _close(caller: Vcpu, arg: int) -> int:
    caller.domain.events.close(caller.access.read_u32(arg))
    return 0


def _unmask(caller: Vcpu, arg: int) -> int:
    caller.domain.events.unmask(caller.access.read_u32(arg))
    return 0


def _status(caller: Vcpu, arg: int) -> int:
    domain, memory = caller.domain, caller.access
    answer = memory.read_struct(evtchn_status, arg)
    target = _target(domain, answer.dom, "ask for an event channel of")
    status = target.events.status(answer.port)
    answer.status = status.status
    answer.vcpu = status.vcpu_id
    if status.status == ChannelState.UNBOUND:
        answer.u.unbound.dom = status.domid
    elif status.status == ChannelState.INTERDOMAIN:
        answer.u.interdomain.dom = status.domid
        answer.u.interdomain.port = status.port
    elif status.status == ChannelState.VIRQ:
        answer.u.virq = status.virq
    memory.write_struct(arg, answer)
    return 0


def _reset(caller: Vcpu, arg: int, *, resuming: bool = False) -> int | Continuation:
    domain = caller.domain
    target = _target(domain, caller.access.read_u16(arg), "reset the event channels of")
    if target is not domain and not target.pause_count:
        raise InvalidArgument("domain to reset", target.domid, "a paused one")
    if target.events.reset(SLICE_STEPS, resuming=resuming):
        return 0
    return Continuation(__HYPERVISOR_event_channel_op, (EVTCHNOP_reset_cont, arg))


def _reset_cont(caller: Vcpu, arg: int) -> int | Continuation:
    return _reset(caller, arg, resuming=True)


_OPERATIONS: Final[Mapping[int, Callable[[Vcpu, int], int | Continuation]]] = MappingProxyType(
    {
        EVTCHNOP_alloc_unbound: _alloc_unbound,
        EVTCHNOP_bind_interdomain: _bind_interdomain,
        EVTCHNOP_bind_virq: _bind_virq,
        EVTCHNOP_bind_ipi: _bind_ipi,
        EVTCHNOP_bind_vcpu: _bind_vcpu,
        EVTCHNOP_close: _close,
        EVTCHNOP_status: _status,
        EVTCHNOP_unmask: _unmask,
        EVTCHNOP_reset: _reset,
        EVTCHNOP_reset_cont: _reset_cont,
    }
)
