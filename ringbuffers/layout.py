"""Layouts of C structs that cross a ring, declared field by field in C's order (x86-64, natural alignment).

One declaration gives the offsets, the size and the `struct.Struct` with its padding spelled out; the size
that the C compiler gives is stated beside it and checked at import.
"""

import struct
from typing import Final

from ringbuffers.errors import RingMisuse

Field = str | tuple["Layout", int]


class Layout:
    """The layout of one C struct.

    name: its name in C. size: its sizeof. fields: in order, each a `struct` code of one scalar ("B", "h",
    "Q"…) or of an array ("8I"), or (layout, count) for an array of structs, which packs and unpacks as one
    `bytes`.

    offsets: of each field. struct: packs and unpacks all of it, padding zeroed.
    """

    __slots__ = ("alignment", "name", "offsets", "size", "struct")

    def __init__(self, name: str, size: int, **fields: Field) -> None:
        self.name: Final = name
        self.offsets: Final[dict[str, int]] = {}
        self.alignment = 1
        form, offset = "<", 0
        for field, kind in fields.items():
            code, length, alignment = _measure(kind)
            padding = -offset % alignment
            self.offsets[field] = offset + padding
            form += f"{padding}x{code}"
            offset += padding + length
            self.alignment = max(self.alignment, alignment)
        self.struct: Final = struct.Struct(f"{form}{-offset % self.alignment}x")
        self.size: Final = self.struct.size
        if self.size != size:
            raise RingMisuse(f"size of struct {name}", self.size, f"{size} bytes")


def _measure(kind: Field) -> tuple[str, int, int]:
    """The `struct` code, the length and the alignment of a field."""
    if isinstance(kind, str):
        return kind, struct.calcsize(f"<{kind}"), struct.calcsize(f"<{kind[-1]}")
    element, count = kind
    return f"{element.size * count}s", element.size * count, element.alignment
