"""Processes of native domains in virtual time, that take their turns as pcpus.py lets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hypervisor.credit import MILLISECOND_NS
from hypervisor.machine import Machine
from hypervisor.vcpu.native.pcpus import Contender, Pcpus
from hypervisor.vcpu.native.turn import TURN_PORT, Turn
from tests.hypervisor.fakes import FakeHost, Guest

STEP_NS: Final = MILLISECOND_NS // 4
TICK_STEPS: Final = 40
BORDER_STEPS: Final = 8
"""between two slice borders of an engine that nobody stops"""

Wants = Callable[[int], bool]
"""whether a guest has anything to do, by how many steps have passed"""


def always(_step: int) -> bool:
    """A guest that computes."""
    return True


@dataclass(eq=False)
class Process:
    """One guest's process. ran: steps in which its engine ran; asked: how often it has rung for its turn."""

    wants: Wants = always
    weight: int = 256
    cap: int = 0
    ran: int = 0
    asked: int = 0
    woken: int = 0
    obeys: bool = True
    held: bool = False
    guest: Guest = field(init=False)
    turn: Turn = field(init=False)
    contender: Contender = field(init=False)
    _blocked: bool = False
    _in_slice: int = 0

    def step(self, now: int) -> None:
        """What it does in a quarter of a millisecond."""
        self.ran += self._may_go_on(now)

    def _may_go_on(self, now: int) -> bool:
        if self.held or not self.guest.domain.executing:
            return False
        if not self.wants(now):
            if not self._blocked:
                self._blocked = True
                self._in_slice = 0
                self.turn.blocked()
            return False
        if self._blocked:
            self._blocked = False
            self.turn.woke()
        if self._in_slice:
            self._in_slice -= 1
            return True
        if self.turn.may_run() or not self.obeys:
            self._in_slice = BORDER_STEPS - 1
            return True
        self.turn.wait(lambda: None)
        return False

    def hold(self, held: bool) -> None:
        """The host stops it, or lets it go on."""
        assert held != self.held
        self.held = held

    def ring(self) -> None:
        """The hypervisor's bell ends a slice."""
        self.woken += 1
        self._in_slice = 0


class TurnMachine:
    """A machine of `pcpus` processors with these processes on it."""

    def __init__(self, pcpus: int, processes: Sequence[Process]) -> None:
        self.host = FakeHost()
        self.machine = Machine(self.host, 64 << 20, pcpus)
        Guest(self.machine)  # dom0
        self.pcpus = Pcpus(self.machine)
        self.processes = list(processes)
        self.ticks = 0
        self._step = 0
        self._next_tick = TICK_STEPS
        for process in processes:
            self.add(process)

    def add(self, process: Process) -> None:
        process.guest = Guest(self.machine, pages=1)
        share = process.guest.domain.share
        share.weight, share.cap = process.weight, process.cap
        header = memoryview(bytearray(4096))

        def asked(port: int) -> None:
            assert port == TURN_PORT
            process.asked += 1
            self.pcpus.heard(process.contender)

        process.turn = Turn(header, asked)
        process.contender = self.pcpus.add(
            process.guest.domain,
            header,
            ring=process.ring,
            cpu_ns=lambda: process.ran * STEP_NS,
            hold=process.hold,
        )

    def run(self, steps: int) -> None:
        """Let time pass; ticks come when they are asked for."""
        for _ in range(steps):
            self.host.time_ns = self._step * STEP_NS
            if self.pcpus.due_ticks and self._step >= self._next_tick:
                self.pcpus.tick()
                self.ticks += 1
                self._next_tick = self._step + TICK_STEPS * self.pcpus.due_ticks
            for process in self.processes:
                process.step(self._step)
            if self.pcpus.due_ticks:
                self._next_tick = min(self._next_tick, self._step + TICK_STEPS * self.pcpus.due_ticks)
            self._step += 1
