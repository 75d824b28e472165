"""Hypercalls of a native guest that the machine-wide core answers, and what this process does before and after.

Most travel as they are: the core reads their arguments by the guest's page tables. Where the guest's numbers mean
something here, the process asks with arguments of its own, in its argument page, as an auto-translated guest does:
frames to populate get local machine frame numbers, grants appear in the window for foreign frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypervisor.abi import event_channel as evtchn
from hypervisor.abi.event_channel import (
    evtchn_bind_ipi,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_close,
)
from hypervisor.abi.xen import HYPERVISOR_event_channel_op, HYPERVISOR_xen_version
from hypervisor.pv.grants import grant_table_op
from hypervisor.pv.reservation import memory_op

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

__all__ = ["ask", "event_channel_op", "forward", "grant_table_op", "memory_op", "xen_version"]

U32_BYTES: Final = 4


def ask(vcpu: PvVcpu, number: int, *args: int) -> int:
    """The machine-wide core's answer; addresses are the guest's."""
    return vcpu.domain.hypervisor.request(number, args, vcpu.kernel_root, vcpu.id)


def forward(number: int) -> Callable[..., int]:
    """A handler that does nothing but ask."""

    def handler(vcpu: PvVcpu, *args: int) -> int:
        return ask(vcpu, number, *args)

    return handler


def event_channel_op(vcpu: PvVcpu, operation: int, arg: int) -> int:
    """Events for others ring, IPIs and masks are local; what is bound to which vCPU is learnt from answers."""
    domain = vcpu.domain
    ports, read, root = domain.ports, domain.page_tables.read, vcpu.kernel_root
    if operation == evtchn.EVTCHNOP_send:
        if ports.send(int.from_bytes(read(root, arg, U32_BYTES), "little")):
            return 0
    elif operation == evtchn.EVTCHNOP_unmask:
        port = int.from_bytes(read(root, arg, U32_BYTES), "little")
        result = ask(vcpu, HYPERVISOR_event_channel_op, operation, arg)
        if not result:
            ports.unmask(port)
        return result
    result = ask(vcpu, HYPERVISOR_event_channel_op, operation, arg)
    learn = _LEARN.get(operation)
    if learn is not None and not result:
        learn(vcpu, arg)
    return result


def _learn_virq(vcpu: PvVcpu, arg: int) -> None:
    domain = vcpu.domain
    bound = evtchn_bind_virq.unpack(domain.page_tables.read(vcpu.kernel_root, arg, evtchn_bind_virq.size))
    domain.ports.bound_virq(bound.port, bound.virq, bound.vcpu)


def _learn_ipi(vcpu: PvVcpu, arg: int) -> None:
    domain = vcpu.domain
    bound = evtchn_bind_ipi.unpack(domain.page_tables.read(vcpu.kernel_root, arg, evtchn_bind_ipi.size))
    domain.ports.bound_ipi(bound.port, bound.vcpu)


def _learn_vcpu(vcpu: PvVcpu, arg: int) -> None:
    domain = vcpu.domain
    bound = evtchn_bind_vcpu.unpack(domain.page_tables.read(vcpu.kernel_root, arg, evtchn_bind_vcpu.size))
    domain.ports.bound_vcpu(bound.port, bound.vcpu)


def _learn_close(vcpu: PvVcpu, arg: int) -> None:
    domain = vcpu.domain
    closed = evtchn_close.unpack(domain.page_tables.read(vcpu.kernel_root, arg, evtchn_close.size))
    domain.ports.closed(closed.port)


def _learn_reset(vcpu: PvVcpu, _arg: int) -> None:
    vcpu.domain.ports.reset()


_LEARN: Final[dict[int, Callable[[PvVcpu, int], None]]] = {
    evtchn.EVTCHNOP_bind_virq: _learn_virq,
    evtchn.EVTCHNOP_bind_ipi: _learn_ipi,
    evtchn.EVTCHNOP_bind_vcpu: _learn_vcpu,
    evtchn.EVTCHNOP_close: _learn_close,
    evtchn.EVTCHNOP_reset: _learn_reset,
}


def xen_version(vcpu: PvVcpu, command: int, arg: int) -> int:
    """The version itself never changes: Linux asks for it to see upcalls, thousands of times."""
    domain = vcpu.domain
    if command:
        return ask(vcpu, HYPERVISOR_xen_version, command, arg)
    if domain.xen_version is None:
        domain.xen_version = ask(vcpu, HYPERVISOR_xen_version, command, arg)
    return domain.xen_version
