"""Machine frame numbers that name nothing yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.pv.layout import FOREIGN_END, FOREIGN_FIRST, RAM_FIRST

if TYPE_CHECKING:
    from hypervisor.pv.frames import LocalFrames


def vacant_ram(frames: LocalFrames, count: int, order: int) -> list[int]:
    """First frames of up to `count` extents of 2**order frames each, aligned to their size, where RAM can be."""
    return _vacant(frames, RAM_FIRST, frames.ram_end, count, 1 << order)


def vacant_foreign(frames: LocalFrames) -> int | None:
    """A number of the window for others' frames; None when it is full."""
    return next(iter(_vacant(frames, FOREIGN_FIRST, FOREIGN_END, 1, 1)), None)


def _vacant(frames: LocalFrames, first: int, end: int, count: int, size: int) -> list[int]:
    uses, free = frames.uses, bytes(size)
    found: list[int] = []
    at = first
    while len(found) < count:
        at = uses.find(free, at, end)
        if at < 0:
            break
        if at % size:
            at += size - at % size
            continue
        found.append(at)
        at += size
    return found
