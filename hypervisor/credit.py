"""The credit scheduler: which of the engines that want to run have a physical processor now.

Follows xen/common/sched/credit.c of Xen 4.17: weight and cap, credit in three priorities, BOOST for who wakes,
ticks, a time slice, a rate limit. What is scheduled is a unit: a native domain's engine, which executes all its
vCPUs in one thread. The scheduler reads no clock and runs nobody; whoever does hands in the time (`now_ns`), the
processor time that units have used (`charge`), and who wants to run (`wake`, `sleep`), calls `tick` every `tick_ns`,
and looks at `unit.runs`.

Where it differs from Xen's: there is one queue for all processors, as there are no caches to stay in, and among
equals it is ordered by credit. What is charged is the time that was used, not the one between two switches, so that
nobody can sleep through the ticks. Credit is given out as it is burned, by weight, and what one cannot use goes to the
others, instead of being lost (credit_shares.py). A cap is an account of its own, which is settled at every tick.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from hypervisor.credit_shares import share_out

MILLISECOND_NS: Final = 1_000_000
DEFAULT_SLICE_NS: Final = 30 * MILLISECOND_NS  # CSCHED_DEFAULT_TSLICE_MS
DEFAULT_RATELIMIT_NS: Final = MILLISECOND_NS  # SCHED_DEFAULT_RATELIMIT_US
TICKS_A_SLICE: Final = 3  # CSCHED_TICKS_PER_TSLICE
DEFAULT_WEIGHT: Final = 256  # CSCHED_DEFAULT_WEIGHT
PERCENT: Final = 100
MOST_DEBT_NS: Final = 1000 * MILLISECOND_NS
"""whatever happened, a unit has paid for it after as much as that of its share"""


class Priority(IntEnum):
    """CSCHED_PRI_TS_*."""

    OVER = -2
    """it has used more than its share"""
    UNDER = -1
    BOOST = 0
    """it has just been woken, and has credit"""


class Share:
    """What a domain is entitled to: struct xen_domctl_sched_credit. weight: against the others'. cap: at most so many
    percent of one processor; 0: no limit.
    """

    __slots__ = ("cap", "weight")

    def __init__(self, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        self.weight = weight
        self.cap = cap


class Unit:
    """What one engine has and wants.

    wants         it would run if it had a processor
    runs          it has one, since `since_ns`
    credit_ns     processor time that it may use before others that want it; negative: it has used theirs
    burned_ns     what it has used since the last accounting
    allowance_ns  processor time that its cap leaves it just now; at most one slice's
    parked        its cap leaves it none
    """

    __slots__ = (
        "allowance_ns",
        "burned_ns",
        "credit_ns",
        "parked",
        "priority",
        "runs",
        "share",
        "since_ns",
        "turn",
        "wants",
    )

    def __init__(self, share: Share) -> None:
        self.share = share
        self.wants = self.runs = self.parked = False
        self.priority = Priority.UNDER
        self.credit_ns = self.burned_ns = self.allowance_ns = 0
        self.since_ns = 0
        self.turn = 0
        """its place in the queue, among those of its priority"""


class CreditScheduler:
    """pcpus: how many units run at once. units: all that there are. on_change: called when a share or the time slice
    was changed by whoever may.
    """

    def __init__(self, pcpus: int, now_ns: int = 0) -> None:
        self.pcpus = pcpus
        self.slice_ns = DEFAULT_SLICE_NS
        self.ratelimit_ns = DEFAULT_RATELIMIT_NS
        self.units: dict[Unit, None] = {}
        self.on_change: Callable[[], None] | None = None
        self._turns = 0
        self._ticked_ns = self._accounted_ns = now_ns
        self._used_ns = 0
        self._overdraft_ns = 0
        self._spared = 0

    @property
    def tick_ns(self) -> int:
        """How often `tick` is to be called while units wait, or are capped."""
        return max(MILLISECOND_NS, self.slice_ns // TICKS_A_SLICE)

    @property
    def contended(self) -> bool:
        """Whether somebody who may run and wants to does not."""
        return any(unit.wants and not unit.runs and not unit.parked for unit in self.units)

    def changed(self) -> None:
        """A share, the time slice or the rate limit is another one now."""
        if self.on_change is not None:
            self.on_change()

    # ---- who there is, and who wants to run

    def add(self, share: Share) -> Unit:
        """A new unit, which sleeps. `share` may change."""
        unit = Unit(share)
        self.units[unit] = None
        return unit

    def remove(self, unit: Unit, now_ns: int) -> None:
        """It is gone."""
        del self.units[unit]
        self.choose(now_ns)

    def wake(self, unit: Unit) -> None:
        """It wants to run. One that has credit comes before all that have run for a while (csched_unit_wake).
        Takes effect with the next `choose` or `tick`.
        """
        if unit.wants:
            return
        unit.wants = True
        if unit.credit_ns < 0:
            unit.priority = Priority.OVER
        else:
            unit.priority = Priority.UNDER if unit.parked else Priority.BOOST
        self._to_the_end(unit)

    def sleep(self, unit: Unit) -> None:
        """It does not want to run. Takes effect with the next `choose` or `tick`."""
        unit.wants = False

    def charge(self, unit: Unit, used_ns: int) -> None:
        """It has used so much processor time."""
        unit.credit_ns -= used_ns
        unit.burned_ns += used_ns
        self._used_ns += used_ns
        if unit.share.cap:
            unit.allowance_ns -= used_ns

    # ---- as time passes

    def tick(self, now_ns: int) -> None:
        """To be called when all that was used is charged: settle accounts, and choose who runs (csched_tick,
        csched_acct).
        """
        elapsed_ns = max(0, now_ns - self._ticked_ns)
        self._ticked_ns = now_ns
        self._settle_overdraft(elapsed_ns)
        if now_ns - self._accounted_ns >= self.slice_ns:
            share_out(list(self.units), now_ns - self._accounted_ns, self.slice_ns)
            self._accounted_ns = now_ns
        for unit in self.units:
            if unit.share.cap:
                self._settle_cap(unit, elapsed_ns)
            else:
                unit.parked = False
                unit.allowance_ns = 0
            boosted = unit.priority is Priority.BOOST and not unit.runs and unit.wants
            if unit.credit_ns < 0:
                unit.priority = Priority.OVER
            elif not boosted:  # it was, and uses its processor for longer than a moment
                unit.priority = Priority.UNDER
        self.choose(now_ns)

    def _settle_overdraft(self, elapsed_ns: int) -> None:
        """More may have been used than there is, while units that were told to stop still ran, or woke without
        asking. It is given back by leaving a processor idle for a tick, but not for two in a row: somebody who
        does not stop at all shall not stop all others.
        """
        overdraft_ns = self._overdraft_ns + self._used_ns - self.pcpus * elapsed_ns
        self._overdraft_ns = min(max(0, overdraft_ns), self.slice_ns)
        self._used_ns = 0
        self._spared = int(self._overdraft_ns >= self.tick_ns and not self._spared)

    def _settle_cap(self, unit: Unit, elapsed_ns: int) -> None:
        cap = unit.share.cap
        earned_ns = unit.allowance_ns + elapsed_ns * cap // PERCENT
        unit.allowance_ns = max(-MOST_DEBT_NS, min(earned_ns, self.slice_ns * cap // PERCENT))
        unit.parked = unit.allowance_ns < 0

    def choose(self, now_ns: int) -> None:
        """Say who runs: by priority, and among equals who has run for less than a slice, then who has most credit
        (csched_schedule). Nobody who has just begun to run is stopped.
        """
        ready: list[tuple[int, bool, int, int, Unit]] = []
        for unit in self.units:
            if not unit.wants or unit.parked:
                unit.runs = False
                continue
            stays = False
            rank = unit.priority
            if unit.runs:
                ran_ns = now_ns - unit.since_ns
                stays = ran_ns < self.slice_ns
                if stays and 0 <= ran_ns < self.ratelimit_ns:
                    rank = Priority.BOOST
                elif not stays:
                    self._to_the_end(unit)
            ready.append((-rank, not stays, -unit.credit_ns, unit.turn, unit))
        processors = self.pcpus - self._spared
        if len(ready) > processors:
            ready.sort(key=_order)
        for place, (_, expired, _, _, unit) in enumerate(ready):
            if place >= processors:
                if unit.runs:
                    unit.runs = False
                    self._to_the_end(unit)
            elif not unit.runs or expired:
                unit.runs = True
                unit.since_ns = now_ns

    def _to_the_end(self, unit: Unit) -> None:
        self._turns += 1
        unit.turn = self._turns


def _order(entry: tuple[int, bool, int, int, Unit]) -> tuple[int, bool, int, int]:
    return entry[:4]
