"""Which vCPU of a native domain executes next: they share one engine.

Each has a quantum, which it may use in several slices: setting a timer ends a slice, not the quantum, or two vCPUs of
which one waits for the other could go on so for ever. One that was just woken, or that another has sent an IPI, comes
first: whoever sent it may be waiting for an answer.
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
        self._left_ns = 0

    def prefer(self, vcpu: PvVcpu) -> None:
        """It has been woken, or sent an IPI."""
        self._preferred = vcpu

    def used(self, nanoseconds: int) -> None:
        """By the vCPU that was chosen last."""
        self._left_ns -= nanoseconds

    def choose(self, last: PvVcpu | None) -> PvVcpu | None:
        """After `last`; None if all wait for something."""
        preferred, self._preferred = self._preferred, None
        yielded, self.yielded = self.yielded, False
        self.lonely = False
        if preferred is not None and preferred is not last and preferred.runnable:
            self._left_ns = QUANTUM_NS
            return preferred
        if last is not None and last.runnable and self._left_ns > 0 and not yielded:
            return last
        self._left_ns = QUANTUM_NS
        vcpus = self._vcpus
        first = 0 if last is None else last.id + 1
        for step in range(len(vcpus)):
            vcpu = vcpus[(first + step) % len(vcpus)]
            if vcpu.runnable:
                self.lonely = yielded and vcpu is last
                return vcpu
        return None
