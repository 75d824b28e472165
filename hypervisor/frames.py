"""The frame table: whose each machine frame is, and who refers to it.

Machine-wide compact arrays indexed by MFN hold what Xen keeps in struct page_info:

owners     the domid, kept until the frame is free, even while only a peer still refers to it
refs       the general count: one for the allocation itself, one for each mapping
writable   how many of those mappings may write (the count of the type PGT_writable_page)
flags      ALLOCATED: not given up (PGC_allocated); SPECIAL: shared_info, grant frames (PGC_xen_heap)

A frame that its owner gives up while a peer still refers to it stays, with its content, until the last
release; only then does it leave its owner's account (reservation.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, Protocol

from hypervisor.abi.xen import DOMID_INVALID
from hypervisor.errors import BadFrame, OutOfMemory
from hypervisor.extent import EXTENT_FRAMES, EXTENT_SHIFT, PAGE_SHIFT, PAGE_SIZE, Extent

ALLOCATED: Final = 1
SPECIAL: Final = 2


class Account(Protocol):
    """Who is told that a domain's frame has become free."""

    def frames_freed(self, extent: Extent, offset: int, count: int, *, special: bool) -> None:
        """The last reference to each of `count` frames is gone; they are scrubbed already."""


class FrameTable:
    """All frames of the machine; `total` is how many may be in use at a time."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.owners = array("H")
        self.refs = array("I")
        self.writable = array("I")
        self.flags = array("B")
        self.accounts: dict[int, Account] = {}
        self._extents: list[Extent | None] = []  # by MFN >> EXTENT_SHIFT
        self._vacant: dict[int, list[int]] = {}  # size of a closed extent -> first MFNs of such ranges
        self._grow(EXTENT_FRAMES)  # MFN 0 names no frame

    # Extents

    def open_extent(self, count: int) -> Extent:
        """A new extent of at least `count` frames, all free. OutOfMemory when the host has no more."""
        size = _extent_size(count)
        ranges = self._vacant.get(size)
        mfn = ranges.pop() if ranges else len(self.owners)
        try:
            extent = Extent(mfn, size)
        except (OSError, ValueError) as error:
            if ranges is not None and mfn != len(self.owners):
                ranges.append(mfn)
            raise OutOfMemory(f"memfd ({error})", count, 0) from error
        if mfn == len(self.owners):
            self._grow(size)
        first = mfn >> EXTENT_SHIFT
        self._extents[first : first + (size >> EXTENT_SHIFT)] = [extent] * (size >> EXTENT_SHIFT)
        return extent

    def close_extent(self, extent: Extent) -> None:
        """Forget an extent in which no frame is in use; its MFNs may name other memory from now on."""
        first = extent.mfn >> EXTENT_SHIFT
        self._extents[first : first + (extent.count >> EXTENT_SHIFT)] = [None] * (
            extent.count >> EXTENT_SHIFT
        )
        self._vacant.setdefault(extent.count, []).append(extent.mfn)
        extent.close()

    def extents(self) -> Iterator[Extent]:
        """Every open extent, once, in MFN order."""
        previous = None
        for extent in self._extents:
            if extent is not None and extent is not previous:
                yield extent
            previous = extent

    def _grow(self, count: int) -> None:
        self.owners.extend(array("H", [DOMID_INVALID]) * count)
        self.refs.extend(array("I", [0]) * count)
        self.writable.extend(array("I", [0]) * count)
        self.flags.extend(array("B", [0]) * count)
        self._extents.extend([None] * (count >> EXTENT_SHIFT))

    # Allocation

    @property
    def free(self) -> int:
        """Frames that may still be allocated."""
        return self.total - self.used

    @property
    def max_mfn(self) -> int:
        """The highest MFN that may exist just now."""
        return len(self.owners) - 1

    def allocate(self, extent: Extent, offset: int, count: int, domid: int, *, special: bool) -> int:
        """Give `count` free, consecutive frames of `extent` to `domid`; returns the first MFN. The caller
        took them off the extent's lists and has looked at `free`.
        """
        mfn = extent.mfn + offset
        end = mfn + count
        self.owners[mfn:end] = array("H", [domid]) * count
        self.refs[mfn:end] = array("I", [1]) * count
        self.flags[mfn:end] = array("B", [ALLOCATED | SPECIAL if special else ALLOCATED]) * count
        extent.used += count
        self.used += count
        return mfn

    def give_up(self, mfn: int) -> None:
        """The owner drops its allocation of a frame. BadFrame if it is not allocated."""
        if not self.exists(mfn) or not self.flags[mfn] & ALLOCATED:
            raise BadFrame(mfn, "not allocated")
        self.flags[mfn] &= ~ALLOCATED
        self._drop_reference(mfn)

    def give_up_untouched(self, mfn: int, count: int) -> bool:
        """The same for `count` ordinary frames of one extent in one piece, if nobody but the owner refers
        to any of them.
        """
        end = mfn + count
        untouched = (
            self.refs[mfn:end] == array("I", [1]) * count
            and self.flags[mfn:end] == array("B", [ALLOCATED]) * count
        )
        if untouched:
            self._free(mfn, count)
        return untouched

    def _free(self, mfn: int, count: int) -> None:
        extent = self._extents[mfn >> EXTENT_SHIFT]
        assert extent is not None  # a frame with a reference lies in an open extent
        end = mfn + count
        domid = self.owners[mfn]
        special = bool(self.flags[mfn] & SPECIAL)
        self.owners[mfn:end] = array("H", [DOMID_INVALID]) * count
        self.refs[mfn:end] = array("I", [0]) * count
        self.flags[mfn:end] = array("B", [0]) * count
        extent.scrub(mfn - extent.mfn, count)
        extent.used -= count
        self.used -= count
        self.accounts[domid].frames_freed(extent, mfn - extent.mfn, count, special=special)

    # References

    def exists(self, mfn: int) -> bool:
        """Whether `mfn` names a frame that is in use."""
        return 0 <= mfn < len(self.refs) and self.refs[mfn] != 0

    def owner(self, mfn: int) -> int:
        """The owner's domid. BadFrame for a frame that does not exist."""
        if not self.exists(mfn):
            raise BadFrame(mfn, "no such frame")
        return self.owners[mfn]

    def acquire(self, mfn: int, owner: int, *, writable: bool) -> None:
        """Take a reference to a frame of domain `owner`; BadFrame if it is not that domain's."""
        if self.owner(mfn) != owner:
            raise BadFrame(mfn, f"belongs to domain {self.owners[mfn]}, not to {owner}")
        if self.refs[mfn] == 0xFFFFFFFF:
            raise BadFrame(mfn, "too many references")
        self.refs[mfn] += 1
        if writable:
            self.writable[mfn] += 1

    def release(self, mfn: int, *, writable: bool) -> None:
        """Drop a reference that `acquire` took, with the same `writable`. The last one frees the frame."""
        if writable:
            self.writable[mfn] -= 1
        self._drop_reference(mfn)

    def _drop_reference(self, mfn: int) -> None:
        if self.refs[mfn] == 1:
            self._free(mfn, 1)
        else:
            self.refs[mfn] -= 1

    # Content

    def extent_at(self, mfn: int) -> Extent:
        """The extent that `mfn` lies in. BadFrame if there is none."""
        if 0 <= mfn < len(self.owners):
            extent = self._extents[mfn >> EXTENT_SHIFT]
            if extent is not None:
                return extent
        raise BadFrame(mfn, "no such frame")

    def view(self, mfn: int) -> memoryview:
        """The 4096 bytes of a frame, writable."""
        return self.span(mfn, 1)

    def span(self, mfn: int, count: int) -> memoryview:
        """`count` consecutive frames of one extent as one view."""
        extent = self.extent_at(mfn)
        offset = mfn - extent.mfn
        if not 0 < count <= extent.count - offset:
            raise BadFrame(mfn + count, "the span leaves its extent")
        return extent.view[offset << PAGE_SHIFT : (offset + count) * PAGE_SIZE]


def _extent_size(count: int) -> int:
    """Round up to EXTENT_FRAMES times 2**k or 1.5 * 2**k: few sizes, so that MFN ranges are used again."""
    size = EXTENT_FRAMES
    while size < count:
        if size + size // 2 >= count and size > EXTENT_FRAMES:
            return size + size // 2
        size *= 2
    return size
