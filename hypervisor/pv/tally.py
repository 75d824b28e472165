"""What a native domain has done, counted in memory that its process shares with the hypervisor's.

The process writes, the hypervisor reads whenever a report is made; words are u64s. What it says is shown and used for
nothing else.
"""

from __future__ import annotations

from typing import Final

HYPERCALLS: Final = 64
"""hypercall numbers 0 to 63 have a count and nanoseconds each"""
TRAPS: Final = 256
"""vectors"""

_COUNTS: Final = 0
_NANOSECONDS: Final = _COUNTS + HYPERCALLS
_TRAPS: Final = _NANOSECONDS + HYPERCALLS
_OTHERS: Final = _TRAPS + TRAPS
_MULTICALLS, _ENTRIES, _SLICES, _SYSCALLS, _BLOCKED = range(_OTHERS, _OTHERS + 5)
WORDS: Final = 512
TALLY_BYTES: Final = WORDS * 8


class Tally:
    """hypercalls, nanoseconds: by number, the entries of multicalls too, but these not in the time of the multicall.
    traps: by vector. syscalls: of the guest's user mode. slices: of the engine. blocked: whether no vCPU has anything
    to do just now.
    """

    __slots__ = ("_words", "hypercalls", "nanoseconds", "traps")

    def __init__(self, words: memoryview) -> None:
        """words: WORDS u64s."""
        self._words = words
        self.hypercalls = words[_COUNTS:_NANOSECONDS]
        self.nanoseconds = words[_NANOSECONDS:_TRAPS]
        self.traps = words[_TRAPS:_OTHERS]

    @classmethod
    def of(cls, buffer: memoryview) -> Tally:
        """In TALLY_BYTES of memory."""
        return cls(buffer[:TALLY_BYTES].cast("Q"))

    def copy(self) -> Tally:
        """What it says now, in memory of its own."""
        return Tally(memoryview(bytearray(self._words)).cast("Q"))

    def _get(self, index: int) -> int:
        value: int = self._words[index]
        return value

    def _set(self, index: int, value: int) -> None:
        self._words[index] = value

    multicalls = property(
        lambda self: self._get(_MULTICALLS), lambda self, value: self._set(_MULTICALLS, value)
    )
    multicall_entries = property(
        lambda self: self._get(_ENTRIES), lambda self, value: self._set(_ENTRIES, value)
    )
    slices = property(lambda self: self._get(_SLICES), lambda self, value: self._set(_SLICES, value))
    syscalls = property(lambda self: self._get(_SYSCALLS), lambda self, value: self._set(_SYSCALLS, value))
    blocked = property(lambda self: self._get(_BLOCKED), lambda self, value: self._set(_BLOCKED, value))
