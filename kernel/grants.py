"""Grants: pages that this domain lets another one use, and pages of others that it uses
(public/grant_table.h, version 1).

As granter this kernel owns an entry of the shared grant table: it writes domid and frame, then the flags. The
hypervisor sets GTF_reading and GTF_writing while the peer has the page mapped. Ending a grant is one atomic
exchange of the flags, which fails while those bits are set; asking first and ending later would be a race
(XSA-396). A page that a peer keeps is never used again before its grant has ended: `retire` keeps such pages
aside and tries again later.

As grantee it maps references at empty frame numbers of its own and gets a status for each.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from hypervisor.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_okay,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    grant_entry_v1,
)
from hypervisor.abi.memory import XENMAPSPACE_grant_table
from kernel.errors import KernelMisuse, OutOfGrants, StillMapped
from kernel.hypercalls import Hypercalls
from kernel.hypercalls.grant_table import COPY as COPY_CODEC
from kernel.hypercalls.grant_table import MAP, UNMAP, CopyOp
from kernel.ledger import Leak, Ledger
from kernel.mapping import GrantError, Mapping, UnmapFailed
from kernel.pages import PageAllocator, Pages
from kernel.platform import PAGE_SHIFT, PAGE_SIZE, Memory
from ringbuffers.atomics import AtomicWords

ENTRIES_PER_FRAME: Final = PAGE_SIZE // grant_entry_v1.size
MAX_FLAG_RETRIES: Final = 16
RETRIES_PER_RETIREMENT: Final = 4

_IN_USE: Final = GTF_reading | GTF_writing
_WORDS_PER_ENTRY: Final = grant_entry_v1.size // 2
_DOMID_WORD: Final = grant_entry_v1.offsets["domid"] // 2
_FRAME_WORD: Final = grant_entry_v1.offsets["frame"] // 4


class _Frame:
    """One page of the shared grant table, as 16-bit and as 32-bit words. `flags`: the 16-bit ones, for what
    the hypervisor may exchange at the same time.
    """

    __slots__ = ("flags", "halves", "words")

    def __init__(self, page: memoryview) -> None:
        self.halves = page.cast("H")
        self.words = page.cast("I")
        self.flags = AtomicWords(self.halves)


class Grants:
    """The grant table of this kernel, and its mappings of others' pages. Costs nothing before the first
    grant.
    """

    def __init__(self, memory: Memory, pages: PageAllocator, hypercalls: Hypercalls) -> None:
        self.ledger = Ledger()
        self._memory = memory
        self._pages = pages
        self._hypercalls = hypercalls
        self._frames: list[_Frame] = []
        self._max_frames = 0
        self._free: list[int] = []
        self._retired: deque[tuple[list[int], Pages]] = deque()

    # Granting

    def grant(self, domid: int, pfn: int, *, readonly: bool = False) -> int:
        """Let `domid` use page `pfn`; returns the reference to tell it. Raises OutOfGrants."""
        self._memory.share(domid, (pfn,), readonly=readonly)
        return self._enter(domid, pfn, readonly=readonly)

    def _enter(self, domid: int, pfn: int, *, readonly: bool) -> int:
        if not self._free:
            self._grow(1)
        reference = self._free.pop()
        frame = self._frames[reference // ENTRIES_PER_FRAME]
        index = reference % ENTRIES_PER_FRAME
        frame.halves[index * _WORDS_PER_ENTRY + _DOMID_WORD] = domid
        frame.words[index * 2 + _FRAME_WORD] = pfn
        # Last: from here on the hypervisor believes the entry. Stores become visible in this order on x86-64.
        frame.halves[index * _WORDS_PER_ENTRY] = GTF_permit_access | (GTF_readonly if readonly else 0)
        self.ledger.enter(reference, domid, pfn, readonly=readonly)
        return reference

    def grant_many(self, domid: int, pfns: Sequence[int], *, readonly: bool = False) -> list[int]:
        """Let `domid` use several pages. Raises OutOfGrants, and then none was granted."""
        if len(self._free) < len(pfns):
            self._grow(len(pfns))
        self._memory.share(domid, pfns, readonly=readonly)
        return [self._enter(domid, pfn, readonly=readonly) for pfn in pfns]

    def is_mapped(self, reference: int) -> bool:
        """Whether the peer has the page mapped just now. It may map it the moment after."""
        return bool(self._flags(reference) & _IN_USE)

    def end(self, reference: int) -> None:
        """Take the permission back; the reference may be given out anew. Raises StillMapped, and nothing has
        changed.
        """
        entry = self.ledger.find(reference)
        if entry is None:
            raise KernelMisuse("grant reference", reference, "one that was granted and has not been ended")
        frame = self._frames[reference // ENTRIES_PER_FRAME]
        index = reference % ENTRIES_PER_FRAME * _WORDS_PER_ENTRY
        for _ in range(MAX_FLAG_RETRIES):
            flags: int = frame.halves[index]
            if flags & _IN_USE:
                break
            if frame.flags.compare_exchange(index, flags, 0):
                self.ledger.cross_out(reference)
                self._free.append(reference)
                return
        raise StillMapped(reference, entry.domid, entry.pfn)

    def retire(self, references: Sequence[int], pages: Pages) -> bool:
        """End the grants of `pages` and free them. If the peer keeps some, they are put aside, and it is
        tried again whenever something else is retired. Returns whether the pages are free now.
        """
        for _ in range(min(RETRIES_PER_RETIREMENT, len(self._retired))):
            self._retire(*self._retired.popleft())
        return self._retire(list(references), pages)

    def _retire(self, references: list[int], pages: Pages) -> bool:
        kept = []
        for reference in references:
            try:
                self.end(reference)
            except StillMapped:
                kept.append(reference)
        if kept:
            self._retired.append((kept, pages))
            return False
        self._pages.free(pages)
        return True

    def leaks(self) -> list[Leak]:
        """Every grant that has not been ended, the retired ones included after a last try."""
        for _ in range(len(self._retired)):
            self._retire(*self._retired.popleft())
        return [Leak(entry, self.is_mapped(entry.reference)) for entry in self.ledger]

    def _flags(self, reference: int) -> int:
        flags: int = self._frames[reference // ENTRIES_PER_FRAME].halves[
            reference % ENTRIES_PER_FRAME * _WORDS_PER_ENTRY
        ]
        return flags

    def _grow(self, wanted: int) -> None:
        """Share more pages of the grant table until `wanted` references are free. Raises OutOfGrants."""
        if not self._max_frames:
            self._max_frames = self._hypercalls.grant_query_size()[1].max_frames
        capacity = self._max_frames * ENTRIES_PER_FRAME
        unshared = capacity - len(self._frames) * ENTRIES_PER_FRAME
        usable = unshared - (0 if self._frames else GNTTAB_NR_RESERVED_ENTRIES)
        if len(self._free) + usable < wanted:
            raise OutOfGrants(wanted, capacity)
        while len(self._free) < wanted:
            index = len(self._frames)
            gpfn = self._pages.reserve_gpfns(1)
            self._hypercalls.add_to_physmap(XENMAPSPACE_grant_table, index, gpfn)
            self._frames.append(_Frame(self._memory.page(gpfn)))
            first = index * ENTRIES_PER_FRAME
            # The toolstack keeps the first references; the rest are given out in ascending order.
            lowest = max(first, GNTTAB_NR_RESERVED_ENTRIES)
            self._free[:0] = range(first + ENTRIES_PER_FRAME - 1, lowest - 1, -1)

    # Using others' pages

    def map(
        self, domid: int, references: Sequence[int], *, readonly: bool = False
    ) -> list[Mapping | GrantError]:
        """Map pages that `domid` granted to us. One result for each reference: one that fails does not harm
        the others.
        """
        results: list[Mapping | GrantError] = []
        chunk = self._hypercalls.area.room // MAP.size
        for start in range(0, len(references), chunk):
            results += self._map(domid, references[start : start + chunk], readonly=readonly)
        return results

    def _map(self, domid: int, references: Sequence[int], *, readonly: bool) -> list[Mapping | GrantError]:
        count = len(references)
        first = self._pages.reserve_gpfns(count)
        addresses = [gpfn << PAGE_SHIFT for gpfn in range(first, first + count)]
        flags = GNTMAP_host_map | (GNTMAP_readonly if readonly else 0)
        try:
            statuses = self._hypercalls.grant_map(domid, references, addresses, flags)
        except BaseException:
            self._pages.release_gpfns(first, count)
            raise
        results: list[Mapping | GrantError] = []
        for gpfn, reference, (status, handle) in zip(range(first, first + count), references, statuses):
            if status == GNTST_okay:
                results.append(Mapping(self._memory.page(gpfn)[:], handle, gpfn, domid, reference))
            else:
                self._pages.release_gpfns(gpfn, 1)
                results.append(GrantError(domid, reference, status))
        return results

    def joined(self, mappings: Sequence[Mapping]) -> list[memoryview]:
        """The pages of `mappings` in their order, in as few views as their places in memory allow. They must not
        be used any more once one of these is unmapped.
        """
        views: list[memoryview] = []
        start = 0
        for end in range(1, len(mappings) + 1):
            if end == len(mappings) or mappings[end].pfn != mappings[end - 1].pfn + 1:
                views += self._spanned(mappings[start:end])
                start = end
        return views

    def _spanned(self, mappings: Sequence[Mapping]) -> list[memoryview]:
        """Pages that follow one another in this domain; in the machine they may not."""
        try:
            return [self._memory.span(mappings[0].pfn, len(mappings))]
        except LookupError:
            return [mapping.page for mapping in mappings]

    def unmap(self, mappings: Sequence[Mapping]) -> None:
        """Undo mappings; their views cannot be used any more. Raises UnmapFailed naming those that remain."""
        failed: list[tuple[Mapping, int]] = []
        chunk = self._hypercalls.area.room // UNMAP.size
        for start in range(0, len(mappings), chunk):
            part = mappings[start : start + chunk]
            for mapping in part:
                mapping.release()
            addresses = [mapping.pfn << PAGE_SHIFT for mapping in part]
            statuses = self._hypercalls.grant_unmap([mapping.handle for mapping in part], addresses)
            for mapping, status in zip(part, statuses):
                if status == GNTST_okay:
                    self._pages.release_gpfns(mapping.pfn, 1)
                else:
                    failed.append((mapping, status))
        if failed:
            raise UnmapFailed(failed)

    def copy(self, operations: Sequence[CopyOp]) -> list[int]:
        """Let the hypervisor copy from and to granted pages; a GNTST_* status for each operation."""
        chunk = self._hypercalls.area.room // COPY_CODEC.size
        statuses: list[int] = []
        for start in range(0, len(operations), chunk):
            statuses += self._hypercalls.grant_copy(operations[start : start + chunk])
        return statuses
