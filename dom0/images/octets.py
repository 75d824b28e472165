"""Bytes of a file that nobody vouches for: every look at them is checked, and says where it went wrong."""

from struct import Struct as Codec
from typing import Any

from dom0.images.errors import BadImage


class Octets:
    """file: what the bytes are called in errors. Offsets are in bytes from their beginning; `base` is where in
    the file that is.
    """

    __slots__ = ("base", "file", "view")

    def __init__(self, file: str, data: bytes | memoryview, base: int = 0) -> None:
        self.file = file
        self.view = memoryview(data).cast("B").toreadonly()
        self.base = base

    def __len__(self) -> int:
        return len(self.view)

    def bad(self, offset: int, what: str, expected: str) -> BadImage:
        """The error to raise."""
        return BadImage(self.file, self.base + offset, what, expected)

    def holds(self, expected: bytes, offset: int = 0) -> bool:
        """Whether these bytes are there."""
        return bytes(self.view[offset : offset + len(expected)]) == expected

    def piece(self, offset: int, length: int, what: str) -> memoryview:
        """`length` bytes at `offset`; `what` names them. Raises BadImage if they are not all there."""
        missing = offset + length - len(self.view)
        if missing > 0:
            raise self.bad(offset, f"{what}: {length:#x} bytes", f"{missing:#x} bytes fewer: the file ends")
        return self.view[offset : offset + length]

    def fields(self, codec: Codec, offset: int, what: str) -> tuple[Any, ...]:
        """What `codec` finds at `offset`. Raises BadImage if the bytes are not all there."""
        self.piece(offset, codec.size, what)
        return codec.unpack_from(self.view, offset)
