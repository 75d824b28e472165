"""Timers in virtual time: when they fire, in what order, and what hostile deadlines do (XSA-20)."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hypervisor.abi.xen import VIRQ_TIMER
from hypervisor.abi.xen import __HYPERVISOR_set_timer_op as SET_TIMER_OP
from hypervisor.timers import HUGE_TIMEOUT_ANSWER_NS, MILLISECOND_NS, Timer, TimerQueue, signed64
from tests.hypervisor.fakes import FakeHost, Guest, new_machine

SECOND_NS = 1_000_000_000


class Recorder:
    """Timers that note when they fire."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.queue = TimerQueue(self.host)
        self.fired: list[tuple[str, int]] = []

    def timer(self, name: str) -> Timer:
        return Timer(lambda: self.fired.append((name, self.host.time_ns)))

    def set(self, timer: Timer, deadline_ns: int) -> None:
        self.queue.set(timer, deadline_ns, self.host.time_ns)

    def advance(self, nanoseconds: int) -> None:
        self.host.advance(nanoseconds, lambda: self.queue.expire(self.host.time_ns))


def test_timers_fire_in_order_of_their_deadlines() -> None:
    recorder = Recorder()
    for name, deadline in [("c", 30), ("a", 10), ("b", 20)]:
        recorder.set(recorder.timer(name), deadline)
    recorder.advance(25)
    assert recorder.fired == [("a", 10), ("b", 20)]
    recorder.advance(5)
    assert recorder.fired[2:] == [("c", 30)]
    assert recorder.host.deadline_ns is None


def test_a_deadline_in_the_past_fires_at_once() -> None:
    recorder = Recorder()
    recorder.host.time_ns = 100
    recorder.set(recorder.timer("late"), 100)
    assert recorder.fired == [("late", 100)]
    assert len(recorder.queue) == 0


def test_setting_a_timer_again_moves_it() -> None:
    recorder = Recorder()
    timer = recorder.timer("moved")
    recorder.set(timer, 10)
    recorder.set(timer, 50)
    assert recorder.host.deadline_ns == 50
    recorder.set(timer, 20)
    assert recorder.host.deadline_ns == 20
    recorder.advance(100)
    assert recorder.fired == [("moved", 20)]


def test_a_cancelled_timer_is_forgotten_and_the_host_hears_of_the_next_one() -> None:
    recorder = Recorder()
    first, second = recorder.timer("first"), recorder.timer("second")
    recorder.set(first, 10)
    recorder.set(second, 20)
    recorder.queue.cancel(first)
    recorder.queue.cancel(first)
    assert recorder.host.deadline_ns == 20
    recorder.advance(30)
    assert recorder.fired == [("second", 20)]


def test_a_timer_cancelled_by_one_that_fires_with_it_does_not_fire() -> None:
    recorder = Recorder()
    victim = recorder.timer("victim")
    killer = Timer(lambda: recorder.queue.cancel(victim))
    recorder.set(killer, 10)
    recorder.set(victim, 10)
    recorder.advance(10)
    assert recorder.fired == []
    assert len(recorder.queue) == 0


def test_an_action_that_sets_its_own_timer_waits_for_the_next_expiry() -> None:
    host = FakeHost()
    queue = TimerQueue(host)
    calls: list[int] = []
    timer = Timer(lambda: (calls.append(host.time_ns), queue.set(timer, host.time_ns + 1, host.time_ns)))
    queue.set(timer, 5, 0)
    host.time_ns = 10_000
    assert queue.expire(host.time_ns) == 1
    assert calls == [10_000]
    assert host.deadline_ns == 10_001


def test_a_timer_moved_for_ever_costs_no_memory() -> None:
    recorder = Recorder()
    timer = recorder.timer("restless")
    for deadline in range(100_000, 0, -1):
        recorder.set(timer, deadline)
    assert len(recorder.queue) == 1
    assert len(recorder.queue._heap) < 200


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 40), st.integers(0, 5))))
def test_the_queue_agrees_with_a_dictionary(steps: list[tuple[int, int, int]]) -> None:
    recorder = Recorder()
    timers = [recorder.timer(str(index)) for index in range(6)]
    model: dict[str, int] = {}
    expected: list[tuple[str, int]] = []
    for index, delay, passing in steps:
        now = recorder.host.time_ns
        if delay < 0:
            recorder.queue.cancel(timers[index])
            model.pop(str(index), None)
        else:
            recorder.set(timers[index], now + delay)
            model[str(index)] = now + delay
            if delay == 0:
                expected.append((str(index), now))
                del model[str(index)]
        recorder.advance(passing)
        due = sorted((at, name) for name, at in model.items() if at <= now + passing)
        expected += [(name, at) for at, name in due]
        for _, name in due:
            del model[name]
        assert sorted(recorder.fired) == sorted(expected)
        assert [at for _, at in recorder.fired] == [at for _, at in expected]
        assert recorder.host.deadline_ns == min(model.values(), default=None)
        assert len(recorder.queue) == len(model)


