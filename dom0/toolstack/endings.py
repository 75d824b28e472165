"""Notices when a domain has ended: @releaseDomain says that one has, the hypervisor which and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hypervisor.abi.domctl import (
    XEN_DOMINF_dying,
    XEN_DOMINF_shutdown,
    XEN_DOMINF_shutdownmask,
    XEN_DOMINF_shutdownshift,
)
from hypervisor.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from kernel.hypercalls import HypercallNoSuchDomain
from kernel.kernel import Kernel
from kernel.parking import Broadcast

OUTCOMES: Final[Mapping[int, str]] = {
    SHUTDOWN_poweroff: "poweroff",
    SHUTDOWN_reboot: "reboot",
    SHUTDOWN_suspend: "suspend",
    SHUTDOWN_crash: "crash",
    SHUTDOWN_watchdog: "watchdog",
    SHUTDOWN_soft_reset: "soft-reset",
}
DESTROYED: Final = "destroyed"
_REST: Final = 4


def outcome_of(reason: int | None) -> str:
    """A shutdown reason by name; DESTROYED if there is none."""
    return DESTROYED if reason is None else OUTCOMES.get(reason, f"reason {reason}")


@dataclass(slots=True)
class _Life:
    outcome: str | None = None


class Endings:
    """Watches over the domains that it was told of; `run` has to run."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._lives: dict[int, _Life] = {}
        self._changed = Broadcast()

    def expect(self, domid: int) -> None:
        """Watch over `domid` from now on."""
        self._lives[domid] = _Life()

    def forget(self, domid: int) -> None:
        """The domain is destroyed; whoever waits for its end is told so."""
        life = self._lives.pop(domid, None)
        if life is not None and life.outcome is None:
            life.outcome = DESTROYED
        self._changed.announce()

    def ended(self, domid: int) -> bool:
        """Whether it is known that `domid` has ended."""
        life = self._lives.get(domid)
        return life is None or life.outcome is not None

    async def wait(self, domid: int) -> str:
        """Returns how `domid` ended, when it has: a name of OUTCOMES, or DESTROYED."""
        life = self._lives.get(domid)
        if life is None:
            return DESTROYED
        while life.outcome is None:
            await self._changed.wait()
        return life.outcome

    async def run(self) -> None:
        """Looks at the domains whenever one was released. Runs until it is cancelled.

        A look is followed by a rest some times as long, so that a thousand ends do not cost a thousand looks
        at a thousand domains.
        """
        clock = self._kernel.clock
        async with self._kernel.store.watch("@releaseDomain") as watch:
            while True:
                await watch.batch()
                began = clock.now_ns()
                self._look()
                await clock.sleep_until((_REST + 1) * clock.now_ns() - _REST * began)

    def _look(self) -> None:
        for domid, life in self._lives.items():
            if life.outcome is None:
                life.outcome = self._outcome(domid)
        self._changed.announce()

    def _outcome(self, domid: int) -> str | None:
        try:
            info = self._kernel.hypercalls.getdomaininfo(domid)
        except HypercallNoSuchDomain:
            return DESTROYED
        if info.domain != domid:
            return DESTROYED
        if info.flags & XEN_DOMINF_shutdown:
            return outcome_of(info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask)
        return DESTROYED if info.flags & XEN_DOMINF_dying else None
