"""Where the fields of a struct or union lie, by the rules of C on x86-64.

A field starts at the next multiple of its alignment; a struct is as aligned as its most aligned field and its
size is a multiple of that. `Layout` is itself a kind, so that structs nest.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct as Codec
from types import MappingProxyType
from typing import Any

from hypervisor.abi.kinds import Kind, Misfit, kind_of


class LayoutError(Exception):
    """A value that its field cannot hold, or too few bytes for a struct. Our misuse, never a peer's."""

    def __init__(self, layout: str, field: str | None, found: object, expected: str) -> None:
        where = layout if field is None else f"{layout}.{field}"
        super().__init__(f"{where}: found {found!r}, expected {expected}")
        self.layout = layout
        self.field = field
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Field:
    """One field in place: `name` is C's, `attribute` is Python's (`in_` for C's `in`)."""

    name: str
    attribute: str
    offset: int
    kind: Kind

    @property
    def size(self) -> int:
        return self.kind.size

    @property
    def end(self) -> int:
        return self.offset + self.kind.size


class Layout:
    """A struct's or union's fields in place, and one precompiled codec for all its leaves."""

    def __init__(self, name: str, fields: Sequence[Field], *, union: bool, anonymous: bool) -> None:
        self.name = name
        self.anonymous = anonymous
        self.fields = tuple(fields)
        self.union = union
        self.alignment = max((field.kind.alignment for field in fields), default=1)
        self.size = _round_up(max((field.end for field in fields), default=0), self.alignment)
        self.format = f"{self.size}s" if union else _format(self.fields, self.size)
        self.leaves = 1 if union else sum(field.kind.leaves for field in fields)
        self.codec = Codec("<" + self.format)
        self.offsets: Mapping[str, int] = MappingProxyType(dict(_offsets(self.fields)))
        # The four below come with the class, which is made after its layout.
        self.type: type
        self.complete: Callable[[], None] | None = None
        """makes the two below, when one of them is looked for; None: they are there"""
        self.decode: Callable[[tuple[Any, ...], int], Any]
        self.leaves_of: Callable[[Any], Sequence[Any]]

    def __getattr__(self, name: str) -> Any:
        if name in {"decode", "leaves_of"} and self.complete is not None:
            self.complete()
            return getattr(self, name)
        raise AttributeError(f"{self!r} has no {name!r}", name=name, obj=self)

    def zero(self) -> Any:
        return self.type()

    def encode(self, value: Any) -> Sequence[Any]:
        if type(value) is not self.type:
            raise Misfit(value, f"a {self.name}")
        return self.leaves_of(value)

    def check(self, value: Any) -> None:
        self.encode(value)
        for field in () if self.union else self.fields:
            field.kind.check(getattr(value, field.attribute))


class LayoutType(type):
    """The class of Struct and Union classes.

    Its properties are found on the class alone, so a struct may well have a field of the name `size`.
    """

    layout_: Layout

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: object) -> None:
        super().__init__(name, bases, namespace)

    @property
    def size(cls) -> int:
        """Size in bytes, padding at the end included."""
        return cls.layout_.size

    @property
    def fields(cls) -> tuple[Field, ...]:
        """The fields in C's order."""
        return cls.layout_.fields

    @property
    def offsets(cls) -> Mapping[str, int]:
        """Offset in bytes by field name; fields of nested structs and unions under dotted names."""
        return cls.layout_.offsets

    @property
    def codec(cls) -> Codec:
        """The precompiled codec of all leaves, padding skipped, unions as raw bytes."""
        return cls.layout_.codec


def declared_kinds(name: str, namespace: Mapping[str, Any]) -> dict[str, Kind]:
    """The annotated attributes of a class that is about to be made, in order."""
    body = {key: value for key, value in namespace.items() if key != "__classcell__"}
    return {attribute: kind_of(a) for attribute, a in inspect.get_annotations(type(name, (), body)).items()}


def place_struct(name: str, kinds: Mapping[str, Kind], anonymous: bool) -> Layout:
    """One field after the other."""
    fields: list[Field] = []
    end = 0
    for attribute, kind in kinds.items():
        offset = _round_up(end, kind.alignment)
        fields.append(Field(attribute.rstrip("_"), attribute, offset, kind))
        end = offset + kind.size
    return Layout(name, fields, union=False, anonymous=anonymous)


def place_union(name: str, kinds: Mapping[str, Kind], anonymous: bool) -> Layout:
    """All fields over the same bytes."""
    fields = [Field(attribute.rstrip("_"), attribute, 0, kind) for attribute, kind in kinds.items()]
    return Layout(name, fields, union=True, anonymous=anonymous)


def check_size(layout: Layout, size: int | None) -> None:
    """Refuse, at import, a declaration that has not the size that its author read in the header."""
    if size is not None and layout.size != size:
        raise LayoutError(layout.name, None, layout.size, f"a size of {size} bytes")


def too_short(layout: Layout, data: bytes | bytearray | memoryview, offset: int) -> LayoutError:
    """The error for data that ends before the struct does."""
    return LayoutError(
        layout.name, None, f"{len(memoryview(data).cast('B'))} bytes", f"{layout.size} at {offset}"
    )


def _round_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _format(fields: Iterable[Field], size: int) -> str:
    parts: list[str] = []
    end = 0
    for field in fields:
        parts += [_pad(field.offset - end), field.kind.format]
        end = field.end
    return "".join([*parts, _pad(size - end)])


def _pad(count: int) -> str:
    return f"{count}x" if count else ""


def _offsets(fields: Iterable[Field]) -> Iterable[tuple[str, int]]:
    for field in fields:
        yield field.name, field.offset
        if isinstance(field.kind, Layout):
            for name, offset in field.kind.offsets.items():
                yield f"{field.name}.{name}", field.offset + offset
