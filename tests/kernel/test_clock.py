"""Sleeping through the vCPU's one timer: order, timeouts, cancelled sleepers."""

import anyio
import pytest

from hypervisor.abi.xen import HYPERVISOR_set_timer_op
from kernel.clock import NANOSECONDS, SWEEP_THRESHOLD, Clock
from tests.kernel.guests import BareKernel, StillHost, bare_machine, running_machine

MILLISECOND = NANOSECONDS // 1000


class Still:
    """A clock on a host whose time the test moves."""

    def __init__(self) -> None:
        self.kernel = BareKernel(bare_machine())
        self.machine = self.kernel.platform.machine
        self.clock = Clock(self.kernel.platform, self.kernel.hypercalls, self.kernel.events)
        self.rung: list[int] = []

    def ring_at(self, deadline_ns: int) -> None:
        self.clock.call_at(deadline_ns, lambda: self.rung.append(deadline_ns))

    def advance_to(self, now_ns: int) -> None:
        host = self.machine.host
        assert isinstance(host, StillHost)
        host.time_ns = now_ns
        self.machine.expire_timers()
        self.kernel.events.dispatch()


def test_nothing_is_bound_before_it_is_needed() -> None:
    still = Still()
    assert HYPERVISOR_set_timer_op not in still.kernel.platform.calls
    still.ring_at(5)
    assert still.kernel.platform.calls.count(HYPERVISOR_set_timer_op) == 1


def test_deadlines_ring_in_order_and_not_before() -> None:
    still = Still()
    for deadline in (300, 100, 200, 100):
        still.ring_at(deadline)
    still.advance_to(99)
    assert still.rung == []
    still.advance_to(250)
    assert still.rung == [100, 100, 200]
    still.advance_to(300)
    assert still.rung == [100, 100, 200, 300]


def test_a_deadline_that_has_passed_rings_at_once() -> None:
    still = Still()
    still.advance_to(1000)
    still.ring_at(5)
    still.ring_at(0)
    still.kernel.events.dispatch()
    assert sorted(still.rung) == [0, 5]


def test_the_same_deadline_again() -> None:
    still = Still()
    still.ring_at(100)
    still.advance_to(100)
    still.ring_at(100)
    still.kernel.events.dispatch()
    assert still.rung == [100, 100]


def test_later_deadlines_cost_no_hypercall() -> None:
    still = Still()
    still.ring_at(100)
    before = len(still.kernel.platform.calls)
    for deadline in range(200, 300):
        still.ring_at(deadline)
    assert len(still.kernel.platform.calls) == before


def test_cancelled_timers_do_not_ring_and_do_not_pile_up() -> None:
    still = Still()
    still.ring_at(10**6)
    for deadline in range(10_000):
        still.clock.call_at(10**9 + deadline, lambda: still.rung.append(-1)).cancel()
        assert len(still.clock._timers) <= 2 * SWEEP_THRESHOLD
    still.clock.call_at(50, lambda: still.rung.append(-1)).cancel()
    still.advance_to(100)
    still.advance_to(10**6)
    assert still.rung == [10**6]


def test_a_timer_may_set_another() -> None:
    still = Still()
    still.clock.call_at(100, lambda: still.ring_at(150))
    still.advance_to(120)
    assert still.rung == []
    still.advance_to(150)
    assert still.rung == [150]


@pytest.mark.anyio
async def test_sleeping_and_timeouts_on_a_running_machine(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            clock = world.dom0.clock
            begun_ns = clock.now_ns()
            await clock.sleep(0.02)
            assert clock.now_ns() - begun_ns >= 20 * MILLISECOND
            with clock.timeout(0.01) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            with clock.timeout(60) as scope:
                await clock.sleep(0.001)
            assert not scope.cancelled_caught
            woken: list[int] = []

            async def sleep(deadline_ns: int) -> None:
                await clock.sleep_until(deadline_ns)
                assert clock.now_ns() >= deadline_ns
                woken.append(deadline_ns)

            begun_ns = clock.now_ns()
            async with anyio.create_task_group() as tasks:
                for number in (9, 3, 6):
                    tasks.start_soon(sleep, begun_ns + number * MILLISECOND)
            assert len(woken) == 3
