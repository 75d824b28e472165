"""Guest memory by virtual address: walks of the guest's page tables in software.

A walk starts at a frame of type L4. Everything that it meets from there on was validated, so its frames exist, and
there are no superpages. Each entry is fetched once, nothing is remembered between walks (XSA-286), and the processor's
accessed and dirty bits are set as by an access of its own.
"""

from __future__ import annotations

from hypervisor.errors import GuestFault
from hypervisor.pv.entries import ACCESSED, ACCESSED_DIRTY, ADDRESS_MASK, PRESENT, RW, U64, USER
from hypervisor.pv.frames import OWN_L4, LocalFrames
from hypervisor.pv.layout import HYPERVISOR_VIRT_END, MFN_END, PAGE_SIZE
from hypervisor.pv.machine_memory import MachineMemory

_OFFSET = PAGE_SIZE - 1
_LOWER_END = 1 << 47
_READABLE = PRESENT | USER
_WRITABLE = PRESENT | USER | RW


class Walks:
    """Of one domain, whose `domid` faults carry."""

    __slots__ = ("_domid", "_frames", "_memory")

    def __init__(self, memory: MachineMemory, frames: LocalFrames, domid: int) -> None:
        self._memory = memory
        self._frames = frames
        self._domid = domid

    def l1_slot(self, root: int, va: int) -> int:
        """Where the L1 entry for `va` is, as index of a u64 in machine memory, whatever it holds; -1 if there is no
        L1 table for it, or the address is Xen's or not canonical.
        """
        if not 0 <= va < _LOWER_END and not HYPERVISOR_VIRT_END <= va <= U64:
            return -1
        if not 0 < root < MFN_END or self._frames.uses[root] != OWN_L4:
            return -1
        quads = self._memory.quads
        entry: int = quads[root << 9 | va >> 39 & 511]
        if not entry & 1:
            return -1
        entry = quads[(entry & ADDRESS_MASK) >> 3 | va >> 30 & 511]
        if not entry & 1:
            return -1
        entry = quads[(entry & ADDRESS_MASK) >> 3 | va >> 21 & 511]
        if not entry & 1:
            return -1
        return (entry & ADDRESS_MASK) >> 3 | va >> 12 & 511

    def translate(self, root: int, va: int, write: bool) -> int:
        """The machine address of `va`; -1 if guest code could not read it, or not write to it."""
        if not 0 <= va < _LOWER_END and not HYPERVISOR_VIRT_END <= va <= U64:
            return -1
        if not 0 < root < MFN_END or self._frames.uses[root] != OWN_L4:
            return -1
        need = _WRITABLE if write else _READABLE
        quads = self._memory.quads
        entry: int = quads[root << 9 | va >> 39 & 511]
        if entry & need != need:
            return -1
        entry = quads[(entry & ADDRESS_MASK) >> 3 | va >> 30 & 511]
        if entry & need != need:
            return -1
        entry = quads[(entry & ADDRESS_MASK) >> 3 | va >> 21 & 511]
        if entry & need != need:
            return -1
        slot = (entry & ADDRESS_MASK) >> 3 | va >> 12 & 511
        entry = quads[slot]
        if entry & need != need:
            return -1
        marks = ACCESSED_DIRTY if write else ACCESSED
        if entry & marks != marks:
            quads[slot] = entry | marks
        return entry & ADDRESS_MASK | va & _OFFSET

    def read(self, root: int, va: int, size: int) -> bytes:
        """A copy of `size` bytes. GuestFault."""
        if (va & _OFFSET) + size <= PAGE_SIZE:
            address = self.translate(root, va, False)
            if address < 0:
                raise GuestFault(self._domid, va, size)
            return self._memory.octets[address : address + size].tobytes()
        octets = self._memory.octets
        return b"".join(octets[at : at + part] for at, part in self._parts(root, va, size, False))

    def write(self, root: int, va: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to the guest. GuestFault, and nothing written, unless all is mapped and writable."""
        size = len(data)
        if (va & _OFFSET) + size <= PAGE_SIZE:
            address = self.translate(root, va, True)
            if address < 0:
                raise GuestFault(self._domid, va, size)
            self._memory.octets[address : address + size] = data
            return
        done = 0
        for address, part in self._parts(root, va, size, True):
            self._memory.octets[address : address + part] = data[done : done + part]
            done += part

    def check_writable(self, root: int, va: int, size: int) -> None:
        """GuestFault unless `size` bytes may be written."""
        self._parts(root, va, size, True)

    def contiguous(self, root: int, va: int, size: int) -> memoryview:
        """As many of `size` bytes as lie in one page, at least one, as a writable view. GuestFault."""
        address = self.translate(root, va, True)
        if address < 0 or size < 1:
            raise GuestFault(self._domid, va, size)
        return self._memory.octets[address : address + min(size, PAGE_SIZE - (va & _OFFSET))]

    def _parts(self, root: int, va: int, size: int, write: bool) -> list[tuple[int, int]]:
        """(machine address, bytes) of each page that `size` bytes at `va` touch. GuestFault."""
        parts: list[tuple[int, int]] = []
        at, left = va, size
        while left > 0:
            address = self.translate(root, at, write)
            if address < 0:
                raise GuestFault(self._domid, va, size)
            part = min(left, PAGE_SIZE - (at & _OFFSET))
            parts.append((address, part))
            at += part
            left -= part
        return parts
