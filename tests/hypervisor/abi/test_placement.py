"""Layouts against ctypes, which lays structs out as the platform's C compiler does."""

import ctypes
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.layout import (
    ZERO,
    Array,
    Bytes,
    LayoutError,
    Struct,
    Union,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)
from hypervisor.abi.structs import StructType
from hypervisor.abi.unions import UnionType

_SCALARS: list[tuple[object, Any, int, int]] = [
    (u8, ctypes.c_uint8, 0, 2**8 - 1),
    (u16, ctypes.c_uint16, 0, 2**16 - 1),
    (u32, ctypes.c_uint32, 0, 2**32 - 1),
    (u64, ctypes.c_uint64, 0, 2**64 - 1),
    (s8, ctypes.c_int8, -(2**7), 2**7 - 1),
    (s16, ctypes.c_int16, -(2**15), 2**15 - 1),
    (s32, ctypes.c_int32, -(2**31), 2**31 - 1),
    (s64, ctypes.c_int64, -(2**63), 2**63 - 1),
]


class Sample(NamedTuple):
    """One field: its kind and value, in our terms and in those of ctypes."""

    kind: Any
    c: Any
    value: Any
    c_value: Any


@st.composite
def scalars(draw: st.DrawFn) -> Sample:
    kind, c, low, high = draw(st.sampled_from(_SCALARS))
    value = draw(st.integers(low, high))
    return Sample(kind, c, value, value)


@st.composite
def byte_strings(draw: st.DrawFn) -> Sample:
    value = draw(st.binary(min_size=1, max_size=9))
    array = ctypes.c_uint8 * len(value)
    return Sample(Annotated[bytes, Bytes(len(value))], array, value, array(*value))


@st.composite
def arrays(draw: st.DrawFn, elements: st.SearchStrategy[Sample]) -> Sample:
    kind, c, value, c_value = draw(elements)
    count = draw(st.integers(1, 4))
    array = c * count
    kind = Annotated[tuple[Any, ...], Array(kind, count)]
    return Sample(kind, array, (value,) * count, array(*[c_value] * count))


@st.composite
def structs(draw: st.DrawFn, fields: st.SearchStrategy[Sample]) -> Sample:
    samples = draw(st.lists(fields, min_size=1, max_size=5))
    made = StructType("sample", (Struct,), _namespace(samples))
    c = type("c", (ctypes.Structure,), {"_fields_": _c_fields(samples)})
    return Sample(made, c, made(*[s.value for s in samples]), c(*[s.c_value for s in samples]))


@st.composite
def unions(draw: st.DrawFn, fields: st.SearchStrategy[Sample]) -> Sample:
    samples = draw(st.lists(fields, min_size=1, max_size=3))
    made = UnionType("sample", (Union,), _namespace(samples))
    c = type("c", (ctypes.Union,), {"_fields_": _c_fields(samples)})
    chosen = draw(st.integers(0, len(samples) - 1))
    value, c_value = made(), c()
    setattr(value, f"f{chosen}", samples[chosen].value)
    setattr(c_value, f"f{chosen}", samples[chosen].c_value)
    return Sample(made, c, value, c_value)


def _namespace(samples: list[Sample]) -> dict[str, Any]:
    return {"__annotations__": {f"f{index}": sample.kind for index, sample in enumerate(samples)}}


def _c_fields(samples: list[Sample]) -> list[tuple[str, Any]]:
    return [(f"f{index}", sample.c) for index, sample in enumerate(samples)]


_leaves = scalars() | byte_strings() | arrays(scalars())
_any_struct = structs(
    st.recursive(
        _leaves, lambda kinds: structs(kinds) | unions(kinds) | arrays(structs(kinds)), max_leaves=12
    )
)


@given(_any_struct)
def test_size_and_offsets_are_the_c_compilers(sample: Sample) -> None:
    assert sample.kind.size == ctypes.sizeof(sample.c)
    assert {field.name: (field.offset, field.size) for field in sample.kind.fields} == {
        name: (getattr(sample.c, name).offset, getattr(sample.c, name).size) for name, _ in sample.c._fields_
    }


@given(_any_struct)
def test_the_bytes_are_those_of_c_and_unpack_to_the_same_value(sample: Sample) -> None:
    data = bytes(sample.c_value)
    assert sample.value.pack() == data
    assert sample.kind.unpack(data) == sample.value
    assert sample.kind.unpack(b"\xff" * 3 + data, 3).pack() == data


@given(_any_struct)
def test_zero_is_all_zero_bytes(sample: Sample) -> None:
    assert sample.kind().pack() == bytes(sample.kind.size)


class inner(Struct, size=16):
    flag: u8 = 0
    value: u64 = 0


class outer(Struct, size=32):
    head: u32 = 0
    in_: inner = ZERO
    tail: u8 = 0


def test_offsets_of_nested_fields_have_dotted_names_and_cs_spelling() -> None:
    assert outer.offsets == {"head": 0, "in": 8, "in.flag": 8, "in.value": 16, "tail": 24}


def test_a_field_may_be_called_size() -> None:
    class sized(Struct, size=8):
        offsets: u32 = 0
        size: u32 = 0

    value = sized(1, 2)
    assert (sized.size, value.size, value.offsets) == (8, 2, 1)
    assert sized.offsets == {"offsets": 0, "size": 4}


def test_a_wrong_size_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(LayoutError, match="wrong: found 16, expected a size of 12 bytes") as caught:

        class wrong(Struct, size=12):
            a: u32 = 0
            b: u64 = 0

    assert caught.value.layout == "wrong"


def test_a_field_that_hides_its_own_type_is_refused() -> None:
    with pytest.raises(TypeError, match="ZERO has no C layout"):

        class wrong(Struct):
            inner: inner = ZERO


def test_an_annotation_without_a_layout_is_refused() -> None:
    with pytest.raises(TypeError, match="has no C layout"):

        class wrong(Struct):
            a: int = 0
