"""When a native domain's engine may run: what its process and the hypervisor tell each other by plain words.

The words lie in the first page of the bell by which the hypervisor rings for the process (doorbell.py), behind its
own bytes; each has one writer:

GATE     hypervisor  0: the engine is not to run. It stops at its next slice border
TELL     hypervisor  not 0: others wait for this processor. Ring when the domain blocks, once for each value
STATE    process     what it does, as in State
BLOCKS   process     how often the domain has blocked so far

A ring for TURN_PORT, which is no port, tells the hypervisor to look at the words. So a domain that blocks and wakes
tells nobody as long as there are processors enough, and it takes the hypervisor to make it wait.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

TURN_PORT: Final = 0
GATE: Final = 16
TELL: Final = 17
STATE: Final = 32
BLOCKS: Final = 33
"""indices of u32s in the page; the two writers have a cache line each"""

U32_MASK: Final = 0xFFFF_FFFF


class State(IntEnum):
    """What a process does."""

    RUNS = 0
    """it executes its guest, or is about to"""
    BLOCKED = 1
    """no vCPU of the domain has anything to do"""
    WAITS = 2
    """it would execute its guest, and may not"""


class Turn:
    """The process's side. header: the bytes of the page; ring: rings for a port."""

    __slots__ = ("_blocks", "_ring", "_told", "_waits", "_words")

    def __init__(self, header: memoryview, ring: Callable[[int], None]) -> None:
        self._words = header.cast("I")
        self._ring = ring
        self._waits = False
        self._told = 0
        self._blocks = 0

    def may_run(self) -> bool:
        """Whether the engine may run its next slice; if not, `wait`."""
        words = self._words
        if not words[GATE]:
            return False
        if self._waits:
            self._waits = False
            words[STATE] = State.RUNS
        return True

    def wait(self, sleep: Callable[[], object]) -> None:
        """Ask for a turn, and `sleep` until the hypervisor's bell rings, for this or for something else."""
        if not self._waits:
            self._waits = True
            self._words[STATE] = State.WAITS
            self._ring(TURN_PORT)  # with a fence, so that either side sees what the other has written
        if not self._words[GATE]:
            sleep()

    def blocked(self) -> None:
        """Nothing is to be executed until something happens."""
        words = self._words
        self._blocks = self._blocks + 1 & U32_MASK
        words[BLOCKS] = self._blocks
        words[STATE] = State.BLOCKED
        self._waits = False
        tell = words[TELL]
        if tell and tell != self._told:
            self._told = tell
            self._ring(TURN_PORT)

    def woke(self) -> None:
        """Something has happened."""
        self._words[STATE] = State.RUNS
