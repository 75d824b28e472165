"""Of a process's address space: what has changed, and what stands there when it is told.

The core's journal says where the physmap changes; here it is noted as ranges of guest frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ctypes import addressof, c_char
from functools import partial
from typing import TYPE_CHECKING

from hypervisor.extent import PAGE_SIZE
from hypervisor.vcpu.process.wire import Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.extent import Extent
    from hypervisor.guest_memory import MappedPage
    from hypervisor.physmap_changes import Change as PhysmapChange
    from hypervisor.vcpu.process.changes import Packet

Range = tuple[int, int]
"""guest frames: the first, and the one after the last"""


class MemoryChanges:
    """The journal of one domain's physmap. noted: ranges that have changed. due: those of the answer that is
    being sent. on_first: called when something is noted.
    """

    def __init__(self, domain: Domain, on_first: Callable[[], None]) -> None:
        self.noted: dict[Range, None] = {}
        self.due: dict[Range, None] = {}
        self._domain = domain
        self._memory = domain.memory
        self._frames = domain.machine.frames
        self._on_first = on_first
        self._extents: dict[Extent, int] = {}
        self._next_number = 0
        self._info_frame: int | None = None
        """where it was told that vcpu_info lies, if not in shared_info"""
        self._introduced = False
        """whether it was told where its shared_info lies"""
        for run in self._memory.runs():
            self.noted[run.gpfn, run.gpfn + run.count] = None
        for gpfn, _ in self._memory.mappings():
            self.noted[gpfn, gpfn + 1] = None
        self._memory.journal = self

    def append(self, change: PhysmapChange) -> None:
        """The core changes something."""
        count = getattr(change, "count", 1)
        self._note(change.gpfn, change.gpfn + count)

    def moved(self, pfns: Iterable[int]) -> None:
        """These pages, the domain's own, lie elsewhere from now on."""
        for pfn in pfns:
            self._note(pfn, pfn + 1)

    def _note(self, gpfn: int, end: int) -> None:
        is_first = not self.noted
        self.noted[gpfn, end] = None
        if is_first:
            self._on_first()

    def close(self) -> None:
        """Follow no more, and keep nothing of what is about to go."""
        self._memory.journal = None
        self._extents.clear()

    # For an answer

    def begin(self) -> None:
        """Send what has been noted."""
        self.due |= self.noted
        self.noted.clear()

    def fill(self, packet: Packet) -> None:
        """Add what fits."""
        if not self._introduced:
            self._introduce(packet)
        if not self.due:
            self._tell_vcpu_info(packet)
            return
        while self.due and packet.has_room:
            gpfn, end = at, _ = next(iter(self.due))
            while at < end and packet.has_room:
                at = self._tell(packet, at, end)
            del self.due[gpfn, end]
            packet.undo.append(partial(self.due.__setitem__, (gpfn, end), None))
            if at < end:
                self.due[at, end] = None
        if not self.due:
            self._drop_extents(packet)
            self._tell_vcpu_info(packet)

    def _introduce(self, packet: Packet) -> None:
        self._introduced = True
        packet.undo.append(partial(setattr, self, "_introduced", False))
        number, offset = self._place(packet, self._domain.shared_info_mfn)
        packet.add(Change(ChangeKind.SHARED_INFO, number=number, offset=offset))

    def _tell(self, packet: Packet, gpfn: int, end: int) -> int:
        """What stands at `gpfn`, and as far as it is the same, up to where that is."""
        page = self._memory.mapped(gpfn)
        if page is not None:
            self._tell_page(packet, gpfn, page)
            return gpfn + 1
        mfn = self._memory.mfn(gpfn)
        end = self._memory.uniform_until(gpfn, end)
        if mfn is None:
            packet.add(Change(ChangeKind.UNMAP, gpfn, end - gpfn))
            return end
        return gpfn + self._tell_own(packet, gpfn, mfn, end - gpfn)

    def _tell_page(self, packet: Packet, gpfn: int, page: MappedPage) -> None:
        if self._frames.owner(page.mfn) == self._domain.domid:
            self._tell_own(packet, gpfn, page.mfn, 1)
            return
        extent = self._frames.extent_at(page.mfn)
        shared = extent.shared.get(page.mfn - extent.mfn)
        if shared is None:  # mapped before this was a process
            packet.add(Change(ChangeKind.UNMAP, gpfn, 1))
        else:
            packet.add(Change(ChangeKind.MAP_PAGE, gpfn, int(page.writable), fds=(shared.fd,)))

    def _tell_own(self, packet: Packet, gpfn: int, mfn: int, count: int) -> int:
        """One page that has moved, or those before the first that has; how many."""
        extent = self._frames.extent_at(mfn)
        offset = mfn - extent.mfn
        if extent.shared:
            shared = extent.shared.get(offset)
            if shared is not None:
                packet.add(Change(ChangeKind.MOVE_PAGE, gpfn, fds=(shared.fd,)))
                return 1
            ahead = range(offset + 1, offset + count)
            count = next((at for at in ahead if at in extent.shared), offset + count) - offset
        number, offset = self._place(packet, mfn)
        packet.add(Change(ChangeKind.MAP_RAM, gpfn, count, number, offset))
        return count

    def _place(self, packet: Packet, mfn: int) -> Range:
        """Number of the extent of an own frame, which is told if it is new, and the page in it."""
        extent = self._frames.extent_at(mfn)
        number = self._extents.get(extent)
        if number is None:
            number = self._extents[extent] = self._next_number
            self._next_number += 1
            packet.undo.append(partial(self._extents.__delitem__, extent))
            packet.add(Change(ChangeKind.EXTENT, number=number, fds=(extent.fd,)))
        return number, mfn - extent.mfn

    def _tell_vcpu_info(self, packet: Packet) -> None:
        """The guest has moved it (VCPUOP_register_vcpu_info), by whatever kind of hypercall."""
        vcpu = self._domain.vcpus[0]
        frame = vcpu.info_frame
        if frame is None or frame == self._info_frame:
            return
        offset = addressof(c_char.from_buffer(vcpu.info)) & (PAGE_SIZE - 1)
        for run in self._memory.runs():
            if run.mfn <= frame < run.mfn + run.count:
                packet.add(Change(ChangeKind.VCPU_INFO, run.gpfn + frame - run.mfn, offset=offset))
                packet.undo.append(partial(setattr, self, "_info_frame", self._info_frame))
                self._info_frame = frame

    def _drop_extents(self, packet: Packet) -> None:
        """Those that are gone, so that neither side keeps more and more of them."""
        current = self._domain.reservation.extents
        if len(self._extents) <= len(current) and all(extent in current for extent in self._extents):
            return
        for extent, number in [known for known in self._extents.items() if known[0] not in current]:
            if not packet.has_room:
                return
            del self._extents[extent]
            packet.undo.append(partial(self._extents.__setitem__, extent, number))
            packet.add(Change(ChangeKind.DROP_EXTENT, number=number))
