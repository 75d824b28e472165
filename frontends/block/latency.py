"""How long requests take, kept cheaply: one sample a published run, in logarithmic buckets.

A bucket is a sixteenth of an octave wide, so that a percentile is right to within 6 per cent whatever the
scale, and the histogram of years takes as much room as that of a second.
"""

from typing import Final

_SUB_BITS: Final = 4
_SUB: Final = 1 << _SUB_BITS
_BUCKETS: Final = (64 - _SUB_BITS + 1) * _SUB


class LatencyHistogram:
    """Counts of durations in nanoseconds. samples: how many. max_ns: the longest."""

    __slots__ = ("_counts", "max_ns", "samples")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.samples = 0
        self.max_ns = 0

    def add(self, duration_ns: int) -> None:
        """Counts one duration."""
        self._counts[_bucket(duration_ns)] += 1
        self.samples += 1
        self.max_ns = max(self.max_ns, duration_ns)

    def percentile_us(self, percent: float) -> float:
        """The duration in microseconds that `percent` of the samples do not exceed; 0 without samples."""
        rank = self.samples * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return min(_upper_bound(bucket), self.max_ns) / 1000
        return 0.0


def _bucket(value: int) -> int:
    """Values below 16 have a bucket each; then 16 buckets an octave."""
    if value < _SUB:
        return max(value, 0)
    octave = value.bit_length() - _SUB_BITS - 1
    return min((octave << _SUB_BITS) + (value >> octave), _BUCKETS - 1)


def _upper_bound(bucket: int) -> int:
    """The largest value that falls into `bucket`."""
    if bucket < 2 * _SUB:
        return bucket
    octave = (bucket >> _SUB_BITS) - 1
    return (((bucket & (_SUB - 1)) | _SUB) + 1 << octave) - 1
