"""The frontend's pages that a queue of a block device has mapped: for ever while they are used (persistent),
or for one request.

With feature-persistent the frontend uses the same grants again and again, and we map each once. How many
may stay is bounded twice: by queue (the least recently used go first) and by frontend domain over all its
devices and their queues (XSA-300). What finds no room is mapped for its request alone.

Who was used lately is kept in two generations, so that a hit costs one dictionary look-up: `recent` holds
what was used since the last turn, `_older` the rest in the order of their last turn. Only when room is
needed do the generations turn and do the first of `_older` go.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from kernel.errors import KernelError
from kernel.grants import Grants
from kernel.mapping import Mapping
from ringbuffers.protocols.blkif import SECTOR_SIZE, SECTORS_PER_PAGE, Segment

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

    __slots__ = ("_owner", "_pages", "_transient")

    def __init__(self, owner: "GrantedPages") -> None:
        self._owner = owner
        self._pages: dict[tuple[int, bool], memoryview] = {}
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
            whole = last == SECTORS_PER_PAGE - 1 and not first
            found.append(page if whole else page[first * SECTOR_SIZE : (last + 1) * SECTOR_SIZE])
        return found

    def release(self) -> None:
        """Unmaps what was mapped for these requests alone. To be called once, before they are answered."""
        self._owner._end(self, self._transient)
        self._pages.clear()


class GrantedPages:
    """The mapped pages of one queue of a frontend's device.

    Attributes:
        recent: gref to page, of those used lately; what the ring's quick path looks into.
        lists: the pages of whole lists of grefs, by the bytes that list them; for the quick path to keep and
            to find again. Emptied when pages are about to go.
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
        self.lists: dict[bytes, list[memoryview]] = {}
        self._older: dict[int, FullPage] = {}
        self._mappings: dict[int, Mapping] = {}
        self._leases: set[Lease] = set()
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
        self._leases.add(lease)
        pages, recent = lease._pages, self.recent
        missing: dict[tuple[int, bool], None] = {}
        for key in wanted:
            if key not in pages:
                page = recent.get(key[0]) or self._taken_up(key[0])
                if page is None:
                    missing[key] = None
                else:
                    pages[key] = page[0]
        if missing:
            self._map_missing(lease, missing)
        return lease

    def joined(self, grefs: Sequence[int]) -> list[memoryview]:
        """The pages of `grefs`, all of which are in `recent`, in as few views as their places allow. For `lists`."""
        return self._grants.joined([self._mappings[gref] for gref in grefs])

    def close(self) -> None:
        """Unmaps everything. Every lease must have been released."""
        self.lists.clear()
        self.recent.clear()
        self._older.clear()
        self._unmap(list(self._mappings.values()))
        self._budget.free += len(self._mappings)
        self._mappings.clear()

    def _taken_up(self, gref: int) -> FullPage | None:
        """A page of the older generation, which is of the recent one from now on."""
        page = self._older.pop(gref, None)
        if page is not None:
            self.recent[gref] = page
        return page

    def _map_missing(self, lease: Lease, missing: Iterable[tuple[int, bool]]) -> None:
        if not self._limit:
            for writes in (False, True):
                grefs = [gref for gref, key_writes in missing if key_writes is writes]
                for gref, mapping in self._mapped(grefs, readonly=writes).items():
                    lease._transient.append(mapping)
                    lease._pages[gref, writes] = mapping.page
            return
        mapped = self._mapped(list(dict.fromkeys(gref for gref, _ in missing)), readonly=False)
        for gref, writes in missing:
            if gref in mapped:
                lease._pages[gref, writes] = mapped[gref].page
        kept = self._make_room(len(mapped))
        for gref, mapping in mapped.items():
            if kept > 0:
                kept -= 1
                self._budget.free -= 1
                self._mappings[gref] = mapping
                self.recent[gref] = (mapping.page,)
            else:
                lease._transient.append(mapping)

    def _make_room(self, wanted: int) -> int:
        """Lets the least recently used pages go that are not in use, if `wanted` more are to stay, and some
        more for those that will come. Returns for how many there is room.
        """
        missing = wanted - self._room()
        if missing > 0:
            self.lists.clear()
            missing = max(missing, self._limit // 16)
            if len(self._older) < missing:
                self._older.update(self.recent)
                self.recent.clear()
            in_use = {gref for lease in self._leases for gref, _ in lease._pages}
            idle = list(islice((gref for gref in self._older if gref not in in_use), missing))
            for gref in idle:
                del self._older[gref]
            self._unmap([self._mappings.pop(gref) for gref in idle])
            self._budget.free += len(idle)
        return self._room()

    def _room(self) -> int:
        return min(self._limit - len(self._mappings), self._budget.free)

    def _end(self, lease: Lease, transient: list[Mapping]) -> None:
        self._leases.discard(lease)
        self._unmap(transient)

    def _mapped(self, grefs: list[int], *, readonly: bool) -> dict[int, Mapping]:
        """Those of `grefs` that could be mapped."""
        if not grefs:
            return {}
        try:
            outcomes = self._grants.map(self._domid, grefs, readonly=readonly)
        except KernelError:
            outcomes = []
        found = {outcome.reference: outcome for outcome in outcomes if isinstance(outcome, Mapping)}
        self.map_failures += len(grefs) - len(found)
        return found

    def _unmap(self, mappings: list[Mapping]) -> None:
        if mappings:
            self._grants.unmap(mappings)
