"""A host in virtual time, for tests of the core: time stands still until the test moves it."""

from collections.abc import Callable

from hypervisor.domain import Domain
from hypervisor.vcpu.state import Vcpu


class FakeHost:
    """Records what the core asks for. `expire` is called by `advance` whenever a deadline comes up on the way."""

    def __init__(self, wall_clock_offset_ns: int = 1_700_000_000_123_456_789) -> None:
        self.time_ns = 0
        self.wall_clock_offset_ns = wall_clock_offset_ns
        self.deadline_ns: int | None = None
        self.kicked: list[Vcpu] = []
        self.stopped: list[Domain] = []
        self.console_output: list[tuple[Domain, bytes]] = []

    def now_ns(self) -> int:
        return self.time_ns

    def wall_clock_ns(self) -> int:
        return self.wall_clock_offset_ns + self.time_ns

    def kick(self, vcpu: Vcpu) -> None:
        self.kicked.append(vcpu)

    def stop(self, domain: Domain) -> None:
        self.stopped.append(domain)

    def deadline_changed(self, deadline_ns: int | None) -> None:
        self.deadline_ns = deadline_ns

    def console(self, domain: Domain, data: bytes) -> None:
        self.console_output.append((domain, data))

    def advance(self, nanoseconds: int, expire: Callable[[], object]) -> None:
        """Let time pass, and call `expire` at each deadline that comes up."""
        end = self.time_ns + nanoseconds
        while self.deadline_ns is not None and self.deadline_ns <= end:
            self.time_ns = max(self.time_ns, self.deadline_ns)
            expire()
        self.time_ns = end

    def take_kicks(self) -> list[Vcpu]:
        """The vCPUs kicked since the last call."""
        kicked, self.kicked = self.kicked, []
        return kicked
