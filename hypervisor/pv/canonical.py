"""Addresses that the processor takes: bits 63 to 47 are equal."""

from __future__ import annotations

from typing import Final

U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_HALF: Final = 1 << 47


def is_canonical(address: int) -> bool:
    """Whether a u64 is a canonical address."""
    return address < _HALF or address >= (1 << 64) - _HALF
