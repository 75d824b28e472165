"""Types of page tables: what makes a frame a table, and what it stops being one by.

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

from hypervisor.errors import BadFrame, XenError
from hypervisor.pv.entries import (
    ACCESSED,
    ADDRESS_MASK,
    GLOBAL,
    GNTTAB,
    GUEST_KERNEL,
    L1_DISALLOWED,
    NX,
    RW,
    TABLE_DISALLOWED,
    USER,
    BadEntry,
)
from hypervisor.pv.frames import (
    END_MAPPABLE,
    FIRST_MAPPABLE,
    OWN_UNUSED,
    OWN_WRITABLE,
    TYPE_MASK,
    Kind,
    LocalFrames,
    TypeOfFrame,
)
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT, MFN_END, PAGE_SHIFT
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.pv.references import References

ENTRIES: Final = 512
BUDGET: Final = 16 * ENTRIES
"""entries that a hypercall may look at before it is to be made again: some milliseconds"""
UNBOUNDED: Final = 1 << 62

_table = Codec("<512Q")
_NO_TABLE: Final = bytes(4096)


class Preempted(Exception):
    """The budget is used up: make the hypercall again. Nothing has changed but what is referred to by `held`."""


class Validation(References):
    """References to page tables, too.

    xen_entries: the L4 entries of slots 256 to 271.
    """

    __slots__ = ("_kept", "_progress", "budget", "deferred", "held", "xen_entries")

    def __init__(
        self,
        memory: MachineMemory,
        frames: LocalFrames,
        xen_entries: list[int],
        forget_code: Callable[[int], None],
    ) -> None:
        super().__init__(memory, frames, forget_code)
        self.xen_entries = xen_entries
        self.budget = UNBOUNDED
        self.deferred: list[int] = []
        self.held: dict[int, tuple[int, list[int]]] = {}
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
