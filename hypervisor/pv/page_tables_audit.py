"""The recount: every type and count of a domain's frames again, from what they are counts of.

It trusts pins, roots, descriptor tables and what is half done, and walks every page table from there. What must never
be, whatever was counted: a frame that is writable and a table, a mapping of what the domain neither has nor was
granted, an entry of the hypervisor's slots that is not its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from hypervisor.pv.entries import ADDRESS_MASK, GNTTAB, L1_DISALLOWED, PRESENT, RW, TABLE_DISALLOWED, USER
from hypervisor.pv.frames import KIND_SHIFT, TYPE_MASK, Kind, TypeOfFrame
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT, MFN_END, PAGE_SHIFT

if TYPE_CHECKING:
    from hypervisor.pv.frames import LocalFrames
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu


_ORDINARY: Final = L1_DISALLOWED | USER
"""bits of an L1 entry of which USER alone is set"""


def audit(validation: Validation, vcpus: Sequence[PvVcpu]) -> list[str]:
    """What does not agree, in words; empty when all is well."""
    recount = _Recount(validation)
    frames = validation.frames
    for mfn in frames.pinned:
        recount.refer(mfn, frames.type(mfn), "pinned")
    for mfn in validation.deferred:
        recount.refer(mfn, frames.type(mfn), "to be demoted")
    for _, held in validation.held.values():
        for mfn in held:
            recount.refer(mfn, frames.type(mfn), "held")
    for vcpu in vcpus:
        for root in (vcpu.kernel_root, vcpu.user_root):
            if root:
                recount.refer(root, TypeOfFrame.L4, f"root of vcpu {vcpu.id}")
        for mfn in (*vcpu.gdt_frames, *vcpu.ldt_frames):
            if mfn:
                recount.refer(mfn, TypeOfFrame.SEGDESC, f"descriptor table of vcpu {vcpu.id}")
        if vcpu.info_mfn:
            recount.refer(vcpu.info_mfn, TypeOfFrame.WRITABLE, f"vcpu_info of vcpu {vcpu.id}")
    recount.walk()
    return [*recount.found, *_differences(frames, recount)]


class _Entry(NamedTuple):
    """Of a page table: for messages."""

    level: TypeOfFrame
    table: int
    slot: int
    value: int

    def __str__(self) -> str:
        return f"slot {self.slot} of {self.level.name} {self.table:#x} is {self.value:#x}"


class _Recount:
    def __init__(self, validation: Validation) -> None:
        self._memory = validation.memory
        self._frames = validation.frames
        self._xen_entries = validation.xen_entries
        self._to_walk: list[int] = []
        self.found: list[str] = []
        self.types: dict[int, TypeOfFrame] = {}
        self.counts: Counter[int] = Counter()
        self.readers: Counter[int] = Counter()

    def refer(self, mfn: int, to_type: TypeOfFrame, why: str | _Entry) -> None:
        """Something refers to a frame as a type."""
        seen = self.types.setdefault(mfn, to_type)
        if seen != to_type:
            self.found.append(f"mfn {mfn:#x} is {seen.name}, and {to_type.name} ({why})")
        elif not self.counts[mfn] and TypeOfFrame.L1 <= to_type <= TypeOfFrame.L4:
            self._to_walk.append(mfn)
        self.counts[mfn] += 1
        kind = self._frames.kind(mfn)
        if kind is not Kind.OWN and not (kind is Kind.XEN and to_type is TypeOfFrame.WRITABLE):
            self.found.append(f"mfn {mfn:#x} is {kind.name}, and {to_type.name} ({why})")

    def walk(self) -> None:
        """Look at the entries of every table."""
        while self._to_walk:
            table = self._to_walk.pop()
            level = self.types[table]
            if level is TypeOfFrame.L1:
                self._walk_l1(table)
                continue
            for slot, value in enumerate(self._memory.table(table).tolist()):
                if level is TypeOfFrame.L4 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT:
                    self._check_xen(_Entry(level, table, slot, value))
                elif value & PRESENT:
                    self._child(_Entry(level, table, slot, value))

    def _walk_l1(self, table: int) -> None:
        """Nearly all entries are ordinary: they map RAM of the domain's own, and need no words."""
        types, counts, readers, uses = self.types, self.counts, self.readers, self._frames.uses
        for slot, value in enumerate(self._memory.table(table).tolist()):
            if value & PRESENT:
                mfn = (value & ADDRESS_MASK) >> PAGE_SHIFT
                own = value & _ORDINARY == USER and mfn < MFN_END and uses[mfn] >> KIND_SHIFT == Kind.OWN
                if own and not value & RW:
                    readers[mfn] = readers.get(mfn, 0) + 1
                elif own and types.setdefault(mfn, TypeOfFrame.WRITABLE) is TypeOfFrame.WRITABLE:
                    counts[mfn] = counts.get(mfn, 0) + 1
                else:
                    self._data(_Entry(TypeOfFrame.L1, table, slot, value))

    def _check_xen(self, entry: _Entry) -> None:
        own = self._xen_entries[entry.slot - FIRST_XEN_SLOT]
        if entry.value & ~0x60 != own & ~0x60 and not (entry.slot == FIRST_XEN_SLOT and not entry.value):
            self.found.append(f"{entry}: the hypervisor's is {own:#x}")

    def _child(self, entry: _Entry) -> None:
        if entry.value & TABLE_DISALLOWED or not entry.value & USER:
            self.found.append(f"{entry}: flags that it must not have, or must")
        child = (entry.value & ADDRESS_MASK) >> PAGE_SHIFT
        self.refer(child, TypeOfFrame(entry.level - 1), entry)

    def _data(self, entry: _Entry) -> None:
        value = entry.value
        mfn = (value & ADDRESS_MASK) >> PAGE_SHIFT
        kind = self._frames.kind(mfn)
        if value & L1_DISALLOWED & ~GNTTAB or not value & USER:
            self.found.append(f"{entry}: flags that it must not have, or must")
        if kind is Kind.ABSENT or (kind is Kind.FOREIGN_READONLY and value & RW):
            self.found.append(f"{entry}: the frame is {kind.name}")
        if value & RW and kind in (Kind.OWN, Kind.XEN):
            self.refer(mfn, TypeOfFrame.WRITABLE, entry)
        else:
            self.readers[mfn] += 1


