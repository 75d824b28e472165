"""The credit scheduler in virtual time: shares by weight, caps, boosts, and nobody who starves."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import groupby
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.credit import MILLISECOND_NS, CreditScheduler, Priority, Share
from tests.hypervisor.processors import Load, Processors

SLICE = 30
TICK = 10
LONG = 3000

weights = st.integers(1, 1024)


def fair_shares(weights: Sequence[int], pcpus: int) -> list[Fraction]:
    """What each of some loads that always want to run gets of a processor: none more than one, and what it cannot
    use goes to the others by weight.
    """
    shares = dict.fromkeys(range(len(weights)), Fraction(1))
    left, open_ = Fraction(pcpus), list(shares)
    while open_:
        total = sum(weights[index] for index in open_)
        full = [index for index in open_ if left * weights[index] >= total]
        if not full:
            return [
                left * weights[index] / total if index in open_ else shares[index] for index in sorted(shares)
            ]
        left -= len(full)
        open_ = [index for index in open_ if index not in full]
    return list(shares.values())


def by_chance(seed: int, duty: float) -> Callable[[int, int], bool]:
    """Wants to run in some steps, in runs of a few."""
    random = Random(seed)
    wants = [random.random() < duty for _ in range(997)]
    return lambda now, _ran: wants[now // 3 % len(wants)]


@settings(max_examples=25, deadline=None)
@given(st.lists(weights, min_size=1, max_size=7), st.integers(1, 4))
def test_processors_are_shared_by_weight(given_weights: list[int], pcpus: int) -> None:
    loads = [Load(weight) for weight in given_weights]
    Processors(pcpus, loads).run(LONG)
    for load, share in zip(loads, fair_shares(given_weights, pcpus)):
        assert abs(load.ran - share * LONG) <= (len(loads) + 2) * SLICE


def test_half_of_a_share_that_is_not_used_goes_to_the_others_by_weight() -> None:
    idler = Load(1024, wants=lambda now, _ran: now % 10 == 0)
    small, large = Load(256), Load(512)
    Processors(1, [small, large, idler]).run(LONG)
    assert idler.ran >= LONG // 10 - SLICE
    assert abs(large.ran - 2 * small.ran) <= 3 * SLICE


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(weights, st.integers(0, 150), st.floats(0.05, 1)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_no_processor_is_idle_while_somebody_may_run(
    given_loads: list[tuple[int, int, float]], pcpus: int, seed: int
) -> None:
    loads = [
        Load(weight, cap, by_chance(seed + index, duty))
        for index, (weight, cap, duty) in enumerate(given_loads)
    ]
    processors = Processors(pcpus, loads)
    processors.run(1500)
    assert processors.idle_while_wanted == 0
    assert sum(load.ran for load in loads) <= pcpus * 1500


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(weights, st.integers(1, 99), st.floats(0.3, 1)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_nobody_exceeds_its_cap_in_any_stretch_of_time(
    given_loads: list[tuple[int, int, float]], pcpus: int, seed: int
) -> None:
    loads = [
        Load(weight, cap, by_chance(seed + index, duty))
        for index, (weight, cap, duty) in enumerate(given_loads)
    ]
    Processors(pcpus, [*loads, Load()]).run(1500)
    for load in loads:
        most = load.cap * SLICE / 100 + TICK + 1
        ahead = lowest = 0.0  # of the cap's line, and where it was furthest behind
        for ran in load.history:
            ahead += ran - load.cap / 100
            lowest = min(lowest, ahead)
            assert ahead - lowest <= most


@pytest.mark.parametrize("cap", [1, 5, 20, 50, 90, 99])
def test_a_cap_leaves_what_it_allows(cap: int) -> None:
    load = Load(cap=cap)
    Processors(2, [load]).run(LONG)
    assert abs(load.ran - LONG * cap / 100) <= SLICE


def test_a_cap_of_a_whole_processor_or_more_is_none() -> None:
    loads = [Load(cap=100), Load(cap=400)]
    Processors(2, loads).run(LONG)
    assert [load.ran for load in loads] == [LONG, LONG]


@settings(max_examples=25, deadline=None)
@given(
    weights,
    st.lists(st.tuples(weights, st.floats(0.05, 1)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_whoever_computes_gets_its_share_whatever_others_do(
    weight: int, others: list[tuple[int, float]], pcpus: int, seed: int
) -> None:
    """Others sleep and wake as they like, and are boosted for it. One that is entitled to nearly a whole processor
    cannot make up for that.
    """
    load = Load(weight)
    sleepers = [
        Load(other, wants=by_chance(seed + index, duty)) for index, (other, duty) in enumerate(others)
    ]
    Processors(pcpus, [*sleepers, load]).run(LONG)
    total = weight + sum(other for other, _ in others)
    share = min(Fraction(1), Fraction(pcpus * weight, total))
    assert load.ran >= share * LONG * 9 / 10 - (len(others) + 3) * SLICE


def test_nobody_gets_more_by_sleeping_through_the_ticks() -> None:
    thief = Load(wants=lambda now, _ran: now % TICK not in (0, 9))
    honest = Load()
    Processors(1, [thief, honest]).run(LONG)
    assert thief.ran <= LONG / 2 + SLICE


def test_one_of_little_weight_waits_no_longer_than_its_share_lets_it() -> None:
    small = Load(16)
    Processors(1, [*(Load(256) for _ in range(3)), small]).run(4 * LONG)
    assert 0 < small.longest_wait <= 2 * SLICE * (3 * 256 + 16) / 16


def test_whoever_wakes_with_credit_runs_at_once() -> None:
    waker = Load(wants=lambda now, _ran: now % 50 == 25)
    Processors(1, [Load(), Load(), waker]).run(LONG)
    assert waker.ran == LONG / 50
    assert waker.longest_wait <= 1


def test_a_boost_ends_at_the_next_tick() -> None:
    scheduler = CreditScheduler(1)
    busy, waker = scheduler.add(Share()), scheduler.add(Share())
    scheduler.wake(busy)
    scheduler.tick(0)
    scheduler.tick(10 * MILLISECOND_NS)
    scheduler.wake(waker)
    scheduler.choose(12 * MILLISECOND_NS)
    assert (waker.runs, busy.runs, waker.priority) == (True, False, Priority.BOOST)
    scheduler.tick(20 * MILLISECOND_NS)
    assert (waker.runs, waker.priority) == (True, Priority.UNDER)


def test_whoever_has_used_too_much_is_not_boosted() -> None:
    scheduler = CreditScheduler(1)
    unit = scheduler.add(Share())
    scheduler.charge(unit, 1)
    scheduler.wake(unit)
    assert unit.priority is Priority.OVER


def test_nobody_is_stopped_who_has_just_begun() -> None:
    scheduler = CreditScheduler(1)
    first, second = scheduler.add(Share()), scheduler.add(Share())
    scheduler.charge(first, 1)
    scheduler.wake(first)
    scheduler.choose(0)
    scheduler.wake(second)
    scheduler.choose(scheduler.ratelimit_ns - 1)
    assert first.runs
    scheduler.choose(scheduler.ratelimit_ns)
    assert second.runs
    assert not first.runs


def test_equals_take_turns_of_a_slice() -> None:
    loads = [Load() for _ in range(3)]
    Processors(1, loads).run(LONG)
    who = [next(i for i, load in enumerate(loads) if load.history[step]) for step in range(LONG)]
    turns = [(index, len(list(stretch))) for index, stretch in groupby(who)]
    assert all(TICK <= length <= SLICE for _, length in turns[:-1])
    assert {index for index, _ in turns[:3]} == {0, 1, 2}
    assert max(load.longest_wait for load in loads) <= 3 * SLICE


def test_what_was_used_beyond_all_processors_is_given_back() -> None:
    """Units may go on for a moment after they were told to stop: then nobody runs for as long."""
    scheduler = CreditScheduler(1)
    units = [scheduler.add(Share()) for _ in range(2)]
    for unit in units:
        scheduler.wake(unit)
    ran = 0
    for tick in range(400):
        scheduler.tick(tick * scheduler.tick_ns)
        for unit in units:
            if unit.runs:
                scheduler.charge(unit, scheduler.tick_ns * 5 // 4)
                ran += scheduler.tick_ns * 5 // 4
    assert ran <= 402 * scheduler.tick_ns


def test_a_late_tick_charges_what_was_used() -> None:
    scheduler = CreditScheduler(2)
    capped, other = scheduler.add(Share(cap=50)), scheduler.add(Share())
    for unit in (capped, other):
        scheduler.wake(unit)
    scheduler.tick(0)
    scheduler.charge(capped, 500 * MILLISECOND_NS)
    scheduler.charge(other, 500 * MILLISECOND_NS)
    ticks = 0
    now = 500 * MILLISECOND_NS
    scheduler.tick(now)
    while not capped.runs:
        now += scheduler.tick_ns
        scheduler.charge(other, scheduler.tick_ns)
        scheduler.tick(now)
        ticks += 1
    assert 46 <= ticks <= 50  # half of a second at 50 %


def test_one_that_is_gone_leaves_its_processor_to_others() -> None:
    scheduler = CreditScheduler(1)
    first, second = scheduler.add(Share()), scheduler.add(Share())
    scheduler.wake(first)
    scheduler.wake(second)
    scheduler.choose(0)
    assert scheduler.contended
    scheduler.remove(first, 5)
    assert second.runs
    assert not scheduler.contended
    assert list(scheduler.units) == [second]


def test_a_debt_is_paid_while_one_sleeps() -> None:
    scheduler = CreditScheduler(1)
    debtor, other = scheduler.add(Share()), scheduler.add(Share())
    for unit in (debtor, other):
        scheduler.wake(unit)
    scheduler.charge(debtor, SLICE * MILLISECOND_NS)
    scheduler.tick(SLICE * MILLISECOND_NS)
    scheduler.sleep(debtor)
    assert debtor.credit_ns < 0
    for period in range(2, 5):
        scheduler.charge(other, SLICE * MILLISECOND_NS)
        scheduler.tick(period * SLICE * MILLISECOND_NS)
    assert debtor.credit_ns == 0


def test_what_one_has_used_long_ago_is_forgiven() -> None:
    """Such as while nobody could tick."""
    scheduler = CreditScheduler(1)
    debtor, other = scheduler.add(Share()), scheduler.add(Share())
    for unit in (debtor, other):
        scheduler.wake(unit)
    scheduler.charge(debtor, 10_000 * MILLISECOND_NS)
    ticks = 0
    while not ticks or not debtor.runs:
        ticks += 1
        scheduler.tick(ticks * scheduler.tick_ns)
        scheduler.charge(other, scheduler.tick_ns)
    assert ticks <= 20


def test_credit_that_somebody_takes_along_is_given_again() -> None:
    scheduler = CreditScheduler(1)
    idler, *busy = [scheduler.add(Share()) for _ in range(3)]
    for unit in busy:
        scheduler.wake(unit)
    idler.credit_ns = 30 * MILLISECOND_NS
    for unit in busy:
        scheduler.charge(unit, 15 * MILLISECOND_NS)
        unit.burned_ns = 0
    scheduler.remove(idler, 0)
    for tick in range(1, 8):
        scheduler.tick(tick * scheduler.tick_ns)
    assert sum(unit.credit_ns for unit in busy) >= -2


def test_shares_that_change_are_told() -> None:
    scheduler = CreditScheduler(1)
    scheduler.changed()
    told: list[int] = []
    scheduler.on_change = lambda: told.append(1)
    scheduler.changed()
    assert told == [1]
