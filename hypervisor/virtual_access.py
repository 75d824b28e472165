"""Guest handles of a native guest: virtual addresses, walked through its own page tables.

Follows copy_to_guest and guest_walk_tables of Xen: each level is fetched once, an entry must be present and for user
mode (Xen makes all entries of a PV guest so), and to write every level must permit it. What Xen refuses at once is
refused here: addresses that are not canonical, Xen's own part of the address space, superpages, which no PV guest has.

The page tables are the guest's memory. It cannot write to them itself, since its process validates every entry; but
nothing here relies on that. A table is a page of the domain's own RAM or there is none, and where an address ends is a
page of the domain's physmap, which it may reach anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.errors import BadGpfn, GuestFault
from hypervisor.extent import PAGE_SHIFT, PAGE_SIZE
from hypervisor.guest_access import GuestAccess
from hypervisor.pv.layout import HYPERVISOR_VIRT_END

if TYPE_CHECKING:
    from hypervisor.guest_memory import GuestMemory
    from hypervisor.vcpu.state import Vcpu

LOWER_END: Final = 1 << 47
ADDRESS_END: Final = 1 << 64
NOWHERE: Final = ADDRESS_END
"""a guest-physical address where nothing ever is"""
PAGE_MASK: Final = PAGE_SIZE - 1

_PRESENT: Final = 1
_RW: Final = 2
_USER: Final = 4
_PSE: Final = 0x80
_FRAME_MASK: Final = (1 << 40) - 1  # of an entry without its low 12 bits: address bits 12 to 51


class VirtualAccess(GuestAccess):
    """Memory of a native guest by the virtual addresses of one of its vCPUs, which says in `vcpu.root` by which
    page table. With root 0 addresses are guest-physical: those are the hypercalls that its process makes itself.

    Translations are not remembered: page tables change between two hypercalls, and inside one, too.
    """

    def __init__(self, memory: GuestMemory, vcpu: Vcpu) -> None:
        self._memory = memory
        self._vcpu = vcpu
        self._domid = memory.domid

    @property
    def version(self) -> int:
        """The physmap's: page tables are changed by the domain itself, which stands still in a hypercall."""
        return self._memory.version

    def read(self, address: int, size: int) -> bytes:
        root = self._vcpu.root
        if not root:
            return self._memory.read(address, size)
        if not 0 < size <= PAGE_SIZE - (address & PAGE_MASK):
            return b"".join(self._pieces(address, size, writable=False))
        at = self._translate(root, address, _PRESENT | _USER)
        try:
            return self._memory.read(at, size)
        except GuestFault:
            raise GuestFault(self._domid, address, size) from None

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        root = self._vcpu.root
        size = len(data)
        if not root:
            self._memory.write(address, data)
            return
        if 0 < size <= PAGE_SIZE - (address & PAGE_MASK):
            at = self._translate(root, address, _PRESENT | _RW | _USER)
            try:
                self._memory.write(at, data)
            except GuestFault:
                raise GuestFault(self._domid, address, size) from None
            return
        done = 0
        for piece in self._pieces(address, size, writable=True):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)

    def check_writable(self, address: int, size: int) -> None:
        if self._vcpu.root:
            self._pieces(address, size, writable=True)
        else:
            self._memory.check_writable(address, size)

    def contiguous(self, address: int, size: int) -> memoryview:
        root = self._vcpu.root
        if not root:
            return self._memory.contiguous(address, size)
        at = self._translate(root, address, _PRESENT | _RW | _USER)
        try:
            return self._memory.contiguous(at, min(size, PAGE_SIZE - (at & PAGE_MASK)))
        except GuestFault:
            raise GuestFault(self._domid, address, size) from None

    def _pieces(self, address: int, size: int, *, writable: bool) -> list[memoryview]:
        """The bytes as views of at most a page; all of them are found before any is used."""
        root = self._vcpu.root
        wanted = _PRESENT | _RW | _USER if writable else _PRESENT | _USER
        pieces = []
        done = 0
        while done < size:
            at = self._translate(root, address + done, wanted)
            page = self._page(at >> PAGE_SHIFT, writable=writable)
            if page is None:
                raise GuestFault(self._domid, address, size)
            offset = at & PAGE_MASK
            piece = page[offset : offset + size - done]
            pieces.append(piece)
            done += len(piece)
        return pieces

    def _page(self, mfn: int, *, writable: bool) -> memoryview | None:
        try:
            page = self._memory.page(mfn)
        except BadGpfn:
            return None
        return None if writable and page.readonly else page

    def _translate(self, root: int, address: int, wanted: int) -> int:
        """The guest-physical address that `address` means, if every level has the bits `wanted`; NOWHERE if
        not. What is there is still to be looked up.
        """
        if not (0 <= address < LOWER_END or HYPERVISOR_VIRT_END <= address < ADDRESS_END):
            return NOWHERE
        quad = self._memory.quad
        entry = quad(root, address >> 39 & 511)
        if entry & wanted != wanted or entry & _PSE:
            return NOWHERE
        entry = quad(entry >> PAGE_SHIFT & _FRAME_MASK, address >> 30 & 511)
        if entry & wanted != wanted or entry & _PSE:
            return NOWHERE
        entry = quad(entry >> PAGE_SHIFT & _FRAME_MASK, address >> 21 & 511)
        if entry & wanted != wanted or entry & _PSE:
            return NOWHERE
        entry = quad(entry >> PAGE_SHIFT & _FRAME_MASK, address >> PAGE_SHIFT & 511)
        if entry & wanted != wanted:
            return NOWHERE
        return (entry >> PAGE_SHIFT & _FRAME_MASK) << PAGE_SHIFT | address & PAGE_MASK
