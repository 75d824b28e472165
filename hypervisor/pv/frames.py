"""What the domain-local core knows of each machine frame: whose it is, what it is used as, how often.

As Xen's struct page_info (xen/arch/x86/mm.c), with the counts kept apart so that every reference is counted once:

uses      kind and type of a frame in one byte (`use_of`), so that a hot path looks at one place
counts    references that need the type: links of page tables, writable mappings, pins, roots, descriptor tables.
          A frame has a type exactly while this is not 0
readers   references that need none: read-only mappings, and all mappings of frames of other domains
stamps    the value of `clock` when the last writable reference went away: until the next flush of all
          translations the processor may still write to it

The ledger (types, granted, written) is shared with the machine-wide core, which counts in `granted` the writable
grants and copies of a frame that are under way, and marks in `written` what others may have written to since this side
cleared it. Either side first writes its own, then passes a fence, then reads the other's; who finds a conflict takes
his own back. So a frame is never a page table or descriptor table while a peer may write to it.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from hypervisor.abi.errno import XEN_EBUSY
from hypervisor.errors import BadFrame
from hypervisor.pv.layout import MFN_END


class Kind(IntEnum):
    """Whose a frame is."""

    ABSENT = 0
    OWN = 1
    """RAM of the domain"""
    XEN = 2
    """the hypervisor's, for the guest to map (shared_info, grant tables): never a page table"""
    FOREIGN = 3
    """another domain's, mapped by a grant: only grant operations make and remove mappings of it"""
    FOREIGN_READONLY = 4


class TypeOfFrame(IntEnum):
    """What a frame must stay as long as it is referred to as such: PGT_* of Xen's, with its numbers."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGDESC = 5
    WRITABLE = 7


KIND_SHIFT: Final = 3
TYPE_MASK: Final = 7


def use_of(kind: Kind, of_type: TypeOfFrame = TypeOfFrame.NONE) -> int:
    """The byte in `uses`."""
    return kind << KIND_SHIFT | of_type


OWN_UNUSED: Final = use_of(Kind.OWN)
OWN_WRITABLE: Final = use_of(Kind.OWN, TypeOfFrame.WRITABLE)
XEN_UNUSED: Final = use_of(Kind.XEN)
XEN_WRITABLE: Final = use_of(Kind.XEN, TypeOfFrame.WRITABLE)
OWN_L1: Final = use_of(Kind.OWN, TypeOfFrame.L1)
OWN_L2: Final = use_of(Kind.OWN, TypeOfFrame.L2)
OWN_L3: Final = use_of(Kind.OWN, TypeOfFrame.L3)
OWN_L4: Final = use_of(Kind.OWN, TypeOfFrame.L4)
OWN_SEGDESC: Final = use_of(Kind.OWN, TypeOfFrame.SEGDESC)
FIRST_MAPPABLE: Final = OWN_UNUSED
END_MAPPABLE: Final = use_of(Kind.FOREIGN)
"""Uses from FIRST_MAPPABLE up to here are those of frames that a guest may map read-only by itself."""


_KINDS: Final = bytes(use >> KIND_SHIFT for use in range(256))
_RUN: Final = re.compile(rb"([\x01-\x04])\1*")
"""frames of one kind, by its number"""


class LocalFrames:
    """The frames of one domain.

    types, granted, written: the ledger, by MFN below MFN_END (hypervisor/pv/ledger.py). ram_end: where the engine has
    no memory any more.
    """

    __slots__ = (
        "clock",
        "counts",
        "granted",
        "pinned",
        "ram_end",
        "readers",
        "stamps",
        "types",
        "uses",
        "written",
    )

    def __init__(self, types: memoryview, granted: memoryview, written: memoryview) -> None:
        self.types = types
        self.granted = granted
        self.written = written
        self.ram_end = MFN_END
        self.uses = bytearray(MFN_END)
        self.counts: list[int] = []
        self.readers: list[int] = []
        self.stamps: list[int] = []
        self.clock = 1
        self.pinned: set[int] = set()

    def kind(self, mfn: int) -> Kind:
        """Whose it is; ABSENT for what is no MFN at all."""
        return Kind(self.uses[mfn] >> KIND_SHIFT) if 0 <= mfn < MFN_END else Kind.ABSENT

    def type(self, mfn: int) -> TypeOfFrame:
        """What it is used as."""
        return TypeOfFrame(self.uses[mfn] & TYPE_MASK)

    def references(self, mfn: int) -> int:
        """All of them: Xen's general count without the one for being allocated."""
        return self.counts[mfn] + self.readers[mfn] if mfn < len(self.counts) else 0

    def appear(self, mfn: int, count: int, kind: Kind) -> None:
        """Frames are there from now on. BadFrame: no such frames, or there already."""
        end = mfn + count
        if not 0 <= mfn <= end <= MFN_END or kind is Kind.ABSENT:
            raise BadFrame(mfn, f"{count} frames from here on cannot appear")
        if any(self.uses[mfn:end]):
            raise BadFrame(mfn, f"of {count} frames from here on, some are there already")
        missing = end - len(self.counts)
        if missing > 0:
            self.counts += [0] * missing
            self.readers += [0] * missing
            self.stamps += [0] * missing
        self.uses[mfn:end] = bytes([use_of(kind)]) * count

    def check_unused(self, mfn: int, count: int) -> None:
        """BadFrame (EBUSY) for one that is referred to, BadFrame (EINVAL) for one that is not there."""
        for frame in range(mfn, mfn + count):
            if self.kind(frame) is Kind.ABSENT:
                raise BadFrame(frame, "not there")
            if self.counts[frame] or self.readers[frame]:
                what = f"{self.type(frame).name}, {self.counts[frame]} + {self.readers[frame]} references"
                raise BadFrame(frame, f"in use ({what})", errno=XEN_EBUSY)

    def vanish(self, mfn: int, count: int) -> None:
        """Frames are there no more; nothing has changed if this raises what `check_unused` does. All translations
        are to be flushed before the guest runs on.
        """
        self.check_unused(mfn, count)
        for frame in range(mfn, mfn + count):
            self.written[frame] = 1  # what comes back has other content
        self.uses[mfn : mfn + count] = bytes(count)

    def runs(self) -> list[tuple[int, int, Kind]]:
        """(first MFN, count, kind) of what is there, in order."""
        kinds = self.uses[: len(self.counts)].translate(_KINDS)
        return [
            (run.start(), run.end() - run.start(), Kind(kinds[run.start()])) for run in _RUN.finditer(kinds)
        ]
