"""Arithmetic of free-running ring indices (RING_IDX of public/io/ring.h).

An index counts slots or bytes for ever, modulo 2**32. It is masked to a position only when the ring is
accessed, so that a full ring and an empty one differ. Every sum and difference of indices goes through here,
or says `& U32_MASK` where a call would cost too much.
"""

from typing import Final

U32_MASK: Final = 0xFFFFFFFF


def wrap(value: int) -> int:
    """The index that `value` stands for, in 0..2**32-1."""
    return value & U32_MASK


def distance(newer: int, older: int) -> int:
    """How far `newer` is ahead of `older`, in 0..2**32-1. An index that went backwards is very far ahead."""
    return (newer - older) & U32_MASK
