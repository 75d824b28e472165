"""What the machine-wide core and a native domain's process tell each other of each frame: types and grants.

Three arrays by local MFN, in memory that both have mapped. `types` (u8) is written by the process alone: how the frame
may be used just now (PGT_type_mask of Xen's struct page_info, and its values). `granted` (u16) is written by the
machine-wide core alone: how many writable uses of the frame others have, by grants, copies and foreign mappings.

`written` (u8) is set by the core when others may have written to the frame, and cleared by the process when it has
forgotten what its engine has translated of it: the engine sees the guest's own writes alone.

No frame is a page table or a descriptor table while others may write to it. So whoever is about to make one of the
two true first writes his own array, then lets a `fence` pass, then reads the other one's; if it stands against him he
undoes what he wrote, and it is refused. Both may be refused at once, never none.

Neither believes the other more than that: the core keeps its own count, and what a process says of its types is
looked at only to protect that process's own domain.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final, NamedTuple
from weakref import finalize

from hypervisor.errors import Busy, OutOfMemory
from hypervisor.pv.layout import MFN_END
from hypervisor.sealed_memfd import sealed_memfd
from ringbuffers.atomics import fence

PGT_none: Final = 0
PGT_l1_page_table: Final = 1
PGT_l2_page_table: Final = 2
PGT_l3_page_table: Final = 3
PGT_l4_page_table: Final = 4
PGT_seg_desc_page: Final = 5
PGT_writable_page: Final = 7
"""the values of `types`; asm-x86/mm.h of Xen"""

TYPES_BYTES: Final = MFN_END
GRANTED_BYTES: Final = 2 * MFN_END
LEDGER_BYTES: Final = TYPES_BYTES + GRANTED_BYTES + MFN_END
GRANTED_LIMIT: Final = 0xFFFF


class LedgerViews(NamedTuple):
    """types, written: u8 by MFN. granted: u16 by MFN."""

    types: memoryview
    granted: memoryview
    written: memoryview


def map_ledger(fd: int) -> LedgerViews:
    """The arrays, MFN_END entries each; the descriptor is still the caller's. OSError."""
    octets = memoryview(_map(fd))
    end = TYPES_BYTES + GRANTED_BYTES
    return LedgerViews(octets[:TYPES_BYTES], octets[TYPES_BYTES:end].cast("H"), octets[end:])


def _map(fd: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, LEDGER_BYTES, trackfd=False)
    return mmap.mmap(fd, LEDGER_BYTES)


class Ledger:
    """The machine-wide core's end. `fd`: for the process, which maps it with `map_ledger`."""

    __slots__ = ("__weakref__", "_close", "_counts", "_domid", "_views", "fd")

    def __init__(self, domid: int) -> None:
        """OutOfMemory when the host has no more."""
        self._domid = domid
        self._counts: dict[int, int] = {}
        try:
            self.fd = sealed_memfd(LEDGER_BYTES)
        except (OSError, ValueError) as error:
            raise OutOfMemory(f"memfd of a ledger ({error})", 1, 0) from error
        self._close = finalize(self, os.close, self.fd)
        try:
            self._views = map_ledger(self.fd)
        except OSError as error:
            self._close()
            raise OutOfMemory(f"mapping of a ledger ({error})", 1, 0) from error

    def hold(self, mfn: int) -> None:
        """Somebody else gets to write to the domain's frame `mfn`: it becomes no page table until as many
        `release`s. Busy, and nothing has changed, if it is one, or a descriptor table.
        """
        count = self._counts.get(mfn, 0) + 1
        if count > GRANTED_LIMIT:
            raise Busy(f"domain {self._domid} mfn {mfn:#x}: {GRANTED_LIMIT} writable uses")
        types, granted, _ = self._views
        granted[mfn] = count
        fence()
        kind = types[mfn]
        if kind not in (PGT_none, PGT_writable_page):
            granted[mfn] = count - 1
            raise Busy(f"domain {self._domid} mfn {mfn:#x} is of type {kind}, not writable by others")
        self._counts[mfn] = count

    def release(self, mfn: int) -> None:
        """One `hold` has ended."""
        count = self._counts.pop(mfn) - 1
        if count:
            self._counts[mfn] = count
        self._views.written[mfn] = 1
        self._views.granted[mfn] = count

    def check(self, mfn: int) -> None:
        """Busy if others must not write to the frame just now: for a write that is over at once, made while
        the domain stands still.
        """
        kind = self._views.types[mfn]
        if kind not in (PGT_none, PGT_writable_page):
            raise Busy(f"domain {self._domid} mfn {mfn:#x} is of type {kind}, not writable by others")
        self._views.written[mfn] = 1

    def holds(self) -> dict[int, int]:
        """How many holds there are, by MFN."""
        return dict(self._counts)

    def close(self) -> None:
        """The domain is gone, and with it whoever could hold anything of it: the memory goes, too."""
        self._close()
        gone = memoryview(b"")
        self._views = LedgerViews(gone, gone, gone)
