"""Types of frames: what makes a frame a page table, and what it stops being one by.

A reference to a table of level n needs the type Ln. The first one promotes the frame: all of its entries are validated,
which refers to what they name, and adjusted. The last one to go away demotes it: what its entries name is given back.

Neither recurses without bound nor takes unbounded time. Work is counted in entries (`budget`, set anew by each
hypercall), and where Xen keeps half-validated tables, this keeps nothing but references:

- A promotion that is interrupted is taken back, but the tables below that were done already stay referred to
  (`held`, by vCPU) until the hypercall, made again, has been through: what is promoted already costs it one step.
- A table whose last reference goes away is put on a list (`deferred`) that owns that reference, and is demoted when its
  turn comes; the tables that it refers to may then be put there in turn.

Both lists are plain frame numbers. Everything in them is a whole, valid table with its references counted.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import Final

from hypervisor.abi.errno import XEN_EBUSY, XEN_EINVAL, XEN_EPERM
from hypervisor.errors import BadFrame, XenError
from hypervisor.pv import descriptors
from hypervisor.pv.entries import (
    ACCESSED,
    ADDRESS_MASK,
    GLOBAL,
    GNTTAB,
    GUEST_KERNEL,
    L1_DISALLOWED,
    MFN_MASK,
    NX,
    RW,
    TABLE_DISALLOWED,
    USER,
    BadEntry,
)
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
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT, MFN_END, PAGE_SHIFT, RAM_FIRST
from hypervisor.pv.machine_memory import MachineMemory
from ringbuffers.atomics import fence

ENTRIES: Final = 512
BUDGET: Final = 16 * ENTRIES
"""entries that a hypercall may look at before it is to be made again: some milliseconds"""
UNBOUNDED: Final = 1 << 62

_table = Codec("<512Q")
_NO_TABLE: Final = bytes(4096)


class Preempted(Exception):
    """The budget is used up: make the hypercall again. Nothing has changed but what is referred to by `held`."""


class Validation:
    """The types of one domain's frames.

    forget_code: the processor forgets what it has translated of a frame.

    xen_entries: the L4 entries of slots 256 to 271. flush_due: all translations are to be forgotten before the guest
    runs on. restoring: mappings of other domains' frames are found in tables, not made by grant operations.
    """

    __slots__ = (
        "_forget_code",
        "_kept",
        "_progress",
        "budget",
        "deferred",
        "flush_due",
        "frames",
        "held",
        "memory",
        "restoring",
        "xen_entries",
    )

    def __init__(
        self,
        memory: MachineMemory,
        frames: LocalFrames,
        xen_entries: list[int],
        forget_code: Callable[[int], None],
    ) -> None:
        self.memory = memory
        self.frames = frames
        self.xen_entries = xen_entries
        self._forget_code = forget_code
        self.budget = UNBOUNDED
        self.deferred: list[int] = []
        self.held: dict[int, tuple[int, list[int]]] = {}
        self.flush_due = False
        self.restoring = False
        self._kept: list[int] = []
        self._progress = False

    def begin(self, budget: int) -> None:
        """A hypercall begins, or goes on, and may look at so many entries. However few these are, one table gets
        done.
        """
        self.budget = budget
        self._progress = False

    # References to tables

    def take(self, vcpu_id: int, mfn: int, level: int) -> None:
        """Refer to frame `mfn` as a table of `level`, for vCPU `vcpu_id`.

        Raises BadFrame or BadEntry, and then nothing has changed; Preempted.
        """
        frames = self.frames
        if not self.held and 0 <= mfn < MFN_END and frames.uses[mfn] == OWN_UNUSED + level:
            frames.counts[mfn] += 1
            return
        target, before = self.held.pop(vcpu_id, (mfn, []))
        if target != mfn:
            self.drop_all(before)
            before = []
        self._kept = []
        try:
            self._take(mfn, level)
        except Preempted:
            self.held[vcpu_id] = mfn, before + self._kept
            raise
        except XenError:
            self.drop_all(before)
            raise
        self.drop_all(before)

    def release(self, vcpu_id: int) -> None:
        """The hypercall of that vCPU is over, and needs no more what it left behind when it was interrupted."""
        _, held = self.held.pop(vcpu_id, (0, []))
        self.drop_all(held)

    def drop(self, mfn: int) -> None:
        """A reference to a table goes away; demoting it is put off until `drain`."""
        counts = self.frames.counts
        if counts[mfn] > 1:
            counts[mfn] -= 1
        else:
            self.deferred.append(mfn)

    def drop_all(self, mfns: list[int]) -> None:
        """The same for many."""
        for mfn in mfns:
            self.drop(mfn)

    def drain(self) -> bool:
        """Demote what is to be demoted, as far as the budget goes; whether all of it was done."""
        deferred, counts = self.deferred, self.frames.counts
        while deferred:
            if self.budget <= 0:
                return False
            mfn = deferred.pop()
            if counts[mfn] > 1:
                counts[mfn] -= 1
            else:
                self._demote(mfn)
        return True

    def _take(self, mfn: int, level: int) -> None:
        frames = self.frames
        use = frames.uses[mfn] if 0 <= mfn < MFN_END else 0
        if use == OWN_UNUSED + level:
            frames.counts[mfn] += 1
            return
        if use != OWN_UNUSED:
            raise self._not_a_table(mfn, level)
        if self.budget <= 0 and self._progress:
            raise Preempted
        self._become(mfn, TypeOfFrame(level))
        try:
            if level == 1:
                self._promote_l1(mfn)
            else:
                self._promote(mfn, level)
        except BaseException:
            self._become_unused(mfn)
            raise
        self._progress = True

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

    def _not_a_table(self, mfn: int, level: int) -> BadFrame:
        kind = self.frames.kind(mfn)
        found = self.frames.type(mfn).name if kind is Kind.OWN else kind.name
        return BadFrame(mfn, f"{found}, not L{level}")

    # Tables of level 2 to 4

    def _promote(self, mfn: int, level: int) -> None:
        """Validate all entries; `mfn` has the type already, so that it cannot refer to itself."""
        frames = self.frames
        uses, counts = frames.uses, frames.counts
        quads = self.memory.quads
        below = OWN_UNUSED + level - 1
        extra = USER | ACCESSED if level == TypeOfFrame.L4 else USER
        taken: list[int] = []
        slot = mfn << 9
        try:
            for slot, entry in self._present(mfn):
                if level == TypeOfFrame.L4 and FIRST_XEN_SLOT <= slot & 511 <= LAST_XEN_SLOT:
                    continue
                if entry & TABLE_DISALLOWED:
                    raise BadEntry(level, entry, f"flags {entry & TABLE_DISALLOWED:#x}")
                child = (entry & ADDRESS_MASK) >> PAGE_SHIFT
                if child < MFN_END and uses[child] == below:
                    counts[child] += 1
                else:
                    self._take(child, level - 1)
                taken.append(child)
                if entry & extra != extra:
                    quads[slot] = entry | extra
        except Preempted:
            self._kept += taken
            raise
        except XenError:
            self.drop_all(taken)
            raise
        if level == TypeOfFrame.L4:
            first = (mfn << 9) + FIRST_XEN_SLOT
            for index, entry in enumerate(self.xen_entries):
                quads[first + index] = entry

    def _demote(self, mfn: int) -> None:
        """The last reference is gone."""
        level = self.frames.uses[mfn] & TYPE_MASK
        if level == TypeOfFrame.L1:
            drop = self.drop_data
            for _, entry in self._present(mfn):
                drop(entry)
        else:
            xen_slots = range((mfn << 9) + FIRST_XEN_SLOT, (mfn << 9) + LAST_XEN_SLOT + 1)
            counts, deferred = self.frames.counts, self.deferred
            for slot, entry in self._present(mfn):
                if level == TypeOfFrame.L4 and slot in xen_slots:
                    self.memory.quads[slot] = 0
                    continue
                child = (entry & ADDRESS_MASK) >> PAGE_SHIFT
                if counts[child] > 1:
                    counts[child] -= 1
                else:
                    deferred.append(child)
        self._become_unused(mfn)

    def _present(self, mfn: int) -> list[tuple[int, int]]:
        """(index in quads, entry) of what is present in a table, and takes that from the budget."""
        start = mfn << PAGE_SHIFT
        octets = self.memory.octets[start : start + 4096].tobytes()
        if octets == _NO_TABLE:
            self.budget -= 8
            return []
        slot = mfn << 9
        found = [(index, entry) for index, entry in enumerate(_table.unpack(octets), slot) if entry & 1]
        self.budget -= 64 + len(found)
        return found

    # Tables of level 1

    def _promote_l1(self, mfn: int) -> None:
        """Validate all entries; none is changed before the last one is known to be good."""
        present = self._present(mfn)
        self._take_all(present)
        written, quads = self.frames.written, self.memory.quads
        for slot, entry in present:
            if not entry & USER:
                quads[slot] = entry | (GUEST_KERNEL | USER)
            elif not entry & (GUEST_KERNEL | GLOBAL):
                quads[slot] = entry | GLOBAL
            if not entry & NX and written[(entry & ADDRESS_MASK) >> PAGE_SHIFT]:
                self.will_execute((entry & ADDRESS_MASK) >> PAGE_SHIFT)

    def _take_all(self, present: list[tuple[int, int]]) -> None:
        """`take_data` for all of a table's entries, or for none. BadEntry."""
        frames = self.frames
        uses, counts, readers, types = frames.uses, frames.counts, frames.readers, frames.types
        disallowed = L1_DISALLOWED & ~GNTTAB if self.restoring else L1_DISALLOWED
        writable = TypeOfFrame.WRITABLE
        item = (0, 0)
        try:
            for item in present:
                entry = item[1]
                if entry & disallowed:
                    raise BadEntry(1, entry, f"flags {entry & disallowed:#x}")
                data = (entry & ADDRESS_MASK) >> PAGE_SHIFT
                use = uses[data] if data < MFN_END else 0
                if entry & RW and use == OWN_WRITABLE:
                    counts[data] += 1
                elif entry & RW and use == OWN_UNUSED:
                    uses[data] = OWN_WRITABLE
                    types[data] = writable
                    counts[data] = 1
                elif not entry & RW and FIRST_MAPPABLE <= use < END_MAPPABLE:
                    readers[data] += 1
                else:
                    self._take_unusual(data, use, entry)
        except XenError:
            for _, entry in present[: present.index(item)]:
                self.drop_data(entry)
            raise

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
        self._forget_code(mfn)

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
