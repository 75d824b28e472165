"""sched_op: yield, block, poll, shutdown and watchdogs.

Follows public/sched.h and do_sched_op of Xen 4.17. Block and poll only put the vCPU into a blocked state;
whoever executes it sleeps until the host is told to kick it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    sched_poll,
    sched_remote_shutdown,
    sched_shutdown,
    sched_watchdog,
)
from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.event_2l import POLL_ANY_PORT
from hypervisor.timers import signed64
from hypervisor.vcpu.state import UPCALL_MASK

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

MAX_POLL_PORTS: Final = 128
PORT_SIZE: Final = 4
REASON_MASK: Final = 0xFF
"""Xen keeps a reason as a u8"""


def sched_op(caller: Vcpu, operation: int, arg: int) -> int:
    """The hypercall: `arg` is the guest address of the operation's struct."""
    handler = _OPERATIONS.get(operation)
    if handler is None:
        raise Unsupported(f"sched_op {operation}")
    return handler(caller, arg)


def _yield(_caller: Vcpu, _arg: int) -> int:
    # Nothing competes for a processor here: every vCPU has an executor of its own.
    return 0


def _block(caller: Vcpu, _arg: int) -> int:
    caller.info[UPCALL_MASK] = 0
    if not caller.upcall_pending:
        caller.blocked = True
    return 0


def _poll(caller: Vcpu, arg: int) -> int:
    """Block until one of the ports is pending, an upcall comes, or system time reaches the timeout."""
    memory = caller.access
    poll = memory.read_struct(sched_poll, arg)
    if poll.nr_ports > MAX_POLL_PORTS:
        raise InvalidArgument("nr_ports", poll.nr_ports, f"at most {MAX_POLL_PORTS}")
    if caller.upcall_pending and not caller.info[UPCALL_MASK]:
        return 0
    port = POLL_ANY_PORT
    for index in range(poll.nr_ports):
        port = memory.read_u32(poll.ports + index * PORT_SIZE)
        if caller.domain.events.poll(port):
            return 0
    caller.blocked = True
    caller.poll_port = port if poll.nr_ports == 1 else POLL_ANY_PORT
    caller.domain.events.bits.pollers.add(caller)
    if poll.timeout:
        caller.timers.set_poll(signed64(poll.timeout))
    else:
        caller.timers.stop_poll()
    return 0


def _shutdown(caller: Vcpu, arg: int) -> int:
    request = caller.access.read_struct(sched_shutdown, arg)
    caller.domain.shutdown(request.reason & REASON_MASK)
    return 0


def _shutdown_code(caller: Vcpu, arg: int) -> int:
    """Say beforehand what the reason of the shutdown will be, a crash included; the first word counts."""
    request = caller.access.read_struct(sched_shutdown, arg)
    if caller.domain.shutdown_code is None:
        caller.domain.shutdown_code = request.reason & REASON_MASK
    return 0


def _watchdog(caller: Vcpu, arg: int) -> int:
    request = caller.access.read_struct(sched_watchdog, arg)
    return caller.domain.watchdogs.set(request.id, request.timeout)


def _remote_shutdown(caller: Vcpu, arg: int) -> int:
    request = caller.access.read_struct(sched_remote_shutdown, arg)
    target = caller.domain.machine.domain(request.domain_id)
    target.shutdown(request.reason & REASON_MASK)
    return 0


_OPERATIONS: Final[Mapping[int, Callable[[Vcpu, int], int]]] = MappingProxyType(
    {
        SCHEDOP_yield: _yield,
        SCHEDOP_block: _block,
        SCHEDOP_poll: _poll,
        SCHEDOP_shutdown: _shutdown,
        SCHEDOP_shutdown_code: _shutdown_code,
        SCHEDOP_watchdog: _watchdog,
        SCHEDOP_remote_shutdown: _remote_shutdown,
    }
)
