"""Bells between two processes: no event is lost, none is believed that the sender may not send."""

import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.vcpu.process.doorbell import ASLEEP, Bell, BellMemory, Listener, Ringer

Ends = tuple[Ringer, Listener]


def make(bound: set[int] | None = None) -> Ends:
    bell = Bell()
    ends = (
        Ringer(BellMemory(bell.memory_fd), bell.sender_end),
        Listener(BellMemory(bell.memory_fd), bell.listener_end, bound),
    )
    os.close(bell.memory_fd)
    return ends


@pytest.fixture
def ends() -> Iterator[Ends]:
    ringer, listener = make()
    yield ringer, listener
    ringer.close()
    listener.close()


def is_awaited(listener: Listener) -> bool:
    return not select.select([listener.pipe], [], [], 0)[0]


def test_a_listener_that_is_awake_is_not_woken(ends: Ends) -> None:
    ringer, listener = ends
    ringer.ring(7)
    assert is_awaited(listener)
    assert listener.collect() == [7]
    assert listener.collect() == []


def test_one_that_sleeps_is(ends: Ends) -> None:
    ringer, listener = ends
    listener.fall_asleep()
    ringer.ring(4095)
    ringer.ring(1)
    assert not is_awaited(listener)
    listener.awake()
    listener.drain()
    assert is_awaited(listener)
    assert listener.collect() == [1, 4095]


def test_a_sender_rings_for_its_own_ports_only() -> None:
    ringer, listener = make(bound={5})
    for port in range(1, 4096):
        ringer.ring(port)
    assert listener.collect() == [5]
    assert listener.collect() == []
    ringer.close()
    listener.close()


def test_bytes_that_nobody_writes_mean_nothing(ends: Ends) -> None:
    _, listener = ends
    listener.memory.ports[9] = 200
    assert listener.collect() == []


def test_a_sender_is_never_stopped(ends: Ends) -> None:
    """Neither by a listener that does not read, nor by one that changes the flags of its own end."""
    ringer, listener = ends
    listener.fall_asleep()
    os.set_blocking(listener.pipe, True)
    for _ in range(100_000):
        ringer.wake()
    os.close(listener.pipe)
    ringer.ring(3)
    listener.pipe = os.open("/dev/null", os.O_RDONLY)


def test_neither_can_take_the_memory_away(ends: Ends) -> None:
    bell = Bell()
    for size in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(bell.memory_fd, size)
    bell.close()


def test_a_request_to_sync_wakes_like_an_event(ends: Ends) -> None:
    ringer, listener = ends
    listener.fall_asleep()
    ringer.ask_to_sync()
    assert not is_awaited(listener)
    assert listener.wants_sync
    listener.synced()
    assert not listener.wants_sync


class BellMachine(RuleBasedStateMachine):
    """Sender and listener in any order of steps: an event is either collected or still to be collected, and a
    listener that sleeps on it is woken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ringer, self.listener = make()
        self.rung: set[int] = set()
        self.sleeps = False

    def teardown(self) -> None:
        self.ringer.close()
        self.listener.close()

    @rule(port=st.integers(1, 4095))
    def ring(self, port: int) -> None:
        self.ringer.ring(port)
        self.rung.add(port)

    @rule()
    def collect(self) -> None:
        self.wake_up()
        assert set(self.listener.collect()) == self.rung
        self.rung.clear()

    @rule()
    def fall_asleep(self) -> None:
        self.listener.fall_asleep()
        self.sleeps = not self.rung or bool(self.listener.collect())
        self.rung.clear()
        if not self.sleeps:
            self.wake_up()

    def wake_up(self) -> None:
        self.listener.awake()
        self.listener.drain()
        self.sleeps = False

    @invariant()
    def nobody_sleeps_on_an_event(self) -> None:
        if self.sleeps and self.rung:
            assert not is_awaited(self.listener)
        assert bool(self.listener.memory.header[ASLEEP]) == self.sleeps


TestBells = BellMachine.TestCase
