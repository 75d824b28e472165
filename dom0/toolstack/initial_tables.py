"""The page tables that a PV kernel begins with: four levels, made for two mappings at most.

Flags are those of Xen's builder: pages are writable, but for the page tables themselves. Tables of one level
lie next to each other, the root first, and a second mapping uses those of the first where it can.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kernel.platform import PAGE_SHIFT

PAGE_PRESENT: Final = 0x001
PAGE_RW: Final = 0x002
PAGE_USER: Final = 0x004
PAGE_ACCESSED: Final = 0x020
PAGE_DIRTY: Final = 0x040

ENTRIES: Final = 512
LEVELS: Final = 4
_INDEX_BITS: Final = 9
_VIRTUAL_PAGES: Final = 1 << 36
"""of the 48 bits that are translated"""

_LEAF: Final = PAGE_PRESENT | PAGE_RW | PAGE_ACCESSED
_TABLE: Final = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_ACCESSED | PAGE_DIRTY


@dataclass(frozen=True, slots=True)
class Mapping:
    """`count` pages from PFN `pfn` on, seen from the virtual address `virt` on."""

    virt: int
    pfn: int
    count: int


class InitialTables:
    """Which page tables there are, by PFN. They take PFNs from `first_pfn` on, as mappings are added."""

    def __init__(self, first_pfn: int) -> None:
        self.first_pfn = first_pfn
        self._mappings: list[Mapping] = []
        self._levels: list[dict[int, int]] = [{} for _ in range(LEVELS)]
        """for each level, the root's last: the PFN of each table, by the number of the address range it maps"""

    @property
    def count(self) -> int:
        """How many tables there are."""
        return sum(len(level) for level in self._levels)

    @property
    def root_pfn(self) -> int:
        """The level 4 table's."""
        return self._levels[-1][0]

    def clear(self) -> None:
        """Forget all mappings."""
        self._mappings.clear()
        for level in self._levels:
            level.clear()

    def map(self, mapping: Mapping, next_pfn: int) -> None:
        """Add a mapping; the tables that it lacks are those from `next_pfn` on."""
        self._mappings.append(mapping)
        first = (mapping.virt >> PAGE_SHIFT) % _VIRTUAL_PAGES
        last = first + mapping.count - 1
        for level in reversed(range(LEVELS)):
            shift = (level + 1) * _INDEX_BITS
            tables = self._levels[level]
            for number in range(first >> shift, (last >> shift) + 1):
                if number not in tables:
                    tables[number] = next_pfn
                    next_pfn += 1

    def pfns(self) -> Iterator[int]:
        """Those of all tables."""
        for level in self._levels:
            yield from level.values()

    def contents(self, p2m: Sequence[int]) -> Iterator[tuple[int, array[int]]]:
        """The PFN and the 512 entries of each table. p2m: the machine frame of each PFN."""
        made = {pfn: array("Q", bytes(ENTRIES * 8)) for pfn in self.pfns()}
        for mapping in self._mappings:
            self._fill_leaves(made, mapping, p2m)
        for level in range(1, LEVELS):
            for number, pfn in self._levels[level - 1].items():
                above = made[self._levels[level][number >> _INDEX_BITS]]
                above[number % ENTRIES] = p2m[pfn] << PAGE_SHIFT | _TABLE
        yield from made.items()

    def _fill_leaves(self, made: dict[int, array[int]], mapping: Mapping, p2m: Sequence[int]) -> None:
        end_pfn = mapping.pfn + mapping.count
        entries = array("Q", [mfn << PAGE_SHIFT | _LEAF for mfn in p2m[mapping.pfn : end_pfn]])
        for pfn in made:
            if mapping.pfn <= pfn < end_pfn:
                entries[pfn - mapping.pfn] &= ~PAGE_RW
        first = (mapping.virt >> PAGE_SHIFT) % _VIRTUAL_PAGES
        done = 0
        while done < mapping.count:
            number, index = divmod(first + done, ENTRIES)
            some = min(ENTRIES - index, mapping.count - done)
            made[self._levels[0][number]][index : index + some] = entries[done : done + some]
            done += some
