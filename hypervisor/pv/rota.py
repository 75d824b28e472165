"""Which vCPU of a native domain executes next: they share one engine.

They have their turns one after the other. A turn is a quantum, which may be used in several slices: setting a timer
ends a slice, not the turn, or two vCPUs of which one waits for the other could go on so for ever. One that was just
woken, or that another has sent an IPI, comes in between, for as long as such visits have not used a quantum in this
turn: whoever sent it may be waiting for an answer. Visits do not change whose turn it is next, so that nobody is left
out, whoever wakes whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

QUANTUM_NS: Final = 4_000_000


class Rota:
    """yielded: the vCPU that executes lets others have their turn. lonely: nobody else wanted it, the last time."""

    def __init__(self, vcpus: Sequence[PvVcpu]) -> None:
        self.yielded = False
        self.lonely = False
        self._vcpus = vcpus
        self._preferred: PvVcpu | None = None
        self._visitor: PvVcpu | None = None
        self._turn = len(vcpus) - 1
        """whose turn it is, by id"""
        self._left_ns = 0
        """of that turn"""
        self._visits_ns = 0
        """for visits in this turn"""

    def prefer(self, vcpu: PvVcpu) -> None:
        """It has been woken, or sent an IPI."""
        self._preferred = vcpu

    def used(self, nanoseconds: int) -> None:
        """By the vCPU that was chosen last."""
        if self._visitor is not None:
            self._visits_ns -= nanoseconds
        else:
            self._left_ns -= nanoseconds

    def choose(self) -> PvVcpu | None:
        """The one that is to execute; None if all wait for something."""
        last_visitor, self._visitor = self._visitor, None
        preferred, self._preferred = self._preferred, None
        yielded, self.yielded = self.yielded, False
        self.lonely = False
        holder = self._vcpus[self._turn]
        gives_up = yielded and last_visitor is None
        if gives_up:
            self._left_ns = 0
        visitor = last_visitor if preferred is None and not yielded else preferred
        if visitor is not None and visitor is not holder and visitor.runnable and self._visits_ns > 0:
            self._visitor = visitor
            return visitor
        if holder.runnable and self._left_ns > 0:
            return holder
        for step in range(1, len(self._vcpus) + 1):
            vcpu = self._vcpus[(holder.id + step) % len(self._vcpus)]
            if vcpu.runnable:
                self.lonely = gives_up and vcpu is holder
                self._turn = vcpu.id
                self._left_ns = self._visits_ns = QUANTUM_NS
                return vcpu
        return None
