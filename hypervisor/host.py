"""What the core is handed: time, the delivery of upcalls, output.

The core never waits and reads no clock. Whoever runs a machine (a unit test, a virtual-time simulation,
the coroutine shell, a process per domain) implements this protocol. Every method is called from inside a
hypercall: it must be quick, and it must not call back into the machine before that hypercall has
returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu


class Host(Protocol):
    """The world around a machine."""

    def now_ns(self) -> int:
        """System time: nanoseconds since the machine started, real or virtual; never goes back."""

    def wall_clock_ns(self) -> int:
        """Unix time of `now_ns()`, in nanoseconds."""

    def kick(self, vcpu: Vcpu) -> None:
        """`vcpu` has something to do: an upcall is pending, it was unblocked or unpaused. Idempotent."""

    def stop(self, domain: Domain) -> None:
        """`domain` has been paused, has shut down or dies: stop executing it. Idempotent."""

    def deadline_changed(self, deadline_ns: int | None) -> None:
        """The earliest timer is now due at this system time (None: none is set); call
        machine.expire_timers() then.
        """

    def console(self, domain: Domain, data: bytes) -> None:
        """`domain` wrote `data` to the emergency console (CONSOLEIO_write); bounded and rate-limited."""
