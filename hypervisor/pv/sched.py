"""sched_op as far as it concerns this domain alone: yield, block and poll.

Follows public/sched.h and do_sched_op of Xen 4.17. Shutting down and watchdogs are the machine-wide core's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.sched import SCHEDOP_block, SCHEDOP_poll, SCHEDOP_yield, sched_poll
from hypervisor.errors import InvalidArgument
from hypervisor.pv.ports import PORTS, UPCALL_MASK, UPCALL_PENDING
from hypervisor.timers import signed64

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MAX_POLL_PORTS: Final = 128
PORT_BYTES: Final = 4

LOCAL: Final = frozenset({SCHEDOP_yield, SCHEDOP_block, SCHEDOP_poll})


def sched_op(vcpu: PvVcpu, operation: int, arg: int) -> int:
    """One of LOCAL. The vCPU stops executing as soon as this has returned."""
    if operation == SCHEDOP_block:
        vcpu.info[UPCALL_MASK] = 0
        vcpu.blocked = not vcpu.info[UPCALL_PENDING]
    elif operation == SCHEDOP_poll:
        _poll(vcpu, arg)
    else:
        vcpu.domain.rota.yielded = True
    vcpu.domain.reschedule()
    return 0


def _poll(vcpu: PvVcpu, arg: int) -> None:
    """Block until one of the ports is pending, an upcall comes, or system time reaches the timeout."""
    domain = vcpu.domain
    read, root = domain.page_tables.read, vcpu.kernel_root
    poll = sched_poll.unpack(read(root, arg, sched_poll.size))
    if poll.nr_ports > MAX_POLL_PORTS:
        raise InvalidArgument("nr_ports", poll.nr_ports, f"at most {MAX_POLL_PORTS}")
    if vcpu.info[UPCALL_PENDING] and not vcpu.info[UPCALL_MASK]:
        return
    listed = read(root, poll.ports, poll.nr_ports * PORT_BYTES) if poll.nr_ports else b""
    ports = tuple(memoryview(listed).cast("I"))
    for port in ports:
        if port >= PORTS:
            raise InvalidArgument("port", port, f"below {PORTS}")
        if domain.ports.is_pending(port):
            return
    vcpu.blocked = True
    vcpu.poll_ports = ports
    vcpu.set_poll_timer(signed64(poll.timeout) if poll.timeout else None)
