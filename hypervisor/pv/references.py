"""References to frames that hold no entries: RAM that is mapped, descriptor tables, memory that is written to.

Follows get_page_from_l1e, put_page_from_l1e and validate_segdesc_page of Xen 4.17. The first reference that needs a
type gives it to a frame that has none, the last one to go takes it away.
"""

from __future__ import annotations

from collections.abc import Callable

from hypervisor.abi.errno import XEN_EBUSY, XEN_EINVAL, XEN_EPERM
from hypervisor.errors import BadFrame
from hypervisor.pv import descriptors
from hypervisor.pv.entries import ADDRESS_MASK, MFN_MASK, RW, BadEntry
from hypervisor.pv.frames import (
    END_MAPPABLE,
    FIRST_MAPPABLE,
    KIND_SHIFT,
    OWN_SEGDESC,
    OWN_UNUSED,
    OWN_WRITABLE,
    TYPE_MASK,
    XEN_UNUSED,
    XEN_WRITABLE,
    Kind,
    LocalFrames,
    TypeOfFrame,
)
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT, RAM_FIRST
from hypervisor.pv.machine_memory import MachineMemory
from ringbuffers.atomics import fence


class References:
    """Of one domain.

    forget_code: the processor forgets what it has translated of a frame. flush_due: all translations are to be
    forgotten before the guest runs on. restoring: mappings of other domains' frames are found in tables, not made by
    grant operations.
    """

    __slots__ = ("flush_due", "forget_code", "frames", "memory", "restoring")

    def __init__(
        self, memory: MachineMemory, frames: LocalFrames, forget_code: Callable[[int], None]
    ) -> None:
        self.memory = memory
        self.frames = frames
        self.forget_code = forget_code
        self.flush_due = False
        self.restoring = False

    # What L1 entries refer to

    def take_data(self, entry: int) -> None:
        """Refer to what a present L1 entry is to map. BadEntry."""
        frames = self.frames
        mfn = (entry & ADDRESS_MASK) >> PAGE_SHIFT
        use = frames.uses[mfn] if mfn < MFN_END else 0
        if entry & RW:
            if use == OWN_WRITABLE:
                frames.counts[mfn] += 1
                return
        elif FIRST_MAPPABLE <= use < END_MAPPABLE:
            frames.readers[mfn] += 1
            return
        self._take_unusual(mfn, use, entry)

    def will_execute(self, mfn: int) -> None:
        """An executable L1 entry is made for a frame that others have written to. In this order: what they write from
        now on counts again.
        """
        self.frames.written[mfn] = 0
        self.forget_code(mfn)

    def drop_data(self, entry: int) -> None:
        """What a present L1 entry mapped is mapped by it no more."""
        frames = self.frames
        mfn = (entry & ADDRESS_MASK) >> PAGE_SHIFT
        if entry & RW:
            use = frames.uses[mfn]
            if use in (OWN_WRITABLE, XEN_WRITABLE):
                count = frames.counts[mfn] - 1
                frames.counts[mfn] = count
                if not count:
                    frames.uses[mfn] = use & ~TYPE_MASK
                    frames.types[mfn] = 0
                    frames.stamps[mfn] = frames.clock
                return
        frames.readers[mfn] -= 1

    def _take_unusual(self, mfn: int, use: int, entry: int) -> None:
        """The first writable mapping, or one of the hypervisor's frames; everything else is refused."""
        frames = self.frames
        if entry & RW and use in (OWN_UNUSED, XEN_UNUSED):
            frames.uses[mfn] = use | TypeOfFrame.WRITABLE
            frames.types[mfn] = TypeOfFrame.WRITABLE
            frames.counts[mfn] = 1
        elif entry & RW and use in (OWN_WRITABLE, XEN_WRITABLE):
            frames.counts[mfn] += 1
        elif self.restoring and self._is_granted(use, entry):
            frames.readers[mfn] += 1
        else:
            raise self._not_mappable(mfn, use, entry)

    @staticmethod
    def _is_granted(use: int, entry: int) -> bool:
        kind = use >> KIND_SHIFT
        return kind == Kind.FOREIGN or (kind == Kind.FOREIGN_READONLY and not entry & RW)

    def _not_mappable(self, mfn: int, use: int, entry: int) -> BadEntry:
        """As Xen has it: EBUSY for what is somebody's, EPERM for what may be a device's, EINVAL for no frame."""
        kind = Kind(use >> KIND_SHIFT)
        if kind in (Kind.OWN, Kind.XEN):
            what = f"writable, and the frame is {TypeOfFrame(use & TYPE_MASK).name}"
            return BadEntry(1, entry, what, errno=XEN_EBUSY)
        if kind is not Kind.ABSENT:
            return BadEntry(1, entry, "a frame of another domain, without a grant", errno=XEN_EBUSY)
        if RAM_FIRST <= mfn < MFN_END:
            return BadEntry(1, entry, "a frame that the domain has not", errno=XEN_EBUSY)
        return BadEntry(1, entry, "no RAM", errno=XEN_EINVAL if mfn == MFN_MASK else XEN_EPERM)

    # References without a page-table entry

    def take_writable(self, mfn: int) -> None:
        """Refer to a frame of the domain's own as writable. BadFrame."""
        frames = self.frames
        use = frames.uses[mfn] if 0 <= mfn < MFN_END else 0
        if use not in (OWN_UNUSED, OWN_WRITABLE):
            raise BadFrame(mfn, "not writable memory of the domain's own")
        if use == OWN_UNUSED:
            frames.uses[mfn] = OWN_WRITABLE
            frames.types[mfn] = TypeOfFrame.WRITABLE
        frames.counts[mfn] += 1

    def put_writable(self, mfn: int) -> None:
        """That reference goes away."""
        self.drop_data(mfn << PAGE_SHIFT | RW)

    def take_descriptors(self, mfn: int) -> None:
        """Refer to a frame as a descriptor table; the first reference checks all 512 descriptors. BadFrame."""
        frames = self.frames
        use = frames.uses[mfn] if 0 <= mfn < MFN_END else 0
        if use == OWN_SEGDESC:
            frames.counts[mfn] += 1
            return
        if use != OWN_UNUSED:
            raise BadFrame(mfn, "no frame that can be a descriptor table")
        self._become(mfn, TypeOfFrame.SEGDESC)
        table = self.memory.table(mfn)
        for index, descriptor in enumerate(table.tolist()):
            if descriptor:
                fixed = descriptors.fix(descriptor)
                if fixed is None:
                    self._become_unused(mfn)
                    raise BadFrame(mfn, f"descriptor {index} is {descriptor:#018x}")
                table[index] = fixed

    def put_descriptors(self, mfn: int) -> None:
        """That reference goes away."""
        frames = self.frames
        frames.counts[mfn] -= 1
        if not frames.counts[mfn]:
            self._become_unused(mfn)

    # Types that others respect

    def _become(self, mfn: int, of_type: TypeOfFrame) -> None:
        """An unused frame gets a type that nobody else may write to; the other side of the ledger is asked."""
        frames = self.frames
        frames.uses[mfn] = OWN_UNUSED + of_type
        frames.counts[mfn] = 1
        frames.types[mfn] = of_type
        fence()
        if frames.granted[mfn]:
            self._become_unused(mfn)
            raise BadFrame(mfn, f"no {of_type.name} while others may write to it")
        if frames.stamps[mfn] == frames.clock:
            self.flush_due = True

    def _become_unused(self, mfn: int) -> None:
        frames = self.frames
        frames.uses[mfn] = OWN_UNUSED
        frames.counts[mfn] = 0
        frames.types[mfn] = 0
