"""How fast this machine's time stamp counter counts, which is what guests read by RDTSC (with an offset).

No file says it, so it is measured against the system's clock: from when this module is first asked until an engine is
made. A fork server asks early, so that its children measure over seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache
from typing import Final

from hypervisor.vcpu.native.library import EngineUnavailable, library

ENOUGH_NS: Final = 20_000_000
"""a reading is off by less than a microsecond: 50 millionths, at most"""
_READINGS: Final = 5
NANOSECONDS: Final = 1_000_000_000


def read() -> int:
    """The counter of the processor that executes this."""
    counter: int = library().held.cpu_get_tsc_x86_64(None)
    return counter


def frequency() -> int:
    """In hertz. Takes up to 20 ms, if it is the first question. EngineUnavailable."""
    first_ns, first = _origin()
    missing_ns = first_ns + ENOUGH_NS - time.monotonic_ns()
    if missing_ns > 0:
        time.sleep(missing_ns / NANOSECONDS)
    now_ns, now = _both()
    return (now - first) * NANOSECONDS // (now_ns - first_ns)


@cache
def _origin() -> tuple[int, int]:
    return _both()


def _both() -> tuple[int, int]:
    """The system's clock and the counter at once: of some readings, the one that took least."""
    readings = []
    for _ in range(_READINGS):
        before = time.monotonic_ns()
        counter = read()
        after = time.monotonic_ns()
        readings.append((after - before, (before + after) // 2, counter))
    _, now_ns, counter = min(readings)
    return now_ns, counter


with suppress(EngineUnavailable):  # whoever makes an engine is told
    _origin()
