"""Time as the domain sees it: system time from the platform, and one timer of the vCPU shared by all who
sleep.

The hypervisor has one singleshot timer per vCPU (set_timer_op), which raises VIRQ_TIMER. Deadlines are kept
in a heap and the earliest one is programmed. So a kernel sleeps in virtual time where its machine has that.
"""

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from hypervisor.abi.xen import VIRQ_TIMER
from kernel.events import EventPort, Events
from kernel.hypercalls import Hypercalls
from kernel.parking import NewWaiter, Waiter, waiter_factory
from kernel.platform import Platform

NANOSECONDS: Final = 1_000_000_000
SWEEP_THRESHOLD: Final = 64
"""Cancelled timers stay in the heap until they outnumber the others and this."""


class Timer:
    """Something to be done at a system time, unless it is cancelled before."""

    __slots__ = ("action", "deadline_ns", "number")

    def __init__(self, deadline_ns: int, number: int, action: Callable[[], None] | None) -> None:
        self.deadline_ns = deadline_ns
        self.number = number
        self.action = action

    def cancel(self) -> None:
        """Do nothing when the time comes."""
        self.action = None

    def __lt__(self, other: "Timer") -> bool:
        return (self.deadline_ns, self.number) < (other.deadline_ns, other.number)


class Clock:
    """Reads the time and sleeps. The virtual interrupt is bound when it is first needed."""

    def __init__(self, platform: Platform, hypercalls: Hypercalls, events: Events) -> None:
        self.now_ns: Callable[[], int] = platform.now_ns
        self._hypercalls = hypercalls
        self._events = events
        self._port: EventPort | None = None
        self._timers: list[Timer] = []
        self._sweep_at = SWEEP_THRESHOLD
        self._numbers = 0
        self._programmed_ns = 0
        self._new_waiter: NewWaiter[None] | None = None

    def call_at(self, deadline_ns: int, action: Callable[[], None]) -> Timer:
        """Call `action` at a system time, in the upcall."""
        if len(self._timers) >= self._sweep_at:
            self._timers = [timer for timer in self._timers if timer.action is not None]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + SWEEP_THRESHOLD
        self._numbers += 1
        timer = Timer(deadline_ns, self._numbers, action)
        heapq.heappush(self._timers, timer)
        self._program()
        return timer

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at a system time, or as soon after as the vCPU runs."""
        if self._new_waiter is None:
            self._new_waiter = waiter_factory()
        waiter: Waiter[None] = self._new_waiter()
        timer = self.call_at(deadline_ns, lambda: waiter.wake(None))
        try:
            await waiter.wait()
        finally:
            timer.cancel()

    async def sleep(self, seconds: float) -> None:
        """Return after a while."""
        await self.sleep_until(self.now_ns() + round(seconds * NANOSECONDS))

    @contextmanager
    def timeout(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Cancel the block after a while; the scope's `cancelled_caught` then says so."""
        with anyio.CancelScope() as scope:
            timer = self.call_at(self.now_ns() + round(seconds * NANOSECONDS), scope.cancel)
            try:
                yield scope
            finally:
                timer.cancel()

    def _program(self) -> None:
        """Program the earliest deadline that is still wanted, unless it is programmed already."""
        timers = self._timers
        while timers and timers[0].action is None:
            heapq.heappop(timers)
        if not timers or timers[0].deadline_ns == self._programmed_ns:
            return
        if self._port is None:
            self._port = self._events.bind_virq(VIRQ_TIMER)
            self._port.on_event = self._expire
        self._programmed_ns = timers[0].deadline_ns
        self._hypercalls.set_timer(max(self._programmed_ns, 1))

    def _expire(self) -> None:
        self._programmed_ns = 0
        now_ns = self.now_ns()
        while self._timers and self._timers[0].deadline_ns <= now_ns:
            action = heapq.heappop(self._timers).action
            if action is not None:
                action()
        self._program()
