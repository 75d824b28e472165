"""What a process does before it blocks: it looks for as long as that has paid, and says `asleep` only while it is."""

from collections.abc import Callable

import pytest

from hypervisor.vcpu.process.idling import LONGEST_LOOK_NS, PREEMPTED_NS, SHORTEST_LOOK_NS, Idling

STEP_NS = 1000


class World:
    """A clock that goes on by a step each time somebody looks at it, and bells that ring at a given time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**9
        self.step_ns = STEP_NS
        self.rings_at_ns: int | None = None
        self.asleep = False
        self.looks = 0
        self.idling = Idling(self, self.look)  # type: ignore[arg-type]
        self.idling.looks = True
        monkeypatch.setattr("hypervisor.vcpu.process.idling.time.monotonic_ns", self.clock)

    def clock(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def look(self) -> bool:
        self.looks += 1
        return self.rings_at_ns is not None and self.now_ns >= self.rings_at_ns

    def fall_asleep(self) -> None:
        self.asleep = True

    def awake(self) -> None:
        self.asleep = False

    def drain(self) -> None:
        """There is no pipe."""

    def block(self, slept_ns: int, timeout: float | None = None) -> int:
        """Block for so long; how many looks came before."""
        self.looks = 0
        assert not self.idling.before_blocking(timeout)
        assert self.asleep
        looks = self.looks
        self.now_ns += slept_ns
        self.idling.after_blocking()
        assert not self.asleep
        return looks


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def patient(world: World) -> World:
    """It was woken soon, again and again."""
    for _ in range(10):
        world.block(SHORTEST_LOOK_NS)
    return world


def test_whoever_was_woken_soon_looks_longer_up_to_a_limit(world: World) -> None:
    looks = [world.block(SHORTEST_LOOK_NS) for _ in range(10)]
    assert looks[0] <= 2
    assert looks == sorted(looks)
    assert LONGEST_LOOK_NS // STEP_NS - 5 <= looks[-1] == looks[-2] <= LONGEST_LOOK_NS // STEP_NS + 5


def test_whoever_slept_long_looks_less_down_to_not_at_all(world: World) -> None:
    patient(world)
    looks = [world.block(10 * LONGEST_LOOK_NS) for _ in range(10)]
    assert looks == sorted(looks, reverse=True)
    assert looks[-1] <= 2


def test_what_comes_while_it_looks_keeps_it_from_blocking(world: World) -> None:
    patient(world)
    world.rings_at_ns = world.now_ns + LONGEST_LOOK_NS // 2
    assert world.idling.before_blocking(None)
    assert not world.asleep


def test_what_comes_at_the_last_moment_does_so_too(world: World) -> None:
    fall_asleep: Callable[[], None] = world.fall_asleep

    def too_late() -> None:
        fall_asleep()
        world.rings_at_ns = world.now_ns

    world.fall_asleep = too_late  # type: ignore[method-assign]
    assert world.idling.before_blocking(None)
    assert not world.asleep


def test_a_timer_is_not_missed(world: World) -> None:
    patient(world)
    assert world.block(0, timeout=10 * STEP_NS / 1e9) <= 15


@pytest.mark.parametrize("rung", [False, True])
def test_a_loop_that_does_not_block_looks_once(world: World, rung: bool) -> None:
    world.rings_at_ns = 0 if rung else None
    assert world.idling.before_blocking(0) is rung
    assert world.looks == 1
    assert not world.asleep
    world.idling.after_blocking()
    assert not world.asleep


def test_whoever_is_preempted_stops_looking(world: World) -> None:
    patient(world)
    world.step_ns = PREEMPTED_NS + 1
    assert world.block(SHORTEST_LOOK_NS) <= 3
    world.step_ns = STEP_NS
    assert world.block(SHORTEST_LOOK_NS) <= SHORTEST_LOOK_NS // STEP_NS + 5


def test_where_there_is_one_processor_nobody_looks(world: World) -> None:
    world.idling.looks = False
    patient(world)
    assert world.block(SHORTEST_LOOK_NS) <= 2
