"""Event channel operations (public/event_channel.h), laid out as calls."""

from typing import Final

from hypervisor.abi import event_channel as abi
from hypervisor.abi.layout import Struct
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_event_channel_op
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.call import Pending, nothing

_OP: Final = HYPERVISOR_event_channel_op


def _plain(area: ArgumentArea, name: str, command: int, value: Struct) -> Pending[None]:
    return Pending(name, _OP, (command, area.place(value)), nothing, value)


def alloc_unbound(area: ArgumentArea, remote_domid: int, domid: int = DOMID_SELF) -> Pending[int]:
    """A fresh port of `domid` that `remote_domid` may bind to."""
    slot = area.put(abi.evtchn_alloc_unbound(dom=domid, remote_dom=remote_domid))
    args = (abi.EVTCHNOP_alloc_unbound, slot.address)
    return Pending("EVTCHNOP_alloc_unbound", _OP, args, lambda _: slot.get().port, slot.value)


def bind_interdomain(area: ArgumentArea, remote_domid: int, remote_port: int) -> Pending[int]:
    """A fresh port of ours, connected to a port that `remote_domid` holds open for us."""
    slot = area.put(abi.evtchn_bind_interdomain(remote_dom=remote_domid, remote_port=remote_port))
    args = (abi.EVTCHNOP_bind_interdomain, slot.address)
    return Pending("EVTCHNOP_bind_interdomain", _OP, args, lambda _: slot.get().local_port, slot.value)


def bind_virq(area: ArgumentArea, virq: int, vcpu: int = 0) -> Pending[int]:
    """A fresh port for a virtual interrupt."""
    slot = area.put(abi.evtchn_bind_virq(virq=virq, vcpu=vcpu))
    args = (abi.EVTCHNOP_bind_virq, slot.address)
    return Pending("EVTCHNOP_bind_virq", _OP, args, lambda _: slot.get().port, slot.value)


def bind_ipi(area: ArgumentArea, vcpu: int = 0) -> Pending[int]:
    """A fresh port by which this domain interrupts one of its own vCPUs."""
    slot = area.put(abi.evtchn_bind_ipi(vcpu=vcpu))
    args = (abi.EVTCHNOP_bind_ipi, slot.address)
    return Pending("EVTCHNOP_bind_ipi", _OP, args, lambda _: slot.get().port, slot.value)


def bind_vcpu(area: ArgumentArea, port: int, vcpu: int) -> Pending[None]:
    """Deliver the events of `port` to `vcpu`."""
    return _plain(
        area, "EVTCHNOP_bind_vcpu", abi.EVTCHNOP_bind_vcpu, abi.evtchn_bind_vcpu(port=port, vcpu=vcpu)
    )


def close(area: ArgumentArea, port: int) -> Pending[None]:
    """Free a port; the other end becomes unbound."""
    return _plain(area, "EVTCHNOP_close", abi.EVTCHNOP_close, abi.evtchn_close(port=port))


def send(area: ArgumentArea, port: int) -> Pending[None]:
    """Notify the other end of `port`. Made more often than any other: a struct of one word needs no codec."""
    return Pending("EVTCHNOP_send", _OP, (abi.EVTCHNOP_send, area.place_word(port)), nothing, port)


def unmask(area: ArgumentArea, port: int) -> Pending[None]:
    """Clear the mask bit; an event that came meanwhile raises its upcall now."""
    return _plain(area, "EVTCHNOP_unmask", abi.EVTCHNOP_unmask, abi.evtchn_unmask(port=port))


def status(area: ArgumentArea, port: int, domid: int = DOMID_SELF) -> Pending[abi.evtchn_status]:
    """What a port is bound to."""
    slot = area.put(abi.evtchn_status(dom=domid, port=port))
    args = (abi.EVTCHNOP_status, slot.address)
    return Pending("EVTCHNOP_status", _OP, args, lambda _: slot.get(), slot.value)


def reset(area: ArgumentArea, domid: int = DOMID_SELF) -> Pending[None]:
    """Close all ports."""
    return _plain(area, "EVTCHNOP_reset", abi.EVTCHNOP_reset, abi.evtchn_reset(dom=domid))
