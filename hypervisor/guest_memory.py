"""The memory of an auto-translated guest: its physmap, and the accesses that the hypervisor makes by it.

RAM is kept as runs of consecutive frames (one run for a guest that was built in one piece); pages that
are not the guest's own RAM (grants, foreign mappings, shared_info, grant frames) singly. Guest handles
are guest-physical addresses, of which nothing is believed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple, Protocol

from hypervisor.errors import BadGpfn, GuestFault, XenError
from hypervisor.extent import PAGE_SHIFT, PAGE_SIZE
from hypervisor.frames import FrameTable
from hypervisor.guest_access import GuestAccess, S
from hypervisor.physmap_changes import Journal, MapPage, MapRam, Unmap
from hypervisor.pv.ledger import Ledger

GPFN_LIMIT: Final = 1 << 32  # 44-bit guest-physical addresses
PAGE_MASK: Final = PAGE_SIZE - 1


class PageKind(Enum):
    """What a guest frame that is not ordinary RAM shows."""

    GRANT = "grant"  # put there and taken away by grant operations alone
    FOREIGN = "foreign"  # XENMAPSPACE_gmfn_foreign
    SPECIAL = "special"  # the domain's own shared_info or a grant frame
    PRIVATE = "private"  # of a native domain's process; its guest can neither map it nor grant it


class RamRun:
    """`count` guest frames from `gpfn` on consecutive machine frames from `mfn`, in one view: as bytes, and as
    u64s. `limit`: the guest frame behind them.
    """

    __slots__ = ("count", "end", "gpfn", "limit", "mfn", "quads", "start", "view")

    def __init__(self, gpfn: int, mfn: int, count: int, view: memoryview) -> None:
        self.gpfn = gpfn
        self.mfn = mfn
        self.count = count
        self.view = view
        self.quads = view.cast("Q")
        self.limit = gpfn + count
        self.start = gpfn << PAGE_SHIFT
        self.end = (gpfn + count) << PAGE_SHIFT


class Held(NamedTuple):
    """A native domain's frame on which a ledger holds its process."""

    ledger: Ledger
    mfn: int


class MappedPage:
    """One page that is not ordinary RAM. The physmap holds a reference to its frame, writable or not,
    while it is mapped, and so long `held` is kept from becoming a page table.
    """

    __slots__ = ("held", "kind", "mfn", "view", "writable")

    def __init__(
        self, mfn: int, view: memoryview, kind: PageKind, held: Held | None, *, writable: bool
    ) -> None:
        self.mfn = mfn
        self.held = held
        self.kind = kind
        self.writable = writable
        self.view = view if writable else view.toreadonly()


class Importer(Protocol):
    """Who has a say when this domain maps frames of others, as a process needs a descriptor for each."""

    def __call__(self, mfn: int, writable: bool) -> None:
        """`mfn` is about to be mapped once more. BadFrame, OutOfMemory: it will not be."""

    def unmapped(self, mfn: int) -> None:
        """One mapping of `mfn` is about to go."""


_NO_RUN = RamRun(1, 0, -1, memoryview(b""))  # ends before it starts: no access is within


