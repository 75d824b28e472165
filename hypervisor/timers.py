"""Deadlines in system time: one queue a machine, the timers of a vCPU, and set_timer_op.

Follows do_set_timer_op and the vCPU timers of Xen 4.17 (xen/common/sched/core.c). The queue reads no clock of
its own: the host says what time it is, is told of the earliest deadline, and calls `machine.expire_timers()`
then. A deadline that has passed already fires at once, inside the hypercall that sets it, so that the queue
never holds one.

A periodic timer of Xen ticks only while its vCPU is scheduled. A vCPU here is scheduled for microseconds at a
time, so it ticks while the vCPU is blocked too, as the public header lets one expect; ticks that were missed
come as one.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import VIRQ_TIMER

if TYPE_CHECKING:
    from hypervisor.host import Host
    from hypervisor.vcpu.state import Vcpu

MILLISECOND_NS: Final = 1_000_000
HUGE_TIMEOUT_SHIFT: Final = 50
"""Timeouts of more than 2**50 ns (13 days) are taken for a guest's arithmetic gone wrong"""
HUGE_TIMEOUT_ANSWER_NS: Final = 100 * MILLISECOND_NS
COMPACTION_THRESHOLD: Final = 64


def signed64(value: int) -> int:
    """A u64 of the ABI as Xen's s_time_t."""
    return value - (1 << 64) if value >> 63 else value


class Timer:
    """One action at one deadline. Set again, it moves; cancelled, it is forgotten."""

    __slots__ = ("action", "deadline_ns", "ticket")

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.deadline_ns: int | None = None
        self.ticket = 0
        """names the one entry of the queue that counts for this timer; 0 when none does"""


class TimerQueue:
    """The timers of a machine, earliest first.

    Entries of timers that were moved or cancelled stay behind until they come up; they are swept before they
    outnumber the others, so that a guest that sets its timer for ever costs no memory.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._heap: list[tuple[int, int, Timer]] = []
        self._tickets = 0
        self._live = 0
        self._announced: int | None = None

    def __len__(self) -> int:
        return self._live

    @property
    def earliest_ns(self) -> int | None:
        """The deadline of the timer that is due first."""
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def now_ns(self) -> int:
        """System time, from the host."""
        return self._host.now_ns()

    def set(self, timer: Timer, deadline_ns: int, now_ns: int) -> None:
        """Let `timer` act at `deadline_ns`, or now if that has passed.

        Time is handed in, so that a timer which sets itself again after `now_ns` is queued however slow we
        are.
        """
        self._forget(timer)
        if deadline_ns <= now_ns:
            self._announce()
            timer.action()
            return
        self._tickets += 1
        self._live += 1
        timer.ticket = self._tickets
        timer.deadline_ns = deadline_ns
        heappush(self._heap, (deadline_ns, timer.ticket, timer))
        if len(self._heap) > COMPACTION_THRESHOLD and len(self._heap) > 2 * self._live:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapify(self._heap)
        self._announce()

    def cancel(self, timer: Timer) -> None:
        """Forget `timer`. Cancelling one that is not set is no error."""
        if timer.ticket:
            self._forget(timer)
            self._announce()

    def expire(self, now_ns: int) -> int:
        """Let every timer that is due act, once each, in order of deadlines; how many did.

        An action may set timers, its own included: those wait for the next call, which bounds this one.
        """
        heap = self._heap
        due: list[tuple[int, int, Timer]] = []
        while heap and heap[0][0] <= now_ns:
            due.append(heappop(heap))
        fired = 0
        for _, ticket, timer in due:
            if timer.ticket == ticket:
                self._forget(timer)
                timer.action()
                fired += 1
        self._announce()
        return fired

    def _forget(self, timer: Timer) -> None:
        if timer.ticket:
            timer.ticket = 0
            timer.deadline_ns = None
            self._live -= 1

    def _announce(self) -> None:
        earliest = self.earliest_ns
        if earliest != self._announced:
            self._announced = earliest
            self._host.deadline_changed(earliest)


class VcpuTimers:
    """The timers of a vCPU: single-shot and periodic raise VIRQ_TIMER, the third ends a SCHEDOP_poll."""

    __slots__ = ("_last_tick_ns", "_queue", "_vcpu", "period_ns", "periodic", "poll", "singleshot")

    def __init__(self, vcpu: Vcpu, queue: TimerQueue) -> None:
        self._vcpu = vcpu
        self._queue = queue
        self._last_tick_ns = 0
        self.period_ns = 0
        self.singleshot = Timer(self.raise_timer)
        self.periodic = Timer(self._tick)
        self.poll = Timer(self._end_poll)

    def raise_timer(self) -> None:
        """Send VIRQ_TIMER to this vCPU."""
        self._vcpu.domain.events.raise_virq(VIRQ_TIMER, self._vcpu.id)

    def set_singleshot(self, deadline_ns: int) -> None:
        """One VIRQ_TIMER at `deadline_ns` of system time, now if it has passed."""
        self._queue.set(self.singleshot, deadline_ns, self._queue.now_ns())

    def stop_singleshot(self) -> None:
        """Forget the single-shot timer."""
        self._queue.cancel(self.singleshot)

    def set_poll(self, deadline_ns: int) -> None:
        """End the poll of this vCPU at `deadline_ns` of system time."""
        self._queue.set(self.poll, deadline_ns, self._queue.now_ns())

    def stop_poll(self) -> None:
        """A poll without a timeout begins: the timer of an earlier one must not end it."""
        self._queue.cancel(self.poll)

    def _end_poll(self) -> None:
        if self._vcpu.poll_port is not None:
            self._vcpu.unblock()

    def set_periodic(self, period_ns: int) -> None:
        """VIRQ_TIMER every `period_ns`, first a period after the last tick or, if past, now; 0 stops."""
        self._queue.cancel(self.periodic)
        self.period_ns = period_ns
        if period_ns:
            self._tick()

    def _tick(self) -> None:
        now_ns = self._queue.now_ns()
        due_ns = self._last_tick_ns + self.period_ns
        if now_ns >= due_ns:
            self.raise_timer()
            self._last_tick_ns = now_ns
            due_ns = now_ns + self.period_ns
        self._queue.set(self.periodic, due_ns, now_ns)

    def cancel_all(self) -> None:
        """Stop every timer of this vCPU."""
        self.period_ns = 0
        for timer in (self.singleshot, self.periodic, self.poll):
            self._queue.cancel(timer)


def set_timer_op(caller: Vcpu, timeout: int) -> int:
    """set_timer_op: the single-shot timer of the calling vCPU, absolute system time in ns; 0 stops it.

    A timeout that is negative, or more than 13 days ahead, acts in 100 ms (Xen's answer to guests whose
    arithmetic wraps).
    """
    timeout_ns = signed64(timeout)
    timers = caller.timers
    if timeout_ns == 0:
        timers.stop_singleshot()
        return 0
    now_ns = caller.domain.machine.host.now_ns()
    if timeout_ns < 0 or (timeout_ns - now_ns) >> HUGE_TIMEOUT_SHIFT > 0:
        timeout_ns = now_ns + HUGE_TIMEOUT_ANSWER_NS
    timers.set_singleshot(timeout_ns)
    return 0
