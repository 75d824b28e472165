"""Lets the engines of native domains have their turns on the machine's physical processors.

Each engine is a thread of a process of its own, which the host's kernel schedules. While there are processors for all
that want to run, that is all; here nothing happens at all. Otherwise the credit scheduler (hypervisor/credit.py) says
who runs, and gates are shut for the others (turn.py): once a tick it is looked what each has used, by the host's
clock of its process, which no process can forge, and what it says of itself.

Who blocks and wakes all the time and uses little is let be: the host runs it at once beside the others, as Xen boosts
it, as long as it has credit, and what it uses is charged. Only who has run for a whole tick, or for half the time of
one, is seated on a processor, and may have to wait for one. A process that runs on though its gate is shut is stopped
by the host (SIGSTOP) until its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from hypervisor.vcpu.native.turn import BLOCKS, GATE, STATE, TELL, U32_MASK, State
from hypervisor.vcpu.parking import Parker, new_parker

if TYPE_CHECKING:
    from hypervisor.credit import Unit
    from hypervisor.domain import Domain
    from hypervisor.machine import Machine

NANOSECONDS: Final = 1_000_000_000
UNHURRIED_TICKS: Final = 2
"""between two looks while all have processors, and one more would have none; or while somebody capped is blocked"""
STRIKES: Final = 3
"""so many looks in a row may find that a process runs which must not: it may be in the middle of a hypercall"""
IDLE_PART: Final = 50
"""who uses less than this part of a tick, and might use all, does not want to run"""
RELAXED_TICKS: Final = 8
"""the most between two looks while some processors are free"""


class Contender:
    """An engine among those that share the processors. ring: wakes its process; cpu_ns: processor time that this
    has used; hold: stops it, or lets it go on. was_open: its gate has been open ever since the last look.
    """

    __slots__ = (
        "blocks",
        "capped",
        "cpu_ns",
        "domain",
        "hold",
        "is_held",
        "is_open",
        "looked_ns",
        "ring",
        "strikes",
        "unit",
        "used_ns",
        "was_open",
        "words",
    )

    def __init__(
        self,
        domain: Domain,
        unit: Unit,
        header: memoryview,
        *,
        ring: Callable[[], None],
        cpu_ns: Callable[[], int],
        hold: Callable[[bool], None],
        now_ns: int,
    ) -> None:
        self.domain = domain
        self.unit = unit
        self.words = header.cast("I")
        self.ring = ring
        self.cpu_ns = cpu_ns
        self.hold = hold
        self.used_ns = cpu_ns()
        self.looked_ns = now_ns
        self.blocks = 0
        self.capped = bool(unit.share.cap)
        self.is_open = self.was_open = self.is_held = False
        self.strikes = 0


class Pcpus:
    """The processors of a machine. `run` is their clock."""

    def __init__(self, machine: Machine) -> None:
        self.contenders: dict[Contender, None] = {}
        self._scheduler = machine.scheduler
        self._now_ns = machine.host.now_ns
        self._parker: Parker | None = None
        self._generation = 0
        self.due_ticks = 0
        """so many pass until the next tick is due; 0: nobody needs one"""

    # ---- who there is

    def add(
        self,
        domain: Domain,
        header: memoryview,
        *,
        ring: Callable[[], None],
        cpu_ns: Callable[[], int],
        hold: Callable[[bool], None],
    ) -> Contender:
        """One more engine, which may run from now on if there is a processor. header: the page of words."""
        self.tick()  # what the others have used until now is no concern of this one
        unit = self._scheduler.add(domain.share)
        contender = Contender(
            domain, unit, header, ring=ring, cpu_ns=cpu_ns, hold=hold, now_ns=self._now_ns()
        )
        self.contenders[contender] = None
        self._scheduler.wake(unit)
        self._settle()
        self.hurry()
        return contender

    def remove(self, contender: Contender) -> None:
        """Its process has ended, or is about to."""
        del self.contenders[contender]
        self._scheduler.remove(contender.unit, self._now_ns())
        contender.words.release()
        self._settle()

    def heard(self, contender: Contender) -> None:
        """Its process has rung: it waits for a processor, or leaves one that others wait for."""
        state, unit = contender.words[STATE], contender.unit
        if state == State.WAITS and not unit.wants:
            self._scheduler.wake(unit)
        elif state == State.BLOCKED and unit.wants:
            self._scheduler.sleep(unit)
        else:
            return  # it says what is known
        self._settle()
        self.hurry()

    # ---- as time passes

    async def run(self) -> None:
        """Tick while that is of use to anybody, until it is cancelled."""
        self._parker = parker = new_parker()
        self._scheduler.on_change = self.hurry
        try:
            while True:
                if self.due_ticks:
                    with anyio.move_on_after(self.due_ticks * self._scheduler.tick_ns / NANOSECONDS):
                        await parker.park()
                else:
                    await parker.park()
                self.tick()
        finally:
            self._scheduler.on_change = self._parker = None

    def hurry(self) -> None:
        """Something has changed that makes the next look due in a tick."""
        if self.due_ticks != 1:
            self.due_ticks = 1
            if self._parker is not None:
                self._parker.unpark()

    def tick(self) -> None:
        """Look what each has done, and say who runs until the next time."""
        now_ns = self._now_ns()
        self._generation = self._generation % U32_MASK + 1
        for contender in self.contenders:
            self._look(contender, now_ns)
        self._scheduler.tick(now_ns)
        self._apply()
        self.due_ticks = self._ticks_until_next()

    def _look(self, contender: Contender, now_ns: int) -> None:
        scheduler, unit, words = self._scheduler, contender.unit, contender.words
        before_ns, contender.used_ns = contender.used_ns, contender.cpu_ns()
        used_ns = max(0, contender.used_ns - before_ns)
        scheduler.charge(unit, used_ns)
        if bool(unit.share.cap) != contender.capped:
            contender.capped = not contender.capped
            unit.allowance_ns = 0  # what was used before there was a cap
        elapsed_ns, contender.looked_ns = now_ns - contender.looked_ns, now_ns
        much = 2 * used_ns > elapsed_ns
        little = IDLE_PART * used_ns < elapsed_ns and 2 * elapsed_ns >= scheduler.tick_ns
        contender.strikes = contender.strikes + 1 if much and not contender.is_open else 0
        if contender.strikes >= STRIKES:
            contender.is_held = True
            contender.hold(True)
        state, blocks = words[STATE], words[BLOCKS]
        steady = much or blocks == contender.blocks
        contender.blocks = blocks
        wants = contender.is_held or state == State.WAITS or (state == State.RUNS and steady)
        if contender.was_open and little:
            wants = False  # whatever it says: others would wait for it for ever
        contender.was_open = contender.is_open
        if wants and contender.domain.executing:
            scheduler.wake(unit)
        else:
            scheduler.sleep(unit)

    def _settle(self) -> None:
        """Who wants to run has changed."""
        self._scheduler.choose(self._now_ns())
        self._apply()

    def _apply(self) -> None:
        """Open and shut the gates."""
        contended = self._scheduler.contended
        for contender in self.contenders:
            unit = contender.unit
            may_wake = not unit.parked and (not contended or unit.credit_ns >= 0)
            is_open = unit.runs if unit.wants else may_wake
            contender.words[TELL] = self._generation if contended and unit.runs else 0
            contender.words[GATE] = is_open
            if is_open != contender.is_open:
                contender.is_open = is_open
                contender.was_open = False
                if is_open and contender.is_held:
                    contender.is_held = False
                    contender.hold(False)
                if is_open or unit.wants:
                    contender.ring()

    def _ticks_until_next(self) -> int:
        contenders, scheduler = self.contenders, self._scheduler
        if scheduler.contended or any(c.capped and (c.unit.wants or c.unit.parked) for c in contenders):
            return 1
        if len(contenders) > scheduler.pcpus:
            if sum(c.unit.wants for c in contenders) >= scheduler.pcpus:
                return UNHURRIED_TICKS
            return min(2 * max(1, self.due_ticks), RELAXED_TICKS)
        return UNHURRIED_TICKS if any(c.capped for c in contenders) else 0
