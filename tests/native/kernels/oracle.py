"""The rule of paravirtualized paging, checked from the outside: every page table that the processor could walk is
walked, and what it finds must be allowed. Knows nothing of types and counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.pv.frames import Kind
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain

PRESENT: Final = 1
WRITABLE: Final = 2
LARGE: Final = 0x80
MFN_BITS: Final = 0x000F_FFFF_FFFF_F000


def broken_rules(domain: PvDomain) -> list[str]:
    """What is wrong, in words."""
    return _Walk(domain).found()


class _Walk:
    def __init__(self, domain: PvDomain) -> None:
        self._domain = domain
        self._found: list[str] = []
        self._tables: dict[int, int] = {}
        self._writable: set[int] = set()

    def found(self) -> list[str]:
        domain = self._domain
        for vcpu in domain.vcpus:
            for root in (vcpu.kernel_root, vcpu.user_root):
                if root:
                    self._table(root, 4)
            for frame in (*vcpu.gdt_frames, *vcpu.ldt_frames):
                if frame:
                    self._use(frame, 0)
        for mfn in sorted(domain.frames.pinned):
            self._table(mfn, int(domain.frames.type(mfn)))
        for mfn in sorted(self._writable & self._tables.keys()):
            self._found.append(f"{mfn:#x} is writable, and a table of level {self._tables[mfn]}")
        return self._found

    def _use(self, mfn: int, level: int) -> bool:
        """Whether that was not known yet."""
        before = self._tables.get(mfn)
        if before == level:
            return False
        if before is not None:
            self._found.append(f"{mfn:#x} is a table of level {before} and of level {level}")
            return False
        self._tables[mfn] = level
        kind = self._domain.frames.kind(mfn)
        if kind is not Kind.OWN:
            self._found.append(f"{mfn:#x} is a table of level {level}, and {kind.name}")
            return False
        return True

    def _table(self, mfn: int, level: int) -> None:
        if not self._use(mfn, level):
            return
        for slot, entry in enumerate(self._domain.memory.table(mfn)):
            if (level == 4 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT) or not entry & PRESENT:
                continue
            target = (entry & MFN_BITS) >> 12
            where = f"{mfn:#x}[{slot}] of level {level}: {entry:#x}"
            if level > 1:
                if entry & LARGE:
                    self._found.append(f"{where} is large")
                else:
                    self._table(target, level - 1)
            else:
                self._page(target, bool(entry & WRITABLE), where)

    def _page(self, mfn: int, writable: bool, where: str) -> None:
        kind = self._domain.frames.kind(mfn)
        if kind is Kind.ABSENT or (writable and kind is Kind.FOREIGN_READONLY):
            self._found.append(f"{where} maps {mfn:#x}, which is {kind.name}")
        if writable:
            self._writable.add(mfn)
