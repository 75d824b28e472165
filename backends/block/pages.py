"""The frontend's pages that a block device has mapped: for ever while they are used (persistent), or for
one request.

With feature-persistent the frontend uses the same grants again and again, and we map each once. How many
may stay is bounded twice: by device (the least recently used go first) and by frontend domain over all its
devices (XSA-300). What finds no room is mapped for its request alone.

Who was used lately is kept in two generations, so that a hit costs one dictionary look-up: `recent` holds
what was used since the last turn, `_older` the rest in the order of their last turn. Only when room is
needed do the generations turn and do the first of `_older` go.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from kernel.errors import KernelError
from kernel.grants import Grants
from kernel.mapping import GrantError, Mapping
from ringbuffers.protocols.blkif import SECTOR_SIZE, Segment

DEFAULT_DOMAIN_PAGES: Final = 8192

FullPage = tuple[memoryview]
"""A mapped page as what a store is handed for a request of exactly this page."""


class PageBudget:
    """How many pages of one domain may stay mapped, over all its devices. free: how many more."""

    __slots__ = ("free",)

    def __init__(self, limit: int = DEFAULT_DOMAIN_PAGES) -> None:
        self.free = limit


class Lease:
    """Pages of some requests, mapped and safe from eviction until `release`."""

    __slots__ = ("_owner", "_pages", "_pinned", "_transient")

    def __init__(self, owner: "GrantedPages") -> None:
        self._owner = owner
        self._pages: dict[tuple[int, bool], memoryview] = {}
        self._pinned: list[int] = []
        self._transient: list[Mapping] = []

    def page(self, gref: int, *, writes: bool) -> memoryview | None:
        """The page of `gref`, or None if it could not be mapped. writes: its content goes to the store."""
        return self._pages.get((gref, writes))

    def buffers(self, segments: Sequence[Segment], *, writes: bool) -> list[memoryview] | None:
        """The memory of `segments`, which were judged, or None if a page of theirs could not be mapped."""
        found: list[memoryview] = []
        for gref, first, last in segments:
            page = self._pages.get((gref, writes))
            if page is None:
                return None
            found.append(page[first * SECTOR_SIZE : (last + 1) * SECTOR_SIZE])
        return found

    def release(self) -> None:
        """Unmaps what was mapped for these requests alone. To be called once, before they are answered."""
        self._pages.clear()
        self._owner._release(self._pinned, self._transient)


class GrantedPages:
    """The mapped pages of one frontend's device.

    Attributes:
        recent: gref to page, of those used lately; what the ring's quick path looks into.
        map_failures: grants that could not be mapped.
    """

    def __init__(
        self,
        grants: Grants,
        domid: int,
        budget: PageBudget,
        limit: int,
    ) -> None:
        self._grants = grants
        self._domid = domid
        self._budget = budget
        self._limit = limit
        self.recent: dict[int, FullPage] = {}
        self._older: dict[int, FullPage] = {}
        self._mappings: dict[int, Mapping] = {}
        self._pins: Counter[int] = Counter()
        self.map_failures = 0

    @property
    def persistent_pages(self) -> int:
        """How many pages stay mapped now."""
        return len(self._mappings)

    def lease(self, wanted: Iterable[tuple[int, bool]]) -> Lease:
        """Maps what is not mapped yet of `wanted`, pairs of gref and whether its content goes to the store.

        A grant that cannot be mapped is not in the lease; the others are.
        """
        lease = Lease(self)
        missing: dict[tuple[int, bool], None] = {}
        for key in wanted:
            if key in lease._pages:
                continue
            page = self._kept(key[0])
            if page is None:
                missing[key] = None
            else:
                self._pins[key[0]] += 1
                lease._pinned.append(key[0])
                lease._pages[key] = page[0]
        if missing:
            self._map_missing(lease, missing)
        return lease

    def close(self) -> None:
        """Unmaps everything. Every lease must have been released."""
        self.recent.clear()
        self._older.clear()
        self._pins.clear()
        self._unmap(list(self._mappings.values()))
        self._budget.free += len(self._mappings)
        self._mappings.clear()

    def _kept(self, gref: int) -> FullPage | None:
        page = self.recent.get(gref)
        if page is None and (page := self._older.pop(gref, None)) is not None:
            self.recent[gref] = page
        return page

    def _map_missing(self, lease: Lease, missing: Iterable[tuple[int, bool]]) -> None:
        if self._limit:
            grefs = list(dict.fromkeys(gref for gref, _ in missing))
            mapped = dict(zip(grefs, self._map(grefs, readonly=False), strict=True))
            for gref, mapping in mapped.items():
                if mapping is not None:
                    self._persist_or_lend(lease, gref, mapping)
            for gref, writes in missing:
                if (found := mapped[gref]) is not None:
                    lease._pages[gref, writes] = found.page
            return
        for writes in (False, True):
            grefs = [gref for gref, key_writes in missing if key_writes is writes]
            for gref, mapping in zip(grefs, self._map(grefs, readonly=writes), strict=True):
                if mapping is not None:
                    lease._transient.append(mapping)
                    lease._pages[gref, writes] = mapping.page

    def _persist_or_lend(self, lease: Lease, gref: int, mapping: Mapping) -> None:
        if self._has_room() or self._make_room():
            self._budget.free -= 1
            self._mappings[gref] = mapping
            self._pins[gref] += 1
            lease._pinned.append(gref)
            self.recent[gref] = (mapping.page,)
        else:
            lease._transient.append(mapping)

    def _has_room(self) -> bool:
        return len(self._mappings) < self._limit and self._budget.free > 0

    def _make_room(self) -> bool:
        """Unmaps the least recently used pages that are not in use, a good number at once. False: there are
        none.
        """
        wanted = max(self._limit // 16, 1)
        if len(self._older) < wanted:
            self._older.update(self.recent)
            self.recent.clear()
        idle = list(islice((gref for gref in self._older if gref not in self._pins), wanted))
        for gref in idle:
            del self._older[gref]
        self._unmap([self._mappings.pop(gref) for gref in idle])
        self._budget.free += len(idle)
        return bool(idle) and self._has_room()

    def _release(self, pinned: list[int], transient: list[Mapping]) -> None:
        for gref in pinned:
            self._pins[gref] -= 1
            if not self._pins[gref]:
                del self._pins[gref]
        self._unmap(transient)

    def _map(self, grefs: list[int], *, readonly: bool) -> list[Mapping | None]:
        if not grefs:
            return []
        try:
            outcomes = self._grants.map(self._domid, grefs, readonly=readonly)
        except KernelError:
            self.map_failures += len(grefs)
            return [None] * len(grefs)
        found = [None if isinstance(outcome, GrantError) else outcome for outcome in outcomes]
        self.map_failures += found.count(None)
        return found

    def _unmap(self, mappings: list[Mapping]) -> None:
        if mappings:
            self._grants.unmap(mappings)
