"""What processes are told, however channels, processes and pages come and go and whenever they ask: once all is told,
an event goes where the core's channels say and each guest frame shows what the core's physmap says, and no event
was lost on the way.
"""

from dataclasses import dataclass
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from hypervisor.event_channel import ChannelState
from hypervisor.machine import Machine
from hypervisor.vcpu.process.bells import Bells
from tests.hypervisor.fakes import FakeHost, Guest
from tests.hypervisor.vcpu.process.wired import (
    Wired,
    alloc_unbound,
    bind_interdomain,
    close,
    open_files,
    send,
)

DOMAINS = 4
MOST_PORTS = 24
NO_MORE = OSError(24, "too many open files")

numbers = st.integers(0, DOMAINS - 1)


@dataclass(frozen=True)
class End:
    """A port of a domain, by its number here."""

    domain: int
    port: int


class ChannelsMachine(RuleBasedStateMachine):
    """Domains, processes or not, that open and close channels and send events."""

    channels = Bundle("channels")

    def __init__(self) -> None:
        super().__init__()
        self.files = open_files()
        self.machine = Machine(FakeHost(), 64 << 20)
        self.guests = [Guest(self.machine) for _ in range(DOMAINS)]
        self.bells = Bells()
        self.wired: dict[int, Wired] = {}
        self.sent: set[End] = set()
        """events that their ports have to see"""

    def teardown(self) -> None:
        for number in list(self.wired):
            self.stop(number)
        assert len(self.bells) == 0
        for guest in reversed(self.guests):
            guest.destroy()
        assert open_files() == self.files

    # What happens

    @rule(target=channels, one=numbers, other=numbers)
    @precondition(lambda self: all(guest.domain.events.active < MOST_PORTS for guest in self.guests))
    def link(self, one: int, other: int) -> tuple[End, End]:
        return self._link(one, other)

    def _link(self, one: int, other: int) -> tuple[End, End]:
        far = alloc_unbound(self.guests[one], self.wired.get(one), self.guests[other].domid)
        near = bind_interdomain(self.guests[other], self.wired.get(other), self.guests[one].domid, far)
        ends = End(one, far), End(other, near)
        self.sent.add(ends[1])  # as Xen has it
        return ends

    @rule(ends=consumes(channels), from_far_end=st.booleans())
    def unlink(self, ends: tuple[End, End], from_far_end: bool) -> None:
        self._unlink(*(ends if from_far_end else ends[::-1]))

    def _unlink(self, gone: End, left: End) -> None:
        close(self.guests[gone.domain], self.wired.get(gone.domain), gone.port)
        if left != gone:
            close(self.guests[left.domain], self.wired.get(left.domain), left.port)
        self.sent -= {gone, left}

    @rule(ends=channels, from_far_end=st.booleans())
    def send(self, ends: tuple[End, End], from_far_end: bool) -> None:
        self._send(*(ends if from_far_end else ends[::-1]))

    def _send(self, source: End, target: End) -> None:
        assert send(self.guests[source.domain], self.wired.get(source.domain), source.port) == 0
        self.sent.add(target)

    @rule(number=numbers)
    def start(self, number: int) -> None:
        if number not in self.wired:
            self.wired[number] = Wired(self.guests[number], self.bells)

    @rule(number=numbers)
    def stop(self, number: int) -> None:
        """A process ends; what it has rung, and has been rung for it, is with it, and what others ring for it until
        they hear of its end is lost, like all that concerns a domain that has ended.
        """
        wired = self.wired.pop(number, None)
        if wired is not None:
            wired.hear()
            wired.take()
            wired.close()
            for other in self.wired.values():
                other.take()

    @rule(number=numbers)
    def take(self, number: int) -> None:
        if number in self.wired:
            self.wired[number].take()

    @rule(number=numbers)
    def hear(self, number: int) -> None:
        if number in self.wired:
            self.wired[number].hear()

    @rule(one=numbers, other=numbers)
    @precondition(lambda self: all(guest.domain.events.active < MOST_PORTS for guest in self.guests))
    def link_without_descriptors(self, one: int, other: int) -> None:
        """No bell is to be had: events go by way of the hypervisor."""
        with patch("hypervisor.vcpu.process.bell_changes.Bell", side_effect=NO_MORE):
            far, near = self._link(one, other)
        self._send(far, near)
        self.take(near.domain)
        self._unlink(near, far)

    # What holds

    @rule()
    def settle(self) -> None:
        """All is heard and told: every event is where it was sent."""
        for _ in range(3):
            for wired in self.wired.values():
                wired.hear()
            for wired in self.wired.values():
                wired.take()
        assert all(wired.is_settled for wired in self.wired.values())
        for end in self.sent:
            events = self.guests[end.domain].domain.events
            channel = events.lookup(end.port)
            assert channel is not None
            assert events.bits.is_pending(channel), end
        self.sent.clear()
        for guest in self.guests:
            for port in range(1, MOST_PORTS):
                self.forget_events(guest, port)
        for number, wired in self.wired.items():
            self.check_routes(number, wired)

    def forget_events(self, guest: Guest, port: int) -> None:
        channel = guest.domain.events.lookup(port)
        if channel is not None:
            guest.domain.events.bits.clear_pending(channel)

    def check_routes(self, number: int, wired: Wired) -> None:
        routes = wired.platform._connection.routes._routes
        linked = {channel.port: channel for channel in self.guests[number].domain.events.links()}
        assert routes.keys() == linked.keys()
        for port, channel in linked.items():
            assert channel.state is ChannelState.INTERDOMAIN
            assert channel.peer is not None
            ringer, far_port = routes[port]
            if ringer is wired.platform._connection.routes._to_hypervisor:
                assert far_port == port
            else:
                assert far_port == channel.peer.port
                listener = self.listener_of(channel.peer.owner.domain.domid, ringer.memory.header)
                assert channel.peer.port in listener

    def listener_of(self, domid: int, header: memoryview) -> set[int]:
        """The ports that a process takes events for by the bell with this header."""
        (wired,) = (wired for wired in self.wired.values() if wired.domain.domid == domid)
        header[100] = 1
        try:
            (bound,) = (
                listener.bound
                for listener in wired.platform._connection.listening._all
                if listener.memory.header[100] and listener.bound is not None
            )
        finally:
            header[100] = 0
        return bound

    @invariant()
    def notes_are_bounded(self) -> None:
        for wired in self.wired.values():
            assert len(wired.changes.bells.noted) <= MOST_PORTS + 2
            held = wired.changes.bells._told_hears
            assert len(held) <= MOST_PORTS + 2
        assert len(self.bells) <= DOMAINS * (DOMAINS - 1)


TestChannels = ChannelsMachine.TestCase
TestChannels.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
