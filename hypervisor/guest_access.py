"""How handlers reach guest memory: by guest handles, in copies.

What a handle means is the guest's kind: a guest-physical address of an auto-translated guest (guest_memory.py), a
virtual one of a native guest (virtual_access.py). Handlers use this interface alone. Whatever is not wholly mapped,
or not writable where that is needed, is a GuestFault, and then nothing was written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct as Codec
from typing import TypeVar

from hypervisor.abi.layout import Struct

S = TypeVar("S", bound=Struct)

_U16, _U32, _U64 = Codec("<H"), Codec("<I"), Codec("<Q")


class GuestAccess(ABC):
    """Memory of one guest, by its own addresses."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Changes whenever memory goes away from the guest."""

    @abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes. GuestFault if any of them is not mapped."""

    @abstractmethod
    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to the guest. GuestFault, and nothing written, unless all is mapped and writable."""

    @abstractmethod
    def check_writable(self, address: int, size: int) -> None:
        """GuestFault unless `size` bytes may be written: asked before a change whose result goes there."""

    @abstractmethod
    def contiguous(self, address: int, size: int) -> memoryview:
        """As many of `size` bytes as lie together, at least one, as a writable view. GuestFault if the first
        is not mapped and writable. The view is good until `version` changes; what is read from it is to be
        fetched once.
        """

    def read_struct(self, cls: type[S], address: int) -> S:
        """A copy of the `cls` at `address`; every field is fetched once."""
        return cls.unpack(self.read(address, cls.size))

    def write_struct(self, address: int, value: Struct) -> None:
        """Copy `value` to `address`."""
        self.write(address, value.pack())

    def read_u16(self, address: int) -> int:
        """The u16 at `address`."""
        value: int = _U16.unpack(self.read(address, 2))[0]
        return value

    def read_u32(self, address: int) -> int:
        """The u32 at `address`."""
        value: int = _U32.unpack(self.read(address, 4))[0]
        return value

    def read_u64(self, address: int) -> int:
        """The u64 at `address`."""
        value: int = _U64.unpack(self.read(address, 8))[0]
        return value

    def write_u16(self, address: int, value: int) -> None:
        """Write the low 16 bits of `value`."""
        self.write(address, _U16.pack(value & 0xFFFF))

    def write_u32(self, address: int, value: int) -> None:
        """Write the low 32 bits of `value`."""
        self.write(address, _U32.pack(value & 0xFFFF_FFFF))

    def write_u64(self, address: int, value: int) -> None:
        """Write the low 64 bits of `value`."""
        self.write(address, _U64.pack(value & 0xFFFF_FFFF_FFFF_FFFF))
