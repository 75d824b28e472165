"""Physical processors in virtual time, on which units run as a credit scheduler says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hypervisor.credit import MILLISECOND_NS, CreditScheduler, Share, Unit

STEP_NS: Final = MILLISECOND_NS


@dataclass
class Load:
    """Something that runs: its unit, and what it wants in step `now` after it has run `ran` steps."""

    weight: int = 256
    cap: int = 0
    wants: Callable[[int, int], bool] = lambda now, ran: True
    ran: int = 0
    waited: int = 0
    longest_wait: int = 0
    history: list[bool] = field(default_factory=list)
    unit: Unit = field(init=False)


class Processors:
    """So many, and the loads on them. After `run`, each load says in how many steps of a millisecond it ran."""

    def __init__(self, pcpus: int, loads: Sequence[Load], tick_steps: int = 10) -> None:
        self.scheduler = CreditScheduler(pcpus)
        self.loads = loads
        self.idle_while_wanted = 0
        self._now = 0
        self._tick_steps = tick_steps
        for load in loads:
            load.unit = self.scheduler.add(Share(load.weight, load.cap))

    @property
    def now_ns(self) -> int:
        return self._now * STEP_NS

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        scheduler = self.scheduler
        changed = False
        for load in self.loads:
            wants = load.wants(self._now, load.ran)
            if wants != load.unit.wants:
                (scheduler.wake if wants else scheduler.sleep)(load.unit)
                changed = True
        if self._now % self._tick_steps == 0:
            scheduler.tick(self.now_ns)
        elif changed:
            scheduler.choose(self.now_ns)
        running = [load for load in self.loads if load.unit.runs]
        able = [load for load in self.loads if load.unit.wants and not load.unit.parked]
        self.idle_while_wanted += min(scheduler.pcpus, len(able)) - len(running)
        for load in self.loads:
            runs = load.unit.runs
            load.history.append(runs)
            if runs:
                load.ran += 1
                load.waited = 0
                scheduler.charge(load.unit, STEP_NS)
            elif load.unit.wants:
                load.waited += 1
                load.longest_wait = max(load.longest_wait, load.waited)
        self._now += 1
