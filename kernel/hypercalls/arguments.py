"""Guest memory in which the arguments of hypercalls are laid out, and from which results are read.

A guest handle of an auto-translated kernel is a guest-physical address. The area is this domain's own memory,
written before the call and read after it, so nothing in it is shared while it is packed.
"""

from collections.abc import Iterator, Sequence
from struct import Struct as Codec
from typing import Final, Generic, TypeVar

from hypervisor.abi.layout import Struct
from kernel.errors import KernelError
from kernel.pages import Pages
from kernel.platform import PAGE_SHIFT

S = TypeVar("S", bound=Struct)

_ALIGNMENT: Final = 8


class ArgumentsFull(KernelError):
    """The arguments of one hypercall, or of one batch, need more than the area has."""

    def __init__(self, wanted: int, left: int) -> None:
        super().__init__(f"{wanted} bytes of arguments, {left} left")
        self.wanted = wanted
        self.left = left


class Slot(Generic[S]):
    """One struct in the area: its address is passed, its fields are read afterwards."""

    __slots__ = ("_area", "_offset", "address", "value")

    def __init__(self, area: "ArgumentArea", offset: int, value: S) -> None:
        self._area = area
        self._offset = offset
        self.address = area.address + offset
        self.value = value

    def get(self) -> S:
        """A copy of the struct as it is now."""
        return type(self.value).unpack(self._area.view, self._offset)


class ArgumentArea:
    """A piece of guest memory, filled from the front; `clear` begins anew. The first `reserved` bytes are
    left alone.
    """

    __slots__ = ("_next", "_reserved", "_words", "address", "size", "view")

    def __init__(self, pages: Pages, *, reserved: int = 0) -> None:
        self.view = pages.view
        self._words = pages.view.cast("I")
        self.address = pages.pfn << PAGE_SHIFT
        self.size = len(pages.view)
        self._reserved = self._next = reserved

    @property
    def room(self) -> int:
        """Bytes that an empty area has."""
        return self.size - self._reserved

    def clear(self) -> None:
        """Forget everything that was put."""
        self._next = self._reserved

    def reserve(self, size: int) -> int:
        """The offset of `size` fresh bytes, aligned to 8. Raises ArgumentsFull."""
        offset = self._next
        end = offset + size
        if end > self.size:
            raise ArgumentsFull(size, self.size - offset)
        self._next = end + -end % _ALIGNMENT
        return offset

    def put(self, value: S) -> Slot[S]:
        """Put a struct."""
        data = value.pack()
        offset = self.reserve(len(data))
        self.view[offset : offset + len(data)] = data
        return Slot(self, offset, value)

    def place(self, value: Struct) -> int:
        """Put a struct that is only read by Xen; returns its address."""
        data = value.pack()
        offset = self._next
        end = offset + len(data)
        if end > self.size:
            raise ArgumentsFull(len(data), self.size - offset)
        self.view[offset:end] = data
        self._next = end + -end % _ALIGNMENT
        return self.address + offset

    def place_word(self, value: int) -> int:
        """Put one 32-bit word that is only read by Xen; returns its address."""
        offset = self._next
        if offset >= self.size:
            raise ArgumentsFull(4, self.size - offset)
        self._words[offset >> 2] = value
        self._next = offset + _ALIGNMENT
        return self.address + offset

    def put_bytes(self, data: bytes) -> int:
        """Put bytes; returns their offset."""
        offset = self.reserve(len(data))
        self.view[offset : offset + len(data)] = data
        return offset

    def put_frames(self, frames: Sequence[int]) -> int:
        """Put an array of 64-bit frame numbers; returns its offset."""
        return self.put_bytes(Codec(f"<{len(frames)}Q").pack(*frames))

    def rows(self, codec: Codec, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        """Unpack `count` records of `codec` that lie one after the other."""
        return codec.iter_unpack(self.view[offset : offset + count * codec.size])
