"""What our modules declare of Xen's ABI, as claims for a C compiler to check: an expression and its value."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from struct import calcsize
from types import ModuleType

import hypervisor.abi
import ringbuffers.protocols
from hypervisor.abi.kinds import Array, Kind, Scalar
from hypervisor.abi.layout import Layout, Struct, Union
from ringbuffers.layout import Layout as RingLayout

_SIGNED = "_Generic({}, int8_t: 1, int16_t: 1, int32_t: 1, int64_t: 1, long long: 1, default: 0)"
_PROTOCOL_PREFIXES = ("BLKIF_", "VDISK_", "XENCONS_", "XENSTORE_", "XSD_", "XS_")


@dataclass(frozen=True, slots=True)
class Claim:
    """`expression` has the value `ours` in C. `about` names the struct, field or constant."""

    kind: str
    about: str
    expression: str
    ours: int


def modules(package: ModuleType) -> list[ModuleType]:
    """All modules of a package."""
    found = pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    return [importlib.import_module(module.name) for module in found]


def abi_structs() -> dict[str, Layout]:
    """The layouts of all structs and unions in hypervisor.abi, by name."""
    return {
        value.layout_.name: value.layout_
        for module in modules(hypervisor.abi)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, (Struct, Union)) and value not in {Struct, Union}
    }


def protocol_structs() -> dict[str, RingLayout]:
    """The layouts in ringbuffers.protocols, by name."""
    return {
        value.name: value
        for module in modules(ringbuffers.protocols)
        for value in vars(module).values()
        if isinstance(value, RingLayout)
    }


def abi_constants() -> dict[str, int]:
    """All public constants of hypervisor.abi, by Xen's name, which starts with two underscores at times."""
    found: dict[str, int] = {}
    for module in modules(hypervisor.abi):
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and not re.match("_[^_]", name):
                xens = "__" + name if hasattr(module, "__" + name) else name
                assert found.setdefault(xens, value) == value, f"{xens} has two values"
    return found


def protocol_constants() -> dict[str, int]:
    """The constants of ringbuffers.protocols that bear Xen's prefixes; the others are ours."""
    return {
        name: value
        for module in modules(ringbuffers.protocols)
        for name, value in vars(module).items()
        if isinstance(value, int) and name.startswith(_PROTOCOL_PREFIXES)
    }


def struct_claims(layout: Layout) -> Iterator[Claim]:
    """Size, and every field's offset, size and sign. Structs without a tag are checked in their parent."""
    tag = f"{'union' if layout.union else 'struct'} {layout.name}"
    yield Claim("struct", layout.name, f"sizeof({tag})", layout.size)
    yield from _field_claims(layout, layout.name, tag, "", 0)


def _field_claims(layout: Layout, name: str, tag: str, path: str, base: int) -> Iterator[Claim]:
    for field in layout.fields:
        inside = f"{path}{field.name}"
        value = f"(({tag} *)0)->{inside}"
        about = f"{name}.{inside}"
        yield Claim("field", about, f"offsetof({tag}, {inside})", base + field.offset)
        yield Claim("size", about, f"sizeof({value})", field.size)
        kind = field.kind
        if isinstance(kind, Array):
            yield Claim("count", about, f"sizeof({value}) / sizeof({value}[0])", kind.count)
            inside, value, kind = f"{inside}[0]", f"{value}[0]", kind.of
        if isinstance(kind, Scalar):
            yield Claim("sign", about, _SIGNED.format(value), int(kind.signed))
        if isinstance(kind, Layout) and kind.anonymous:
            yield Claim("struct", kind.name, f"sizeof({value})", kind.size)
            yield from _field_claims(kind, name, tag, inside + ".", base + field.offset)


def anonymous_in(layout: Layout) -> Iterator[str]:
    """The names of the structs without a tag that checking `layout` reaches."""
    for field in layout.fields:
        kind: Kind = field.kind.of if isinstance(field.kind, Array) else field.kind
        if isinstance(kind, Layout) and kind.anonymous:
            yield kind.name
            yield from anonymous_in(kind)


def protocol_struct_claims(layout: RingLayout) -> Iterator[Claim]:
    """Size, and every field's offset and size, of a layout of ringbuffers.protocols."""
    tag = f"struct {layout.name}"
    yield Claim("struct", layout.name, f"sizeof({tag})", layout.size)
    codes = [code for code in re.findall(r"\d*[a-zA-Z]", layout.struct.format) if not code.endswith("x")]
    for (field, offset), code in zip(layout.offsets.items(), codes, strict=True):
        about = f"{layout.name}.{field}"
        yield Claim("field", about, f"offsetof({tag}, {field})", offset)
        yield Claim("size", about, f"sizeof((({tag} *)0)->{field})", calcsize(f"<{code}"))