class GuestMemory(GuestAccess):
    """The physmap of domain `domid`. `version` changes whenever a page leaves it, so that a view taken
    before may be stale.

    `journal`, if somebody follows the physmap, gets every change in order.
    `importer` is asked about each frame to be mapped but the domain's special ones; set it before the first.
    """

    version = 0

    def __init__(self, frames: FrameTable, domid: int) -> None:
        self.domid = domid
        self.journal: Journal | None = None
        self.importer: Importer | None = None
        self._frames = frames
        self._starts: list[int] = []  # first gpfn of each run, sorted
        self._runs: list[RamRun] = []
        self._pages: dict[int, MappedPage] = {}
        self._special: dict[int, int] = {}  # special frame -> gpfn
        self._recent = _NO_RUN  # the run that the last access hit

    # Access

    def read(self, address: int, size: int) -> bytes:
        run = self._recent
        if run.start <= address and address + size <= run.end:
            offset = address - run.start
            return bytes(run.view[offset : offset + size])
        return b"".join(self._pieces(address, size, writable=False))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        run = self._recent
        size = len(data)
        if run.start <= address and address + size <= run.end:
            offset = address - run.start
            run.view[offset : offset + size] = data
            return
        done = 0
        for piece in self._pieces(address, size, writable=True):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)

    def check_writable(self, address: int, size: int) -> None:
        run = self._recent
        if not (run.start <= address and address + size <= run.end):
            self._pieces(address, size, writable=True)

    def contiguous(self, address: int, size: int) -> memoryview:
        run = self._recent
        if run.start <= address < run.end:
            offset = address - run.start
            return run.view[offset : offset + size]
        view, offset = self._locate(address, writable=True)
        if view is None:
            raise GuestFault(self.domid, address, size)
        return view[offset : offset + size]

    def read_struct(self, cls: type[S], address: int) -> S:
        run = self._recent
        if run.start <= address and address + cls.size <= run.end:
            return cls.unpack(run.view, address - run.start)
        return cls.unpack(self.read(address, cls.size))

    def _pieces(self, address: int, size: int, *, writable: bool) -> list[memoryview]:
        """The bytes as views, one for each run or page that they lie in; all of them are looked up before
        any is used.
        """
        pieces = []
        at, left = address, size
        while left > 0:
            view, offset = self._locate(at, writable=writable)
            if view is None:
                raise GuestFault(self.domid, address, size)
            piece = view[offset : offset + left]
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
        return pieces

    def _locate(self, address: int, *, writable: bool) -> tuple[memoryview | None, int]:
        gpfn = address >> PAGE_SHIFT
        page = self._pages.get(gpfn)
        if page is not None:
            return (page.view if page.writable or not writable else None), address & PAGE_MASK
        run = self._run_at(gpfn)
        if run is None:
            return None, 0
        self._recent = run
        return run.view, address - run.start

    def _run_at(self, gpfn: int) -> RamRun | None:
        index = bisect_right(self._starts, gpfn) - 1
        if index >= 0:
            run = self._runs[index]
            if gpfn < run.gpfn + run.count:
                return run
        return None

    # Pages

    def page(self, gpfn: int) -> memoryview:
        """The 4096 bytes of a guest frame, read-only if it is so mapped. BadGpfn if nothing is there."""
        page = self._pages.get(gpfn)
        if page is not None:
            return page.view
        return self.span(gpfn, 1)

    def ram_page(self, gpfn: int) -> memoryview | None:
        """The 4096 bytes of a guest frame if it is ordinary RAM."""
        run = self._recent
        start = gpfn << PAGE_SHIFT
        if not run.start <= start < run.end:
            found = self._run_at(gpfn)
            if found is None:
                return None
            self._recent = run = found
        offset = start - run.start
        return run.view[offset : offset + PAGE_SIZE]

    def quad(self, gpfn: int, index: int) -> int:
        """The u64 `index` of a guest frame that is ordinary RAM, fetched once; 0 of any other."""
        run = self._recent
        if not run.gpfn <= gpfn < run.limit:
            found = self._run_at(gpfn)
            if found is None:
                return 0
            self._recent = run = found
        return run.quads[(gpfn - run.gpfn) << 9 | index]

    def span(self, gpfn: int, count: int) -> memoryview:
        """`count` guest frames as one view. BadGpfn if they are not RAM on consecutive machine frames."""
        run = self._run_at(gpfn)
        if count == 1 and gpfn in self._pages:
            return self._pages[gpfn].view
        if run is None or not 0 < count <= run.gpfn + run.count - gpfn:
            raise BadGpfn(self.domid, gpfn, f"no {count} frames in one piece")
        offset = (gpfn - run.gpfn) << PAGE_SHIFT
        return run.view[offset : offset + count * PAGE_SIZE]

    def mfn(self, gpfn: int) -> int | None:
        """The machine frame behind `gpfn`, whoever owns it."""
        page = self._pages.get(gpfn)
        if page is not None:
            return page.mfn
        run = self._run_at(gpfn)
        return None if run is None else run.mfn + gpfn - run.gpfn

    def mapped(self, gpfn: int) -> MappedPage | None:
        """The page at `gpfn` if it is not ordinary RAM."""
        return self._pages.get(gpfn)

    def uniform_until(self, gpfn: int, end: int) -> int:
        """Where that ends which begins at `gpfn`: a page that is no RAM, frames of one run of RAM, or nothing;
        at `end` at the latest.
        """
        if gpfn in self._pages:
            return gpfn + 1
        index = bisect_right(self._starts, gpfn) - 1
        if index >= 0 and gpfn < self._runs[index].gpfn + self._runs[index].count:
            return min(end, self._runs[index].gpfn + self._runs[index].count)
        if index + 1 < len(self._starts):
            end = min(end, self._starts[index + 1])
        if end - gpfn == 1:
            return end
        return min((page for page in self._pages if gpfn < page < end), default=end)

    def runs(self) -> Iterator[RamRun]:
        """The guest's RAM, by gpfn."""
        return iter(self._runs)

    def mappings(self) -> Iterator[tuple[int, MappedPage]]:
        """All pages that are not ordinary RAM."""
        return iter(self._pages.items())

    @property
    def max_gpfn(self) -> int:
        """The highest guest frame in use; 0 when there is none."""
        ram = self._runs[-1].gpfn + self._runs[-1].count - 1 if self._runs else 0
        return max(ram, max(self._pages, default=0))

    # Changes

    def add_ram(self, gpfn: int, mfn: int, count: int) -> None:
        """Map `count` of the domain's own frames. BadGpfn, and nothing mapped, if a guest frame is out of
        range or in use.
        """
        self.check_vacant(gpfn, count)
        if self.journal is not None:
            self.journal.append(MapRam(gpfn, mfn, count))
        index = bisect_right(self._starts, gpfn)
        before = self._runs[index - 1] if index else None
        if before and before.gpfn + before.count == gpfn and before.mfn + before.count == mfn:
            extent = self._frames.extent_at(mfn)
            if extent.mfn <= before.mfn:
                self._put_run(index - 1, index, [(before.gpfn, before.mfn, before.count + count)])
                return
        self._put_run(index, index, [(gpfn, mfn, count)])

    def remove_ram(self, gpfn: int, limit: int) -> tuple[int, int]:
        """Unmap ordinary RAM from `gpfn` on, at most `limit` pages and no further than frames are
        consecutive: (first MFN, how many). BadGpfn if there is none at `gpfn`.
        """
        run = self._run_at(gpfn)
        if run is None:
            raise BadGpfn(self.domid, gpfn, "no RAM there")
        before = gpfn - run.gpfn
        count = min(limit, run.count - before)
        after = run.count - before - count
        parts = [(run.gpfn, run.mfn, before), (gpfn + count, run.mfn + before + count, after)]
        index = bisect_right(self._starts, gpfn) - 1
        self._put_run(index, index + 1, [part for part in parts if part[2]])
        self.version += 1
        if self.journal is not None:
            self.journal.append(Unmap(gpfn, count))
        return run.mfn + before, count

    def _put_run(self, first: int, last: int, parts: list[tuple[int, int, int]]) -> None:
        runs = [RamRun(gpfn, mfn, count, self._frames.span(mfn, count)) for gpfn, mfn, count in parts]
        self._runs[first:last] = runs
        self._starts[first:last] = [run.gpfn for run in runs]
        self._recent = runs[-1] if runs else _NO_RUN

    def check_vacant(self, gpfn: int, count: int) -> None:
        """BadGpfn unless `count` guest frames from `gpfn` exist and nothing is mapped at any of them."""
        if not 0 <= gpfn <= GPFN_LIMIT - count:
            raise BadGpfn(self.domid, gpfn, "outside the guest-physical address space")
        end = gpfn + count
        index = bisect_right(self._starts, end - 1) - 1
        taken = index >= 0 and self._runs[index].gpfn + self._runs[index].count > gpfn
        if not taken and self._pages:
            if count <= len(self._pages):
                taken = any(frame in self._pages for frame in range(gpfn, end))
            else:
                taken = any(gpfn <= frame < end for frame in self._pages)
        if taken:
            raise BadGpfn(self.domid, gpfn, f"{count} frames from there are not vacant")

    def map_foreign(
        self,
        gpfn: int,
        mfn: int,
        writable: bool,
        kind: PageKind = PageKind.GRANT,
        held: Held | None = None,
    ) -> None:
        """Map a frame, of whatever owner, at a vacant guest frame, and take a reference to it. `held` is
        released when it is unmapped. BadGpfn, BadFrame, OutOfMemory (the importer's); then nothing has changed.
        """
        self.check_vacant(gpfn, 1)
        self._frames.acquire(mfn, self._frames.owner(mfn), writable=writable)
        if self.importer is not None and kind is not PageKind.SPECIAL:
            try:
                self.importer(mfn, writable)
            except XenError:
                self._frames.release(mfn, writable=writable)
                raise
        if self.journal is not None:
            self.journal.append(MapPage(gpfn, mfn, writable, kind))
        self._pages[gpfn] = MappedPage(mfn, self._frames.view(mfn), kind, held, writable=writable)
        if kind is PageKind.SPECIAL:
            self._special[mfn] = gpfn

    def unmap_foreign(self, gpfn: int) -> int:
        """Undo map_foreign: unmap, drop the reference, return the machine frame. BadGpfn if nothing is
        mapped there.
        """
        page = self._pages.get(gpfn)
        if page is None:
            raise BadGpfn(self.domid, gpfn, "no mapping there")
        if page.kind is PageKind.SPECIAL:
            del self._special[page.mfn]
        elif self.importer is not None:
            self.importer.unmapped(page.mfn)
        del self._pages[gpfn]
        self.version += 1
        if self.journal is not None:
            self.journal.append(Unmap(gpfn, 1))
        self._frames.release(page.mfn, writable=page.writable)
        if page.held is not None:
            page.held.ledger.release(page.held.mfn)
        return page.mfn

    def special_gpfn(self, mfn: int) -> int | None:
        """Where a special frame (shared_info, a grant frame) is mapped; it can be in one place only."""
        return self._special.get(mfn)

    # Teardown

    def relinquish(self, budget: int) -> bool:
        """Unmap all RAM, whose frames are the reservation's to give up, and at most `budget` other pages;
        True when nothing is mapped any more.
        """
        if self._runs:
            if self.journal is not None:
                for run in self._runs:
                    self.journal.append(Unmap(run.gpfn, run.count))
            self._starts.clear()
            self._runs.clear()
            self._recent = _NO_RUN
            self.version += 1
        while self._pages and budget > 0:
            self.unmap_foreign(next(iter(self._pages)))
            budget -= 1
        return not self._pages