def test_signed64() -> None:
    assert signed64(2**63 - 1) == 2**63 - 1
    assert signed64(2**63) == -(2**63)
    assert signed64(2**64 - 1) == -1


# ---- set_timer_op


class TimerGuest(Guest):
    """A guest with VIRQ_TIMER bound, and masked upcalls cleared between looks."""

    @classmethod
    def on_new_machine(cls) -> tuple["TimerGuest", FakeHost]:
        machine, host = new_machine()
        guest = cls(machine)
        guest.port = guest.domain.events.bind_virq(VIRQ_TIMER, 0)
        return guest, host

    def set_timer(self, timeout: int) -> None:
        assert self.hypercall(SET_TIMER_OP, timeout) == 0

    def ticks(self) -> int:
        """Whether VIRQ_TIMER came since the last look."""
        pending = self.domain.events.poll(self.port)
        if pending:
            self.domain.events.bits.clear_pending(self.domain.events.lookup(self.port))
        return int(pending)

    def advance(self, host: FakeHost, nanoseconds: int) -> int:
        host.advance(nanoseconds, self.machine.expire_timers)
        return self.ticks()


def test_the_single_shot_timer_raises_virq_timer_once() -> None:
    guest, host = TimerGuest.on_new_machine()
    guest.set_timer(SECOND_NS)
    assert guest.advance(host, SECOND_NS - 1) == 0
    assert guest.advance(host, 1) == 1
    assert guest.advance(host, 10 * SECOND_NS) == 0


def test_zero_stops_the_timer() -> None:
    guest, host = TimerGuest.on_new_machine()
    guest.set_timer(SECOND_NS)
    guest.set_timer(0)
    assert host.deadline_ns is None
    assert guest.advance(host, 2 * SECOND_NS) == 0


@pytest.mark.parametrize("timeout", [1, SECOND_NS - 1, SECOND_NS])
def test_a_timeout_that_has_passed_comes_with_the_hypercall(timeout: int) -> None:
    guest, host = TimerGuest.on_new_machine()
    host.time_ns = SECOND_NS
    guest.set_timer(timeout)
    assert guest.ticks() == 1
    assert host.deadline_ns is None


@pytest.mark.parametrize(
    "timeout", [2**63, 2**64 - 1, -1, -(2**63), 2**63 - 1, SECOND_NS + (1 << 50), 2**64 + 2**63]
)
def test_a_negative_or_huge_timeout_is_answered_in_100_ms(timeout: int) -> None:
    guest, host = TimerGuest.on_new_machine()
    host.time_ns = SECOND_NS
    guest.set_timer(timeout)
    assert host.deadline_ns == SECOND_NS + HUGE_TIMEOUT_ANSWER_NS


def test_the_longest_timeout_that_is_taken_seriously() -> None:
    guest, host = TimerGuest.on_new_machine()
    host.time_ns = SECOND_NS
    guest.set_timer(SECOND_NS + (1 << 50) - 1)
    assert host.deadline_ns == SECOND_NS + (1 << 50) - 1


@given(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63 - 1, 2**64 - 1]), max_size=20))
def test_no_timeout_breaks_the_machine(timeouts: list[int]) -> None:
    guest, host = TimerGuest.on_new_machine()
    for timeout in timeouts:
        guest.set_timer(timeout)
        guest.advance(host, MILLISECOND_NS)
    assert not guest.machine.faults
    assert len(guest.machine.timers) <= 1


def test_a_dying_domain_takes_its_timers_with_it() -> None:
    guest, host = TimerGuest.on_new_machine()
    guest.set_timer(SECOND_NS)
    guest.destroy()
    assert host.deadline_ns is None
    assert len(guest.machine.timers) == 0
