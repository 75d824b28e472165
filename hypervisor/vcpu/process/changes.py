"""What a domain's process has not been told yet of its address space and its bells.

The core writes the domain's physmap down in a journal; what stands there is looked up when it is sent, since by
then a page may be gone again. Descriptors that are told belong to this queue until they are sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from hypervisor.errors import BadFrame
from hypervisor.physmap_changes import MapPage, MapRam, Unmap
from hypervisor.vcpu.process.wire import ANY_BELL, Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.extent import Extent
    from hypervisor.physmap_changes import Change as PhysmapChange
    from hypervisor.shared_page import SharedPage


MANY: Final = 256
_BEGUN_BY: Final = {ChangeKind.DEAF: ChangeKind.LISTEN, ChangeKind.SILENCE: ChangeKind.RING}


class Journal(list["PhysmapChange"]):
    """The core appends; `on_first` is called when it was empty."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        super().__init__()
        self._on_first = on_first

    def append(self, change: PhysmapChange) -> None:
        super().append(change)
        if len(self) == 1:
            self._on_first()


class Changes:
    """The queue of one process, from its start on. `wanted` is called when something is told that was not
    asked for by the process itself.
    """

    def __init__(self, domain: Domain, wanted: Callable[[], None]) -> None:
        self._domain = domain
        self._memory = domain.memory
        self._frames = domain.machine.frames
        self._wanted = wanted
        self._extents: dict[Extent, int] = {}
        self._told: list[Change] = []
        self._journal = Journal(wanted)
        self._begin()

    def _begin(self) -> None:
        """Tell everything as it is, and follow from then on."""
        memory = self._memory
        for run in memory.runs():
            self._journal.append(MapRam(run.gpfn, run.mfn, run.count))
        for gpfn, page in memory.mappings():
            self._journal.append(MapPage(gpfn, page.mfn, page.writable, page.kind))
        memory.journal = self._journal
        number, offset, extents = self._own(self._domain.shared_info_mfn)
        self._told += [*extents, Change(ChangeKind.SHARED_INFO, number=number, offset=offset)]

    def __bool__(self) -> bool:
        return bool(self._told or self._journal)

    def tell(self, change: Change) -> None:
        """Queue a change of a bell; its descriptors are duplicated. What was queued and ends by this is
        forgotten with it, so that channels that come and go do not pile up here. OSError: no descriptors left.
        """
        begun = _BEGUN_BY.get(change.kind)
        if begun is not None and self._forget(begun, change.gpfn, change.number):
            return
        queued = change._replace(fds=_duplicates(change.fds))
        self._told.append(queued)
        if len(self._told) == 1:
            self._wanted()

    def _forget(self, kind: ChangeKind, port: int, number: int) -> bool:
        """Take a queued LISTEN or RING back. Its descriptors go to the next one of the same bell."""
        for index, change in enumerate(self._told):
            if change.kind is kind and change.gpfn == port and number in (change.number, ANY_BELL):
                del self._told[index]
                break
        else:
            return False
        for at, other in enumerate(self._told):
            if other.kind is kind and other.number == change.number and change.fds:
                self._told[at] = other._replace(pages=change.pages, fds=change.fds)
                return True
        forget([change])
        return True

    def moved_out(self, pages: Mapping[int, SharedPage]) -> None:
        """Own pages, by PFN, that lie on memfds of their own from now on."""
        self._told += [Change(ChangeKind.MOVE_PAGE, pfn, fds=(page.fd,)) for pfn, page in pages.items()]

    def back_in_extent(self, pfns: Sequence[int]) -> None:
        """Own pages that lie in their extents again."""
        for pfn in pfns:
            mfn = self._memory.mfn(pfn)
            assert mfn is not None
            number, offset, extents = self._own(mfn)
            self._told += [*extents, Change(ChangeKind.MAP_RAM, pfn, 1, number, offset)]

    @property
    def are_many(self) -> bool:
        """Whether it is time to send what there is, so that nobody makes this process remember more and more."""
        return len(self._journal) > MANY

    def take(self) -> list[Change]:
        """All of it, to be sent at once. Descriptors of what was told are to be closed then: `sent`."""
        if not self:
            return _NOTHING
        journal = list(self._journal)
        self._journal.clear()
        told, self._told = self._told, []
        return told + [change for noted in journal for change in self._resolved(noted)]

    def close(self) -> None:
        """Nobody is told anything any more."""
        self._memory.journal = None
        forget(self._told)
        self._told = []

    def _resolved(self, noted: PhysmapChange) -> Iterator[Change]:
        if isinstance(noted, Unmap):
            yield Change(ChangeKind.UNMAP, noted.gpfn, noted.count)
        elif isinstance(noted, MapRam):
            yield from self._ram(noted.gpfn, noted.mfn, noted.count)
        else:
            page = self._memory.mapped(noted.gpfn)
            if page is not None and page.mfn == noted.mfn:
                yield from self._page(noted.gpfn, noted.mfn, writable=noted.writable)

    def _ram(self, gpfn: int, mfn: int, count: int) -> Iterator[Change]:
        """Own frames; those that were given back meanwhile are unmapped by what follows."""
        try:
            number, offset, extents = self._own(mfn)
        except BadFrame:
            return
        yield from extents
        yield Change(ChangeKind.MAP_RAM, gpfn, count, number, offset)
        extent = self._frames.extent_at(mfn)
        for at in range(offset, offset + count) if extent.shared else ():
            shared = extent.shared.get(at)
            if shared is not None:
                yield Change(ChangeKind.MOVE_PAGE, gpfn + at - offset, fds=(shared.fd,))

    def _page(self, gpfn: int, mfn: int, *, writable: bool) -> Iterator[Change]:
        if self._frames.owner(mfn) == self._domain.domid:
            yield from self._ram(gpfn, mfn, 1)
            return
        extent = self._frames.extent_at(mfn)
        shared = extent.shared.get(mfn - extent.mfn)
        if shared is not None:
            yield Change(ChangeKind.MAP_PAGE, gpfn, int(writable), fds=(shared.fd,))

    def _own(self, mfn: int) -> tuple[int, int, list[Change]]:
        """Number of the extent and page in it of an own frame, and the extent itself if it is new."""
        extent = self._frames.extent_at(mfn)
        number = self._extents.get(extent)
        if number is not None:
            return number, mfn - extent.mfn, []
        number = self._extents[extent] = len(self._extents)
        return number, mfn - extent.mfn, [Change(ChangeKind.EXTENT, number=number, fds=(extent.fd,))]


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 - those made so far are closed if one fails
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return tuple(made)


def forget(changes: list[Change]) -> None:
    """Close the descriptors of changes that were told, once they are sent or will never be."""
    for change in changes:
        if change.kind in (ChangeKind.LISTEN, ChangeKind.RING):
            for fd in change.fds:
                os.close(fd)


_NOTHING: list[Change] = []
