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


def share_out(units: Sequence[Unit], elapsed_ns: int, pcpus: int, slice_ns: int) -> None:
    """Settle the credit of `units` for the last `elapsed_ns`. Credit stays within a slice or what has elapsed,
    whichever is more.
    """
    most_ns = max(slice_ns, elapsed_ns)
    active = [unit for unit in units if unit.wants or unit.burned_ns]
    balance_ns = sum(unit.credit_ns + unit.burned_ns for unit in active)
    burned_ns = sum(unit.burned_ns for unit in active)
    _give(active, burned_ns + max(0, -balance_ns), most_ns)
    weight = sum(unit.share.weight for unit in active)
    for unit in units:
        if not unit.wants and not unit.burned_ns and unit.credit_ns < 0:  # who sleeps pays what it owes
            its_share = min(
                elapsed_ns, pcpus * elapsed_ns * unit.share.weight // (weight + unit.share.weight)
            )
            unit.credit_ns = min(0, unit.credit_ns + its_share)
        unit.credit_ns = max(unit.credit_ns, -most_ns)
        unit.burned_ns = 0


def _give(units: Sequence[Unit], credit_ns: int, most_ns: int) -> None:
    """Nobody has more than `most_ns` afterwards, and what is left by those who have it goes to the others."""
    open_ = [unit for unit in units if unit.credit_ns < most_ns]
    while open_ and credit_ns > 0:
        weight = sum(unit.share.weight for unit in open_)
        full = [unit for unit in open_ if most_ns - unit.credit_ns <= credit_ns * unit.share.weight // weight]
        if not full:
            for unit in open_:
                unit.credit_ns += credit_ns * unit.share.weight // weight
            return
        for unit in full:
            credit_ns -= most_ns - unit.credit_ns
            unit.credit_ns = most_ns
        open_ = [unit for unit in open_ if unit.credit_ns < most_ns]
