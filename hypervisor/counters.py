"""What a domain did, counted where it happens. Every report is made from these numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Per domain. Plain integers, so that counting costs one addition."""

    hypercalls: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """by name; an entry of a multicall counts under its own name"""
    hypercalls_failed: int = 0
    multicall_batches: int = 0
    multicall_entries: int = 0
    continuations: int = 0
    upcalls: int = 0
    events_sent: int = 0
    events_received: int = 0
    grant_maps: int = 0
    grant_unmaps: int = 0
    grant_copies: int = 0
    bytes_copied: int = 0
    console_bytes: int = 0
    console_bytes_dropped: int = 0
