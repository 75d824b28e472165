"""C structs as Python classes: mutable, with slots, packed and unpacked by code made for each class.

The code is generated because hypercalls unpack and pack their arguments all the time: a struct of scalars is
one call of a precompiled codec and one assignment. It is generated when it is needed first.
"""

from struct import error as struct_error
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, dataclass_transform

from hypervisor.abi.kinds import Bytes, Kind, Misfit, Scalar
from hypervisor.abi.placement import (
    Field,
    Layout,
    LayoutError,
    LayoutType,
    check_size,
    declared_kinds,
    place_struct,
    too_short,
)


class _Zero:
    def __repr__(self) -> str:
        return "ZERO"


ZERO: Final[Any] = _Zero()
"""The default of a field that is no scalar: a fresh value of zero bytes."""


@dataclass_transform()
class StructType(LayoutType):
    """Makes a Struct class of annotated fields: `class evtchn_send(Struct, size=4): port: u32 = 0`."""

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        size: int | None = None,
        anonymous: bool = False,
    ) -> "StructType":
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        kinds = declared_kinds(name, namespace)
        layout = place_struct(name, kinds, anonymous)
        check_size(layout, size)
        defaults = {
            attribute: _default(namespace.get(attribute, ZERO), kind) for attribute, kind in kinds.items()
        }
        body = {key: value for key, value in namespace.items() if key not in kinds}
        made = super().__new__(cls, name, bases, body | {"__slots__": tuple(kinds), "layout_": layout})
        _promise_methods(made, layout, defaults)
        return made


class Struct(metaclass=StructType):
    """Base of all ABI structs. Structs are equal when they are of one class and their bytes are equal.

    The arguments of a constructor are the fields, by position or name; those left out are zero.
    """

    __slots__ = ()
    layout_: ClassVar[Layout]

    if TYPE_CHECKING:  # the methods are generated for each class

        @classmethod
        def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
            """A copy of the struct at `offset` bytes into `data`. LayoutError when that is too short."""

        def pack(self) -> bytes:
            """The struct's bytes, padding zero. Raises LayoutError naming the field that does not fit."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        fields = type(self).layout_.fields
        values = ", ".join(f"{field.attribute}={getattr(self, field.attribute)!r}" for field in fields)
        return f"{type(self).__name__}({values})"


def _default(declared: Any, kind: Kind) -> Any:
    return 0 if declared is ZERO and isinstance(kind, Scalar) else declared


def _promise_methods(made: Any, layout: Layout, defaults: dict[str, Any]) -> None:
    """As _add_methods, when one of them is called first: no program uses all structs of the ABI, and each takes a
    fifth of a millisecond.
    """

    def complete() -> None:
        _add_methods(made, layout, defaults)
        layout.complete = None

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        complete()
        self.__init__(*args, **kwargs)

    def unpack(data: bytes | bytearray | memoryview, offset: int = 0) -> Any:
        complete()
        return made.unpack(data, offset)

    def pack(self: Any) -> bytes:
        complete()
        packed: bytes = self.pack()
        return packed

    made.__init__, made.unpack, made.pack = init, staticmethod(unpack), pack
    layout.type, layout.complete = made, complete


def _add_methods(made: type, layout: Layout, defaults: dict[str, Any]) -> None:
    """Generate __init__, unpack and pack for a class, and what a struct that contains it needs."""
    names: dict[str, Any] = {
        "cls": made,
        "new": object.__new__,
        "unpack_from": layout.codec.unpack_from,
        "codec_pack": layout.codec.pack,
        "struct_error": struct_error,
        "Misfit": Misfit,
        "too_short": too_short,
        "misfit": _misfit,
        "ZERO": ZERO,
    }
    for index, field in enumerate(layout.fields):
        names[f"default{index}"] = defaults[field.attribute]
        names[f"zero{index}"] = field.kind.zero
        names[f"decode{index}"] = field.kind.decode
        names[f"encode{index}"] = field.kind.encode
    source = "\n".join([_init_source(layout), _unpack_source(layout), _pack_source(layout)])
    exec(compile(source, f"<layout of {layout.name}>", "exec"), names)
    for name, function in (
        ("__init__", names["init"]),
        ("unpack", staticmethod(names["unpack"])),
        ("pack", names["pack"]),
    ):
        setattr(made, name, function)
    layout.type, layout.decode, layout.leaves_of = made, names["decode"], names["leaves_of"]


def _init_source(layout: Layout) -> str:
    parameters = "".join(f", {field.attribute}=default{index}" for index, field in enumerate(layout.fields))
    lines = [f"def init(self{parameters}):"]
    for index, field in enumerate(layout.fields):
        name = field.attribute
        value = name if isinstance(field.kind, Scalar) else f"zero{index}() if {name} is ZERO else {name}"
        lines.append(f"    self.{name} = {value}")
    return "\n".join(lines)


def _unpack_source(layout: Layout) -> str:
    """`unpack`, and `decode` for a struct inside another one, whose leaves start at `at`."""
    plain = all(isinstance(field.kind, (Scalar, Bytes)) for field in layout.fields)
    targets = "".join(f"self.{field.attribute}, " for field in layout.fields)
    leaf = 0
    decode = ["def decode(leaves, at):", "    self = new(cls)"]
    for index, field in enumerate(layout.fields):
        value = f"leaves[at + {leaf}]" if _is_plain(field) else f"decode{index}(leaves, at + {leaf})"
        decode.append(f"    self.{field.attribute} = {value}")
        leaf += field.kind.leaves
    assign = f"{targets}= unpack_from(data, offset)" if plain else "leaves = unpack_from(data, offset)"
    unpack = [
        "def unpack(data, offset=0):",
        "    if offset < 0:",  # which the codec would count from the end
        "        raise too_short(cls.layout_, data, offset)",
        *(["    self = new(cls)"] if plain else []),
        "    try:",
        f"        {assign}",
        "    except (struct_error, OverflowError):",
        "        raise too_short(cls.layout_, data, offset) from None",
        "    return self" if plain else "    return decode(leaves, 0)",
    ]
    return "\n".join([*decode, "    return self", *unpack])


def _pack_source(layout: Layout) -> str:
    """`pack`, and `leaves_of` for a struct inside another one. Scalars are checked by the codec."""
    leaves = "".join(
        f"self.{field.attribute}, "
        if isinstance(field.kind, Scalar)
        else f"*encode{index}(self.{field.attribute}), "
        for index, field in enumerate(layout.fields)
    )
    return "\n".join(
        [
            "def leaves_of(self):",
            f"    return ({leaves})",
            "def pack(self):",
            "    try:",
            f"        return codec_pack({leaves})",
            "    except (struct_error, Misfit):",
            "        raise misfit(self) from None",
        ]
    )


def _is_plain(field: Field) -> bool:
    return isinstance(field.kind, (Scalar, Bytes))


def _misfit(value: Struct) -> LayoutError:
    """Find the field that did not fit."""
    layout = value.layout_
    for field in layout.fields:
        try:
            field.kind.check(getattr(value, field.attribute))
        except Misfit as found:
            return LayoutError(layout.name, field.name, found.found, found.expected)
    return LayoutError(layout.name, None, value, "values that fit")
