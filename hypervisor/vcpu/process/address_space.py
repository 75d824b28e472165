"""A domain's guest-physical address space, in the process that executes it.

16 TiB of addresses are reserved and inaccessible; page `gpfn` is at `base + gpfn * 4096` for the whole life of
the process. What the hypervisor says is there is mapped there, by descriptors that reach no further than that:
extents of the domain's own memory, and single pages that others have granted. Touching what is not there ends
the process, as a page fault without a handler ends a kernel.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Final

from hypervisor.fixed_mapping import map_nothing, map_shared, reserve
from hypervisor.vcpu.process.wire import ShareResult

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
ADDRESS_BITS: Final = 44


class PageNotPresent(LookupError):
    """The program looked at guest frames that are not there."""

    def __init__(self, pfn: int, count: int) -> None:
        super().__init__(f"no {count} pages at pfn {pfn:#x}")
        self.pfn = pfn
        self.count = count


class AddressSpace:
    """The pages that are there. RAM is kept as runs (first PFN, end), sorted; others' pages singly.

    base, view: where it begins, and all of it, for an engine that looks at nothing that is not there.
    """

    def __init__(self) -> None:
        self.base = self._base = reserve(1 << ADDRESS_BITS)
        whole = (ctypes.c_char * (1 << ADDRESS_BITS)).from_address(self._base)
        self.view = self._view = memoryview(whole).cast("B")
        self._extents: dict[int, int] = {}
        self._words = self._view.cast("I")
        self._ram: list[tuple[int, int]] = []
        self._ram_from_zero = 0
        self._foreign: dict[int, bool] = {}

    # What the program sees

    def page(self, pfn: int) -> memoryview:
        """The 4096 bytes of `pfn`, read-only where the mapping is. PageNotPresent."""
        return self.span(pfn, 1)

    def span(self, pfn: int, count: int) -> memoryview:
        """`count` pages as one view, read-only if one of them is. PageNotPresent."""
        end = pfn + count
        view = self._view[pfn << PAGE_SHIFT : end << PAGE_SHIFT]
        if any(first <= pfn and end <= last for first, last in self._ram):
            return view
        modes = [self._foreign.get(page) for page in range(pfn, end)]
        if None in modes:
            raise PageNotPresent(pfn, count)
        return view if all(modes) else view.toreadonly()

    def word(self, address: int) -> int:
        """The u32 at a guest-physical address that is a multiple of 4. PageNotPresent."""
        if not 0 <= address < self._ram_from_zero:
            self.page(address >> PAGE_SHIFT)
        word: int = self._words[address >> 2]
        return word

    def count_from_zero(self) -> int:
        """How many pages of RAM there are from PFN 0 on, without a gap."""
        return self._ram[0][1] if self._ram and self._ram[0][0] == 0 else 0

    # What the hypervisor changes

    def add_extent(self, number: int, fd: int) -> None:
        """Memory of the domain's own, to be mapped in parts."""
        self._extents[number] = fd

    def drop_extent(self, number: int) -> None:
        """Nothing of it is mapped any more."""
        os.close(self._extents.pop(number))

    def own_page(self, number: int, offset: int) -> memoryview:
        """A page of an extent outside the guest-physical address space."""
        address = reserve(PAGE_SIZE)
        map_shared(self._extents[number], offset << PAGE_SHIFT, address, PAGE_SIZE)
        return memoryview((ctypes.c_char * PAGE_SIZE).from_address(address)).cast("B")

    def map_ram(self, gpfn: int, count: int, number: int, offset: int) -> None:
        """Pages of an extent appear."""
        self._map(gpfn, count, self._extents[number], offset, writable=True)
        self._is_ram(gpfn, gpfn + count)

    def map_page(self, gpfn: int, fd: int, *, writable: bool) -> None:
        """A page of somebody's appears; the descriptor is used up."""
        self._map(gpfn, 1, fd, 0, writable=writable)
        os.close(fd)
        self._drop_run(gpfn, 1)
        self._foreign[gpfn] = writable

    def move_page(self, gpfn: int, fd: int) -> None:
        """An own page lies elsewhere; the descriptor is used up."""
        self._map(gpfn, 1, fd, 0, writable=True)
        os.close(fd)
        self._is_ram(gpfn, gpfn + 1)

    def unmap(self, gpfn: int, count: int) -> None:
        """Pages are there no more."""
        map_nothing(self._base + (gpfn << PAGE_SHIFT), count << PAGE_SHIFT)
        self._drop_foreign(gpfn, gpfn + count)
        self._drop_run(gpfn, count)

    def _map(self, gpfn: int, count: int, fd: int, offset: int, *, writable: bool) -> None:
        address = self._base + (gpfn << PAGE_SHIFT)
        map_shared(fd, offset << PAGE_SHIFT, address, count << PAGE_SHIFT, writable=writable)

    def _is_ram(self, gpfn: int, end: int) -> None:
        if any(first <= gpfn and end <= last for first, last in self._ram):
            return
        self._drop_foreign(gpfn, end)
        self._drop_run(gpfn, end - gpfn)
        self._ram = _joined([*self._ram, (gpfn, end)])
        self._ram_from_zero = self.count_from_zero() << PAGE_SHIFT

    def _drop_foreign(self, gpfn: int, end: int) -> None:
        for page in range(gpfn, end) if end - gpfn <= len(self._foreign) else list(self._foreign):
            if gpfn <= page < end:
                self._foreign.pop(page, None)

    def _drop_run(self, gpfn: int, count: int) -> None:
        end = gpfn + count
        if not any(first < end and gpfn < last for first, last in self._ram):
            return
        kept = []
        for first, last in self._ram:
            kept += [run for run in ((first, min(last, gpfn)), (max(first, end), last)) if run[0] < run[1]]
        self._ram = kept
        self._ram_from_zero = self.count_from_zero() << PAGE_SHIFT


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


class SharedPages:
    """The memory that a kernel is handed: the address space, and which pages of it lie apart because a
    process of somebody else's may map them.

    ask: makes a request (domid and read-only for SHARE with PFNs, PFN and count for RECLAIM).
    """

    def __init__(
        self,
        space: AddressSpace,
        share: Callable[[int, Sequence[int], bool], ShareResult],
        reclaim: Callable[[int, int], None],
    ) -> None:
        self.page = space.page
        self.span = space.span
        self._share = share
        self._reclaim = reclaim
        self._shared: dict[int, tuple[int, bool]] = {}
        self._in_hypervisor: set[int] = set()

    def share(self, domid: int, pfns: Sequence[int], *, readonly: bool) -> None:
        """Let `domid`, should it be a process, map these pages. To be called before they are granted."""
        if domid in self._in_hypervisor:
            return
        wanted = (domid, readonly)
        fresh = [pfn for pfn in pfns if self._shared.get(pfn) != wanted]
        if not fresh:
            return
        result = self._share(domid, fresh, readonly)
        if result is ShareResult.SHARED:
            self._shared.update(dict.fromkeys(fresh, wanted))
        elif result is ShareResult.NO_PROCESS:
            self._in_hypervisor.add(domid)

    def reclaim(self, pfn: int, count: int) -> None:
        """These pages are granted no more, and go to other uses."""
        if not self._shared:
            return
        for page in range(pfn, pfn + count):
            if self._shared.pop(page, None) is not None:
                self._reclaim(page, 1)
