"""The hypercall table and the boundary: what a number means, and what becomes of every error.

`dispatch` is the only way in. Arguments are masked to their width, the caller's right is checked, the
handler runs, and an XenError becomes its negative errno. Any other exception is a fault of ours that this
caller has found: its domain is crashed, the traceback recorded, and nobody else notices.

A handler is `def name(caller: Vcpu, *args: int) -> int | Continuation` and raises XenError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from traceback import format_exc
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

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
from hypervisor.multicall import multicall
from hypervisor.privileges import PRIVILEGES, Who
from hypervisor.sched_op import sched_op
from hypervisor.sysctl import sysctl
from hypervisor.timers import set_timer_op
from hypervisor.vcpu_op import vcpu_op
from hypervisor.xen_version import xen_version

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF
GNTTABOP_CMD_MASK: Final = 0xFFF  # above it lies a continuation's progress (xen/common/grant_table.c)


class Entry(NamedTuple):
    """A hypercall. `widths` masks its arguments; `operation` masks the first one to the operation, 0 if
    it names none.
    """

    name: str
    handler: Callable[..., int | Continuation]
    widths: tuple[int, ...]
    operation: int
    rights: Mapping[int, Who]


def _entry(
    number: int, handler: Callable[..., int | Continuation], *widths: int, operation: int = 0
) -> tuple[int, Entry]:
    return number, Entry(handler.__name__, handler, widths, operation, PRIVILEGES[number])


TABLE: Final[Mapping[int, Entry]] = MappingProxyType(
    dict(
        (
            _entry(xen.__HYPERVISOR_memory_op, memory_op, U64, U64, operation=MEMOP_CMD_MASK),
            _entry(xen.__HYPERVISOR_multicall, multicall, U64, U32),
            _entry(xen.__HYPERVISOR_set_timer_op, set_timer_op, U64),
            _entry(xen.__HYPERVISOR_xen_version, xen_version, U32, U64, operation=U32),
            _entry(xen.__HYPERVISOR_console_io, console_io, U32, U32, U64, operation=U32),
            _entry(
                xen.__HYPERVISOR_grant_table_op, grant_table_op, U32, U64, U32, operation=GNTTABOP_CMD_MASK
            ),
            _entry(xen.__HYPERVISOR_vcpu_op, vcpu_op, U32, U32, U64, operation=U32),
            _entry(xen.__HYPERVISOR_sched_op, sched_op, U32, U64, operation=U32),
            _entry(xen.__HYPERVISOR_event_channel_op, event_channel_op, U32, U64, operation=U32),
            _entry(xen.__HYPERVISOR_hvm_op, hvm_op, U64, U64, operation=U64),
            _entry(xen.__HYPERVISOR_sysctl, sysctl, U64),
            _entry(xen.__HYPERVISOR_domctl, domctl, U64),
        )
    )
)


def dispatch(vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int | Continuation:
    """Execute one hypercall of `vcpu`. Raises nothing, whatever the guest passes; a domain that is shut
    down gets -ESRCH.
    """
    domain = vcpu.domain
    counters = domain.counters
    if domain.stopped:
        return -XEN_ESRCH
    entry = TABLE.get(number)
    if entry is None:
        counters.hypercalls["unknown"] += 1
        counters.hypercalls_failed += 1
        return -XEN_ENOSYS
    counters.hypercalls[entry.name] += 1
    try:
        masked = [value & width for value, width in zip(args, entry.widths)]
        if len(masked) < len(entry.widths):
            masked += [0] * (len(entry.widths) - len(masked))
        who = entry.rights.get(masked[0] & entry.operation)
        if who is None:
            result: int | Continuation = -XEN_ENOSYS
        elif who is Who.CONTROL and not domain.privileged:
            result = -XEN_EPERM
        else:
            return entry.handler(vcpu, *masked)
    except XenError as error:
        result = -error.errno
    except Exception:  # whatever it is, it ends here: the blast radius is the caller's domain
        domain.machine.record_fault(vcpu, entry.name, args, format_exc())
        domain.crash()
        result = -XEN_EFAULT
    counters.hypercalls_failed += 1
    return result


def execute(vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int:
    """A hypercall with all its continuations: for a vCPU kind that has nothing else to run meanwhile."""
    result = vcpu.domain.machine.hypercall(vcpu, number, args)
    while isinstance(result, Continuation):
        result = vcpu.domain.machine.hypercall(vcpu, *result)
    return result
