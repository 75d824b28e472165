"""The shared grant table, version 1: entries in real frames that the granter and the hypervisor both write.

Follows public/grant_table.h and the entry transitions of Xen 4.17 (xen/common/grant_table.c). An entry is
two little-endian u32 words: flags with domid, then the frame. Who owns what:

flags: type, GTF_readonly     the granter
flags: GTF_reading, _writing  the hypervisor, only ever by atomic operations on the first word
domid, frame                  the granter, who sets the flags last

The granter may write any of it at any moment, from a process of its own. Therefore each word is fetched once
for each decision, the decision and the in-use bits enter in one compare-and-exchange, and a granter who keeps
changing the word makes the attempt fail, not last. The bits go by one instruction, which nothing can delay.
"""

from __future__ import annotations

from typing import Final, NoReturn

from hypervisor.abi.grant_table import (
    GNTST_bad_gntref,
    GNTST_general_error,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
)
from hypervisor.errors import BadGrantReference
from hypervisor.extent import PAGE_SIZE
from ringbuffers.atomics import AtomicWords

ENTRIES_PER_FRAME: Final = PAGE_SIZE // grant_entry_v1.size
CLAIM_ATTEMPTS: Final = 5

_FRAME_SHIFT: Final = ENTRIES_PER_FRAME.bit_length() - 1
_ENTRY_MASK: Final = ENTRIES_PER_FRAME - 1
_DOMID_SHIFT: Final = 16
# A whole page for everybody: sub-page and transitive grants exist in version 2 tables only.
_KIND_MASK: Final = GTF_type_mask | GTF_sub_page


class GrantEntries:
    """The `count` shared entries of domain `domid`; `frames`: its shared frames in order, as u32 words.

    An AtomicWords keeps its frame's memory: whoever ends the domain empties `frames`.
    """

    __slots__ = ("count", "domid", "frames")

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.count = 0
        self.frames: list[AtomicWords] = []

    def add_frame(self, page: memoryview) -> None:
        """Append a zeroed shared frame, given as its 4096 bytes."""
        self.frames.append(AtomicWords(page.cast("I")))
        self.count += ENTRIES_PER_FRAME

    def claim(self, reference: int, domid: int, *, readonly: bool, pinned: bool) -> None:
        """Mark the grant as in use by `domid`: set GTF_reading, and GTF_writing unless `readonly`.

        `pinned`: the grant is in use by `domid` already, so that only GTF_readonly can still stand against
        it. Raises BadGrantReference when the entry does not permit it, or will not stand still for
        CLAIM_ATTEMPTS.
        """
        frame = self.frames[reference >> _FRAME_SHIFT]
        words = frame.words
        index = (reference & _ENTRY_MASK) << 1
        in_use = GTF_reading if readonly else GTF_reading | GTF_writing
        for _ in range(CLAIM_ATTEMPTS):
            seen = words[index]
            if not pinned and (seen & _KIND_MASK != GTF_permit_access or seen >> _DOMID_SHIFT != domid):
                self._refuse(reference, f"flags and domid {seen:#010x} do not permit domain {domid}")
            if seen & GTF_readonly and not readonly:
                self._refuse(reference, "read-only")
            if frame.compare_exchange(index, seen, seen | in_use):
                return
        self._refuse(reference, "the entry keeps changing")

    def drop(self, reference: int, flags: int) -> None:
        """Clear some of GTF_reading and GTF_writing: nothing uses the grant in that way any more."""
        self.frames[reference >> _FRAME_SHIFT].clear_bits((reference & _ENTRY_MASK) << 1, flags)

    def frame(self, reference: int) -> int:
        """The granter's frame number as it stands there now."""
        number: int = self.frames[reference >> _FRAME_SHIFT].words[((reference & _ENTRY_MASK) << 1) + 1]
        return number

    def domid_of(self, reference: int) -> int:
        """The domid as it stands there now."""
        return (
            int(self.frames[reference >> _FRAME_SHIFT].words[(reference & _ENTRY_MASK) << 1]) >> _DOMID_SHIFT
        )

    def flags(self, reference: int) -> int:
        """The flags (GTF_*) as they stand there now."""
        return int(self.frames[reference >> _FRAME_SHIFT].words[(reference & _ENTRY_MASK) << 1]) & 0xFFFF

    def write(self, reference: int, domid: int, frame: int, flags: int) -> None:
        """Fill an entry on the granter's behalf, its flags last. The hypervisor changes none that permits
        nothing, so that stores are enough.
        """
        words = self.frames[reference >> _FRAME_SHIFT].words
        index = (reference & _ENTRY_MASK) << 1
        words[index + 1] = frame
        words[index] = domid << _DOMID_SHIFT
        words[index] = domid << _DOMID_SHIFT | flags

    def swap(self, a: int, b: int) -> None:
        """Exchange the contents of two entries that nobody uses. The granter asks for it, and a granter who
        writes to them meanwhile loses what it wrote: there are no bits of anybody else to be lost.
        """
        for offset in (0, 1):
            words_a = self.frames[a >> _FRAME_SHIFT].words
            words_b = self.frames[b >> _FRAME_SHIFT].words
            at_a = ((a & _ENTRY_MASK) << 1) + offset
            at_b = ((b & _ENTRY_MASK) << 1) + offset
            words_a[at_a], words_b[at_b] = words_b[at_b], words_a[at_a]

    def check(self, reference: int) -> None:
        """BadGrantReference (GNTST_bad_gntref) unless there is such an entry."""
        if reference >= self.count:
            why = f"the table has {self.count} entries"
            raise BadGrantReference(self.domid, reference, why, status=GNTST_bad_gntref)

    def _refuse(self, reference: int, why: str) -> NoReturn:
        raise BadGrantReference(self.domid, reference, why, status=GNTST_general_error)
