"""A domain's memory reservation: the frames that it owns, in extents of its own, and its account of them.

Frames are handed out consecutively while an extent has unused ones, then from those that came back, then
from a new extent whose size grows with the reservation: however a guest balloons, its extents stay few
(each costs file descriptors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hypervisor.errors import OutOfMemory
from hypervisor.extent import Extent
from hypervisor.frames import ALLOCATED, FrameTable

CHUNK: Final = 512  # frames that teardown looks at together
STEPS_PER_UNTOUCHED_CHUNK: Final = (
    16  # what it costs when no peer refers to any of them: they go in one piece
)


@dataclass(frozen=True, slots=True)
class FrameRun:
    """`count` frames of consecutive MFNs in one extent."""

    mfn: int
    count: int


class Reservation:
    """`tot_pages` counts ordinary frames until they are really free, as Xen does. Special frames are
    Xen's, shared with the domain (shared_info, grant frames); they are counted apart and not limited by
    `max_pages`.
    """

    def __init__(self, frames: FrameTable, domid: int, max_pages: int, drained: Callable[[], None]) -> None:
        self.domid = domid
        self.max_pages = max_pages
        self.tot_pages = 0
        self.special_pages = 0
        self.extents: list[Extent] = []
        self._frames = frames
        self._drained = drained
        self._special: list[int] = []
        self._relinquishing = False
        self._queue: list[
            Extent
        ] = []  # extents that relinquish has still to look through, and how far it is in the last one
        self._offset = 0
        frames.accounts[domid] = self

    # Allocation

    def allocate(self, count: int, *, special: bool = False) -> list[FrameRun]:
        """`count` zeroed frames in as few runs as there are. OutOfMemory, and nothing allocated, past
        `max_pages` or when the machine is full.
        """
        if not special and self.tot_pages + count > self.max_pages:
            raise OutOfMemory(
                f"allowance of domain {self.domid}", count, max(0, self.max_pages - self.tot_pages)
            )
        if count > self._frames.free:
            raise OutOfMemory("machine memory", count, self._frames.free)
        pieces = self._fresh(count) or self._recycled(count) or self._opened(count)
        runs = []
        for extent, offset, length in pieces:
            mfn = self._frames.allocate(extent, offset, length, self.domid, special=special)
            runs.append(FrameRun(mfn, length))
        if special:
            self.special_pages += count
            self._special += [mfn for run in runs for mfn in range(run.mfn, run.mfn + run.count)]
        else:
            self.tot_pages += count
        return runs

    def _fresh(self, count: int) -> list[tuple[Extent, int, int]]:
        """Consecutive frames that were never used, if an extent has enough."""
        for extent in reversed(self.extents):
            if extent.never_used >= count:
                offset = extent.fresh
                extent.fresh += count
                return [(extent, offset, count)]
        return []

    def _recycled(self, count: int) -> list[tuple[Extent, int, int]]:
        """Frames that came back, if they are enough: a guest that balloons must not gather extents."""
        if sum(len(extent.recycled) for extent in self.extents) < count:
            return []
        pieces = []
        for extent in self.extents:
            taken = extent.recycled[-count:] if count else []
            del extent.recycled[len(extent.recycled) - len(taken) :]
            count -= len(taken)
            pieces += [(extent, offset, length) for offset, length in _consecutive(taken)]
        return pieces

    def _opened(self, count: int) -> list[tuple[Extent, int, int]]:
        extent = self._frames.open_extent(max(count, self.tot_pages // 4))
        self.extents.append(extent)
        extent.fresh = count
        return [(extent, 0, count)]

    # Giving frames back

    def cancel(self) -> None:
        """Undo everything: the domain was not made after all."""
        self._relinquishing = True
        self.give_up_special()
        self.close()

    def close(self) -> None:
        """The account is empty, and will be another domain's."""
        del self._frames.accounts[self.domid]

    def give_up(self, mfn: int, count: int = 1) -> None:
        """Drop the allocation of `count` consecutive frames; each is free once no peer refers to it."""
        if not self._frames.give_up_untouched(mfn, count):
            for frame in range(mfn, mfn + count):
                self._frames.give_up(frame)

    def frames_freed(self, extent: Extent, offset: int, count: int, *, special: bool) -> None:
        """The frame table says that nothing refers to these any more."""
        if special:
            self.special_pages -= count
        else:
            self.tot_pages -= count
        if not extent.used:
            self.extents.remove(extent)
            self._frames.close_extent(extent)
        elif not self._relinquishing:
            extent.recycled.extend(range(offset, offset + count))
        if self._relinquishing and not self.tot_pages:
            self._drained()

    def give_up_special(self) -> None:
        """Give up the special frames of a dead domain, whose grant frames nobody needs any more."""
        while self._special:
            self._frames.give_up(self._special.pop())

    def relinquish(self, budget: int) -> bool:
        """Give up ordinary frames, at most `budget` steps' worth now; True when all are given up. What
        peers refer to stays in the account until it is released; special frames stay until
        `give_up_special`.
        """
        if not self._relinquishing:
            self._relinquishing = True
            self._queue = list(self.extents)
        while self._queue and budget > 0:
            extent = self._queue[-1]
            if self._offset >= extent.fresh or not extent.used:
                self._queue.pop()
                self._offset = 0
            else:
                budget -= self._give_up_chunk(extent)
        return not self._queue

    def _give_up_chunk(self, extent: Extent) -> int:
        """Give up what is allocated among the next frames of `extent`; the steps that it took."""
        count = min(CHUNK, extent.fresh - self._offset)
        mfn = extent.mfn + self._offset
        self._offset += count
        if self._frames.give_up_untouched(mfn, count):
            return STEPS_PER_UNTOUCHED_CHUNK
        for frame in range(mfn, mfn + count):
            if self._frames.flags[frame] == ALLOCATED:
                self._frames.give_up(frame)
        return count


def _consecutive(offsets: list[int]) -> list[tuple[int, int]]:
    """Sort and join: (first, length) of each run."""
    runs: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if runs and runs[-1][0] + runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((offset, 1))
    return runs
