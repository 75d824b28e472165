"""What a field of an ABI struct can be: a scalar, a byte string, or an array. (Structs: placement.py.)

Layouts are those of a C compiler on x86-64: little-endian, every scalar aligned to its own size. A kind turns
its value into leaves (what `struct` packs) and back. Nothing here keeps a view of the bytes it decoded.
"""

from collections.abc import Sequence
from struct import calcsize
from typing import Any, Protocol, get_args


class Misfit(Exception):
    """A value does not fit its kind. Stays inside the package: who knows the field makes it a LayoutError."""

    def __init__(self, found: object, expected: str) -> None:
        super().__init__(f"found {found!r}, expected {expected}")
        self.found = found
        self.expected = expected


class Kind(Protocol):
    """The layout of one field: `leaves` values in `struct` format `format`, `size` bytes in all."""

    @property
    def size(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def leaves(self) -> int: ...

    def zero(self) -> Any:
        """A fresh value whose bytes are all zero."""

    def decode(self, leaves: tuple[Any, ...], at: int) -> Any:
        """The value whose first leaf is `leaves[at]`."""

    def encode(self, value: Any) -> Sequence[Any]:
        """The leaves of a value. Raises Misfit; that a scalar fits, its codec finds."""

    def check(self, value: Any) -> None:
        """Raises Misfit for a value that `encode` or the codec refuses."""


class Scalar:
    """An integer, by its code in `struct`: B H I Q unsigned, b h i q signed."""

    leaves = 1

    def __init__(self, code: str) -> None:
        self.format = code
        self.size = self.alignment = calcsize("<" + code)
        self.signed = code.islower()
        bits = self.size * 8
        self.name = f"{'s' if self.signed else 'u'}{bits}"
        self.minimum = -(1 << (bits - 1)) if self.signed else 0
        self.maximum = self.minimum + (1 << bits) - 1

    def zero(self) -> int:
        return 0

    def decode(self, leaves: tuple[Any, ...], at: int) -> Any:
        return leaves[at]

    def encode(self, value: Any) -> Sequence[Any]:
        return (value,)

    def check(self, value: Any) -> None:
        if not isinstance(value, int) or not self.minimum <= value <= self.maximum:
            raise Misfit(value, f"an integer that fits {self.name}")


class Bytes:
    """`char name[size]` or `uint8_t name[size]`, as bytes. A shorter value is filled up with zero bytes."""

    leaves = 1
    alignment = 1

    def __init__(self, size: int) -> None:
        self.size = size
        self.format = f"{size}s"

    def zero(self) -> bytes:
        return bytes(self.size)

    def decode(self, leaves: tuple[Any, ...], at: int) -> Any:
        return leaves[at]

    def encode(self, value: Any) -> Sequence[Any]:
        if not isinstance(value, bytes) or len(value) > self.size:
            raise Misfit(value, f"at most {self.size} bytes")
        return (value,)

    def check(self, value: Any) -> None:
        self.encode(value)


class Array:
    """`type name[count]`, as a tuple. `of` is a scalar alias such as u64, or a Struct or Union class."""

    def __init__(self, of: object, count: int) -> None:
        self.of = kind_of(of)
        self.count = count
        self.size = self.of.size * count
        self.alignment = self.of.alignment
        self.format = self.of.format * count
        self.leaves = self.of.leaves * count

    def zero(self) -> tuple[Any, ...]:
        return tuple(self.of.zero() for _ in range(self.count))

    def decode(self, leaves: tuple[Any, ...], at: int) -> tuple[Any, ...]:
        of = self.of
        end = at + self.leaves
        if isinstance(of, Scalar):
            return leaves[at:end]
        return tuple([of.decode(leaves, index) for index in range(at, end, of.leaves)])

    def encode(self, value: Any) -> Sequence[Any]:
        if not isinstance(value, (tuple, list)) or len(value) != self.count:
            raise Misfit(value, f"{self.count} values")
        if isinstance(self.of, Scalar):
            return value
        return [leaf for element in value for leaf in self.of.encode(element)]

    def check(self, value: Any) -> None:
        self.encode(value)
        for element in value:
            self.of.check(element)


def kind_of(annotation: object) -> Kind:
    """The kind that an annotation stands for: Annotated[…, kind], or a Struct or Union class."""
    layout: Kind | None = getattr(annotation, "layout_", None)
    if layout is not None:
        return layout
    for mark in get_args(annotation)[1:]:
        if isinstance(mark, (Scalar, Bytes, Array)):
            return mark
    raise TypeError(f"{annotation!r} has no C layout")