def _differences(frames: LocalFrames, recount: _Recount) -> Iterator[str]:
    """What is counted against what there is."""
    types, counts, readers = recount.types, recount.counts, recount.readers
    for first, count, kind in frames.runs():
        for mfn in range(first, first + count):
            of_type, ledger = frames.uses[mfn] & TYPE_MASK, frames.types[mfn]
            counted = frames.counts[mfn], frames.readers[mfn]
            if (of_type, *counted) != (types.get(mfn, 0), counts.get(mfn, 0), readers.get(mfn, 0)):
                expected = _said(types.get(mfn, TypeOfFrame.NONE), counts[mfn], readers[mfn])
                yield f"mfn {mfn:#x} ({kind.name}) is counted as {_said(frames.type(mfn), *counted)}; it is {expected}"
            if ledger != of_type:
                yield f"mfn {mfn:#x} is {frames.type(mfn).name}, and {ledger} in the ledger"
            if frames.granted[mfn] and of_type not in (TypeOfFrame.NONE, TypeOfFrame.WRITABLE):
                yield f"mfn {mfn:#x} is {frames.type(mfn).name}, and others may write to it"
    for mfn in {*recount.counts, *recount.readers}:
        if not 0 <= mfn < MFN_END or frames.kind(mfn) is Kind.ABSENT:
            yield f"mfn {mfn:#x} is referred to, and not there"


def _said(of_type: TypeOfFrame, count: int, readers: int) -> str:
    return f"{of_type.name} {count} times, {readers} without a type"
