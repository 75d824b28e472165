"""How often something may be said that others can cause as often as they like (Linux's printk_ratelimit)."""

from collections.abc import Callable
from typing import Final

BURST: Final = 10
INTERVAL_NS: Final = 5_000_000_000


class RateLimit:
    """Allows BURST things in any INTERVAL_NS that begins with one. `now_ns`: the time. missed: how many were not
    allowed since `take_missed` was asked.
    """

    __slots__ = ("_began_ns", "_left", "_now_ns", "missed")

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.missed = 0
        self._now_ns = now_ns
        self._began_ns: int | None = None
        self._left = 0

    def allows(self) -> bool:
        """Whether one more is allowed now; if not, it is missed."""
        now_ns = self._now_ns()
        if self._began_ns is None or now_ns - self._began_ns >= INTERVAL_NS:
            self._began_ns = now_ns
            self._left = BURST
        if not self._left:
            self.missed += 1
            return False
        self._left -= 1
        return True

    def take_missed(self) -> int:
        """How many were missed; they are told of now."""
        missed, self.missed = self.missed, 0
        return missed
