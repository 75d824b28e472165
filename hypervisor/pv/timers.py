"""The timers of a native vCPU: single-shot and periodic raise VIRQ_TIMER, the third ends a SCHEDOP_poll.

Follows do_set_timer_op and the vCPU timers of xen/common/sched/core.c. Whoever executes the vCPUs looks at
`vcpu.deadline_ns` and calls expire(); a deadline that has passed already acts at once. A periodic timer ticks while its
vCPU is blocked, too, and ticks that were missed come as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import VIRQ_TIMER
from hypervisor.pv import pvclock
from hypervisor.timers import HUGE_TIMEOUT_ANSWER_NS, HUGE_TIMEOUT_SHIFT, MILLISECOND_NS, signed64

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MIN_PERIOD_NS: Final = MILLISECOND_NS


def set_singleshot(vcpu: PvVcpu, deadline_ns: int) -> None:
    """One VIRQ_TIMER at `deadline_ns` of system time, now if it has passed."""
    domain = vcpu.domain
    if deadline_ns <= domain.now_ns():
        vcpu.singleshot_ns = None
        domain.raise_virq(vcpu, VIRQ_TIMER)
    else:
        vcpu.singleshot_ns = deadline_ns
        domain.timer_set(deadline_ns)


def set_periodic(vcpu: PvVcpu, period_ns: int) -> None:
    """VIRQ_TIMER every `period_ns` from now on; 0 stops."""
    vcpu.period_ns = period_ns
    vcpu.periodic_due_ns = None
    if period_ns:
        vcpu.periodic_due_ns = vcpu.domain.now_ns() + period_ns
        vcpu.domain.timer_set(vcpu.periodic_due_ns)


def set_timer_op(vcpu: PvVcpu, timeout: int) -> int:
    """The hypercall: the single-shot timer, absolute system time in ns; 0 stops it. A timeout that is negative, or more
    than 13 days ahead, acts in 100 ms (Xen's answer to guests whose arithmetic wraps).
    """
    timeout_ns = signed64(timeout)
    if timeout_ns == 0:
        vcpu.singleshot_ns = None
        return 0
    now_ns = vcpu.domain.now_ns()
    if timeout_ns < 0 or (timeout_ns - now_ns) >> HUGE_TIMEOUT_SHIFT > 0:
        timeout_ns = now_ns + HUGE_TIMEOUT_ANSWER_NS
    set_singleshot(vcpu, timeout_ns)
    return 0


def expire(vcpu: PvVcpu, now_ns: int) -> None:
    """Let the timers that are due act; who looks at the clock then finds it right."""
    due = False
    if vcpu.singleshot_ns is not None and vcpu.singleshot_ns <= now_ns:
        vcpu.singleshot_ns = None
        due = True
    if vcpu.periodic_due_ns is not None and vcpu.periodic_due_ns <= now_ns:
        missed = (now_ns - vcpu.periodic_due_ns) // vcpu.period_ns
        vcpu.periodic_due_ns += (missed + 1) * vcpu.period_ns
        due = True
    if vcpu.poll_deadline_ns is not None and vcpu.poll_deadline_ns <= now_ns:
        vcpu.unblock()
    if due:
        pvclock.refresh(vcpu, now_ns)
        vcpu.domain.raise_virq(vcpu, VIRQ_TIMER)
