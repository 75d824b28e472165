"""How the credit scheduler gives credit out: as much as was burned, by weight (csched_acct of Xen's credit.c).

In all, units get what they have burned since the last time, so that their credit says how far each is ahead or behind
of its share of what there really was, whatever else the host has to do. One that has plenty gets no more; its part
goes to the others by their weight. So what a unit can use in the long run is the weighted max-min fair share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.credit import Unit


def share_out(units: Sequence[Unit], elapsed_ns: int, slice_ns: int) -> None:
    """Settle the credit of `units` for the last `elapsed_ns`. Credit stays within a slice or what has elapsed,
    whichever is more. Who sleeps takes part until it has paid what it owes to the others.
    """
    most_ns = max(slice_ns, elapsed_ns)
    burned_ns = sum(unit.burned_ns for unit in units)
    rooms = {
        unit: (most_ns if unit.wants or unit.burned_ns else 0) - unit.credit_ns
        for unit in units
        if unit.wants or unit.burned_ns or unit.credit_ns < 0
    }
    balance_ns = burned_ns + sum(unit.credit_ns for unit in rooms)
    _give(rooms, burned_ns + max(0, -balance_ns))
    for unit in units:
        unit.credit_ns = max(unit.credit_ns, -most_ns)
        unit.burned_ns = 0


def _give(rooms: dict[Unit, int], credit_ns: int) -> None:
    """By weight, to each as much as it has room for; what is left by some goes to the others."""
    open_ = [unit for unit, room_ns in rooms.items() if room_ns > 0]
    while open_ and credit_ns > 0:
        weight = sum(unit.share.weight for unit in open_)
        full = [unit for unit in open_ if rooms[unit] <= credit_ns * unit.share.weight // weight]
        for unit in full:
            credit_ns -= rooms[unit]
            unit.credit_ns += rooms[unit]
        if not full:
            for unit in open_:
                unit.credit_ns += credit_ns * unit.share.weight // weight
            return
        filled = set(full)
        open_ = [unit for unit in open_ if unit not in filled]
