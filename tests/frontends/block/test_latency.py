"""Percentiles from buckets are right to within a sixteenth."""

from hypothesis import given
from hypothesis import strategies as st

from frontends.block.latency import LatencyHistogram

durations = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 10**7), st.integers(0, 2**62)), min_size=1)


def test_nothing_measured() -> None:
    assert LatencyHistogram().percentile_us(50) == 0
    assert LatencyHistogram().samples == 0


@given(durations, st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles(found: list[int], percent: float) -> None:
    histogram = LatencyHistogram()
    for duration in found:
        histogram.add(duration)
    assert histogram.samples == len(found)
    assert histogram.max_ns == max(found)
    rank = -(-len(found) * percent // 100)
    exact = sorted(found)[int(rank) - 1]
    answer = histogram.percentile_us(percent) * 1000
    assert exact * 0.999999 <= answer <= exact * 1.0625 + 1


def test_a_duration_that_is_none() -> None:
    """A clock that goes back, or stands still for ages, breaks nothing."""
    histogram = LatencyHistogram()
    histogram.add(-5)
    histogram.add(2**80)
    assert histogram.samples == 2
