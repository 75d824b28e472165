from hypothesis import given
from hypothesis import strategies as st

from kernel.rate_limit import BURST, INTERVAL_NS, RateLimit


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_a_burst_is_allowed_and_no_more_until_the_interval_is_over() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    assert [limit.allows() for _ in range(BURST + 3)] == [True] * BURST + [False] * 3
    clock.now_ns = INTERVAL_NS - 1
    assert not limit.allows()
    clock.now_ns = INTERVAL_NS
    assert limit.allows()
    assert limit.take_missed() == 4
    assert limit.take_missed() == 0


def test_the_interval_begins_with_the_first() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    clock.now_ns = INTERVAL_NS - 1
    assert limit.allows()
    clock.now_ns = 2 * INTERVAL_NS - 2
    assert [limit.allows() for _ in range(BURST)] == [True] * (BURST - 1) + [False]


@given(st.lists(st.integers(0, INTERVAL_NS // 2), max_size=200))
def test_no_more_than_two_bursts_in_any_interval_and_nothing_is_forgotten(steps: list[int]) -> None:
    clock = Clock()
    limit = RateLimit(clock)
    allowed = []
    for step in steps:
        clock.now_ns += step
        if limit.allows():
            allowed.append(clock.now_ns)
    assert len(allowed) + limit.missed == len(steps)
    for start in allowed:
        assert sum(start <= at < start + INTERVAL_NS for at in allowed) <= 2 * BURST
