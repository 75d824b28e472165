"""The hypercall table and the boundary: what a number means, and what becomes of every error.

`dispatch` is the only way in. Arguments are masked to their width, the caller's right is checked, the
handler runs, and an XenError becomes its negative errno. Any other exception is a fault of ours that this
caller has found: its domain is crashed, the traceback recorded, and nobody else notices.

A handler is `def name(caller: Vcpu, *args: int) -> int | Continuation` and raises XenError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from traceback import format_exc
from typing import TYPE_CHECKING, Final

from hypervisor.abi import xen
from hypervisor.abi.errno import XEN_EFAULT, XEN_ENOSYS, XEN_EPERM, XEN_ESRCH
from hypervisor.console_io import console_io
from hypervisor.continuation import Continuation
from hypervisor.domctl import domctl
from hypervisor.errors import XenError
from hypervisor.event_channel_op import event_channel_op
from hypervisor.grant_table_op import grant_table_op
from hypervisor.hvm_op import hvm_op
from hypervisor.memory_command import MEMOP_CMD_MASK
from hypervisor.memory_op import memory_op
from hypervisor.multicall import run_batch
from hypervisor.privileges import PRIVILEGES, Who
from hypervisor.sched_op import sched_op
from hypervisor.sysctl import sysctl
from hypervisor.timers import set_timer_op
from hypervisor.vcpu_op import vcpu_op
from hypervisor.xen_version import xen_version

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF
Handler = Callable[..., int | Continuation]

_CONTROL: Final = Who.CONTROL
GNTTABOP_CMD_MASK: Final = 0xFFF  # above it lies a continuation's progress (xen/common/grant_table.c)


class Entry:
    """A hypercall: its handler, and the widths that its one to three arguments are masked to. `operation`
    masks the first one to the operation, and is 0 if it names none; `rights` says who may call which.
    """

    __slots__ = ("arity", "first", "handler", "name", "operation", "rights", "second", "third")

    def __init__(
        self, handler: Handler, rights: Mapping[int, Who], widths: tuple[int, ...], operation: int
    ) -> None:
        self.name = handler.__name__
        self.handler = handler
        self.arity = len(widths)
        self.first, self.second, self.third = (*widths, 0, 0)[:3]
        self.operation = operation
        self.rights = dict(rights)


def multicall(caller: Vcpu, call_list: int, nr_calls: int) -> int | Continuation:
    """multicall: its entries pass the same boundary as hypercalls of their own."""
    return run_batch(dispatch, caller, call_list, nr_calls)


def _table(*entries: tuple[int, Handler, tuple[int, ...], int]) -> dict[int, Entry]:
    return {
        number: Entry(handler, PRIVILEGES[number], widths, operation)
        for number, handler, widths, operation in entries
    }


TABLE: Final = _table(
    (xen.__HYPERVISOR_memory_op, memory_op, (U64, U64), MEMOP_CMD_MASK),
    (xen.__HYPERVISOR_multicall, multicall, (U64, U32), 0),
    (xen.__HYPERVISOR_set_timer_op, set_timer_op, (U64,), 0),
    (xen.__HYPERVISOR_xen_version, xen_version, (U32, U64), U32),
    (xen.__HYPERVISOR_console_io, console_io, (U32, U32, U64), U32),
    (xen.__HYPERVISOR_grant_table_op, grant_table_op, (U32, U64, U32), GNTTABOP_CMD_MASK),
    (xen.__HYPERVISOR_vcpu_op, vcpu_op, (U32, U32, U64), U32),
    (xen.__HYPERVISOR_sched_op, sched_op, (U32, U64), U32),
    (xen.__HYPERVISOR_event_channel_op, event_channel_op, (U32, U64), U32),
    (xen.__HYPERVISOR_hvm_op, hvm_op, (U64, U64), U64),
    (xen.__HYPERVISOR_sysctl, sysctl, (U64,), 0),
    (xen.__HYPERVISOR_domctl, domctl, (U64,), 0),
)
"""hypercall number -> what is known of it"""


def dispatch(vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int | Continuation:
    """Execute one hypercall of `vcpu`. Raises nothing, whatever the guest passes; a domain that is shut down
    gets -ESRCH. Arguments that are missing are zero, those that are too many are not looked at.
    """
    domain = vcpu.domain
    if domain.stopped:
        return -XEN_ESRCH
    entry = None
    try:
        entry = TABLE.get(number)
        if entry is None:
            return _refused(domain, XEN_ENOSYS)
        domain.counters.hypercalls[entry.name] += 1
        arity = entry.arity
        if len(args) < arity:
            args = (*args, 0, 0, 0)
        first = args[0] & entry.first
        who = entry.rights.get(first & entry.operation)
        if who is None:
            return _refused(domain, XEN_ENOSYS)
        if who is _CONTROL and not domain.privileged:
            return _refused(domain, XEN_EPERM)
        # Spelt out by arity: this is the hottest path of the core.
        if arity == 2:
            return entry.handler(vcpu, first, args[1] & entry.second)
        if arity == 3:
            return entry.handler(vcpu, first, args[1] & entry.second, args[2] & entry.third)
        return entry.handler(vcpu, first)
    except XenError as error:
        return _refused(domain, error.errno)
    except Exception:
        domain.machine.record_fault(vcpu, entry.name if entry else "unknown", args, format_exc())
        domain.crash()
        return _refused(domain, XEN_EFAULT)


def _refused(domain: Domain, errno: int) -> int:
    domain.counters.hypercalls_failed += 1
    return -errno


def execute(vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int:
    """A hypercall with all its continuations: for a vCPU kind that has nothing else to run meanwhile."""
    hypercall = vcpu.domain.machine.hypercall
    result = hypercall(vcpu, number, args)
    while isinstance(result, Continuation):
        result = hypercall(vcpu, result.number, result.args)
    return result
