"""C unions as Python classes: named alternatives over the same bytes.

A union remembers the alternative that was set or looked at last, so that `op.u.max_mem.max_memkb = 4` changes
the union. Looking at another alternative reinterprets the bytes, as in C; a struct taken from the union
before that is then a copy.
"""

import re
from struct import Struct as Codec
from struct import calcsize
from struct import error as struct_error
from typing import Any, ClassVar, Self, dataclass_transform

from hypervisor.abi.kinds import Misfit
from hypervisor.abi.placement import (
    Field,
    Layout,
    LayoutError,
    LayoutType,
    check_size,
    declared_kinds,
    place_union,
    too_short,
)


class Alternative:
    """The attribute that reads and writes the bytes of a union as one of its fields."""

    __slots__ = ("codec", "field", "padding")

    def __init__(self, field: Field) -> None:
        self.field = field
        self.codec = Codec("<" + field.kind.format)
        self.padding = _padding(field.kind.format)

    def __get__(self, union: "Union | None", owner: type) -> Any:
        if union is None:
            return self
        if union._live is not self:
            union._bytes = union.pack()
            union._value = self.field.kind.decode(self.codec.unpack_from(union._bytes), 0)
            union._live = self
        return union._value

    def __set__(self, union: "Union", value: Any) -> None:
        union._bytes = union.pack()
        union._value = value
        union._live = self

    def pack(self, union: "Union") -> bytes:
        """The union's bytes: the live value over what lay there before, which its padding lets through."""
        try:
            live = self.codec.pack(*self.field.kind.encode(union._value))
        except (struct_error, Misfit):
            raise self._misfit(union) from None
        if self.padding:
            below = int.from_bytes(union._bytes[: len(live)], "little") & self.padding
            live = (int.from_bytes(live, "little") | below).to_bytes(len(live), "little")
        return live + union._bytes[len(live) :]

    def _misfit(self, union: "Union") -> LayoutError:
        try:
            self.field.kind.check(union._value)
        except Misfit as found:
            return LayoutError(union.layout_.name, self.field.name, found.found, found.expected)
        return LayoutError(union.layout_.name, self.field.name, union._value, "a value that fits")


@dataclass_transform(kw_only_default=True)
class UnionType(LayoutType):
    """Makes a Union class of annotated alternatives."""

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        size: int | None = None,
        anonymous: bool = False,
    ) -> "UnionType":
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        layout = place_union(name, declared_kinds(name, namespace), anonymous)
        check_size(layout, size)
        alternatives = {field.attribute: Alternative(field) for field in layout.fields}
        made = super().__new__(
            cls, name, bases, namespace | alternatives | {"__slots__": (), "layout_": layout}
        )
        layout.type = made
        layout.decode = lambda leaves, at: _of_bytes(made, leaves[at])
        layout.leaves_of = lambda union: (union.pack(),)
        return made


class Union(metaclass=UnionType):
    """Base of all ABI unions. The constructor takes one alternative by name, or none for zero bytes."""

    __slots__ = ("_bytes", "_live", "_value")
    layout_: ClassVar[Layout]

    def __init__(self, **alternative: Any) -> None:
        self._bytes = bytes(type(self).size)
        self._live: Alternative | None = None
        self._value: Any = None
        if len(alternative) > 1:
            raise LayoutError(type(self).__name__, None, sorted(alternative), "one alternative")
        for name, value in alternative.items():
            setattr(self, name, value)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """A copy of the union at `offset` bytes into `data`. Raises LayoutError when `data` is too short."""
        if offset < 0:
            raise too_short(cls.layout_, data, offset)
        try:
            (raw,) = cls.codec.unpack_from(data, offset)
        except (struct_error, OverflowError):
            raise too_short(cls.layout_, data, offset) from None
        union: Self = _of_bytes(cls, raw)
        return union

    def pack(self) -> bytes:
        """The union's bytes. Raises LayoutError when the alternative set last does not fit."""
        return self._bytes if self._live is None else self._live.pack(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        if self._live is None:
            return f"{type(self).__name__}.unpack({self._bytes!r})"
        return f"{type(self).__name__}({self._live.field.attribute}={self._value!r})"


def _padding(form: str) -> int:
    """A mask, little-endian, of the bytes that a format skips."""
    mask = b"".join(
        (b"\xff" if code.endswith("x") else b"\0") * calcsize(f"<{code}")
        for code in re.findall(r"\d*[a-zA-Z]", form)
    )
    return int.from_bytes(mask, "little")


def _of_bytes(cls: Any, raw: bytes) -> Any:
    """A union of these bytes, without the cost of a constructor."""
    union = cls.__new__(cls)
    union._bytes = raw
    union._live = None
    return union
