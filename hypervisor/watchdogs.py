"""The watchdogs of a domain: unless it sets them again in time, it is shut down (SCHEDOP_watchdog).

Follows domain_watchdog of Xen 4.17: two for each domain, numbered from 1, timeouts in whole seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.sched import SHUTDOWN_watchdog
from hypervisor.errors import InvalidArgument, NoSpace
from hypervisor.timers import Timer

if TYPE_CHECKING:
    from hypervisor.domain import Domain

NR_DOMAIN_WATCHDOG_TIMERS: Final = 2
SECOND_NS: Final = 1_000_000_000


class Watchdogs:
    """Which are in use, and their timers."""

    __slots__ = ("_domain", "_in_use")

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._in_use: dict[int, Timer] = {}

    def set(self, watchdog: int, timeout_s: int) -> int:
        """0: take a free one and return its number. Otherwise set that one again or, with timeout 0, free it.

        InvalidArgument for one that is not in use, NoSpace when none is free.
        """
        if watchdog == 0:
            return self._take(timeout_s)
        timer = self._in_use.get(watchdog)
        if timer is None:
            raise InvalidArgument("watchdog", watchdog, "one that is in use")
        if timeout_s == 0:
            self._domain.machine.timers.cancel(timer)
            del self._in_use[watchdog]
        else:
            self._wind(timer, timeout_s)
        return 0

    def _take(self, timeout_s: int) -> int:
        for watchdog in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1):
            if watchdog not in self._in_use:
                timer = self._in_use[watchdog] = Timer(self._bite)
                self._wind(timer, timeout_s)
                return watchdog
        raise NoSpace(f"watchdogs of domain {self._domain.domid}")

    def _wind(self, timer: Timer, timeout_s: int) -> None:
        queue = self._domain.machine.timers
        now_ns = queue.now_ns()
        queue.set(timer, now_ns + timeout_s * SECOND_NS, now_ns)

    def _bite(self) -> None:
        self._domain.shutdown(SHUTDOWN_watchdog)

    def cancel_all(self) -> None:
        """The domain does not execute any more, and cannot set them in time."""
        for timer in self._in_use.values():
            self._domain.machine.timers.cancel(timer)
        self._in_use.clear()
