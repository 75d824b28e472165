"""Struct classes: construction, packing, and what they refuse."""

import copy
import pickle
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.layout import ZERO, Array, Bytes, LayoutError, Struct, Union, s16, s64, u8, u16, u32, u64


class point(Struct, size=8):
    x: s16 = 0
    y: u32 = 0


class shape(Struct, size=48):
    id: u16 = 0
    name: Annotated[bytes, Bytes(5)] = ZERO
    corner: point = ZERO
    corners: Annotated[tuple[point, ...], Array(point, 2)] = ZERO
    a: Annotated[tuple[int, ...], Array(u8, 3)] = ZERO
    b: Annotated[tuple[int, ...], Array(u8, 3)] = ZERO
    total: s64 = 0


def test_fields_are_given_by_position_or_by_name_and_default_to_zero() -> None:
    assert point(-1, 2) == point(x=-1, y=2)
    assert point() == point(0, 0)
    value = shape(id=1)
    assert (value.name, value.corner, value.a) == (bytes(5), point(), (0, 0, 0))
    assert value.corners == (point(), point())


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="z"):
        point(z=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        point().z = 1  # type: ignore[attr-defined]


def test_two_structs_share_no_nested_struct() -> None:
    one, other = shape(), shape()
    one.corner.x = 5
    one.corners[0].x = 6
    assert other == shape()


def test_unpack_copies() -> None:
    data = bytearray(point(1, 2).pack())
    value = point.unpack(memoryview(data))
    data[:] = bytes(8)
    assert value == point(1, 2)


def fresh() -> tuple[Any, Any, Any]:
    """A struct, one with an array of it, and a union with it, none of which was used before."""

    class inner(Struct, size=4):
        x: u16 = 0
        y: u16 = 0

    class outer(Struct, size=8):
        both: Annotated[tuple[inner, ...], Array(inner, 2)] = ZERO

    class either(Union, size=8):
        one: inner = ZERO
        pair: outer = ZERO

    return inner, outer, either


BYTES = bytes([1, 0, 2, 0, 3, 0, 4, 0])


def test_what_is_asked_of_a_struct_first_does_not_matter() -> None:
    inner, _, _ = fresh()
    assert inner.unpack(BYTES, 4).y == 4
    inner, _, _ = fresh()
    assert inner(3, y=4).pack() == BYTES[4:]
    inner, outer, _ = fresh()
    assert [element.y for element in outer.unpack(BYTES).both] == [2, 4]
    inner, outer, _ = fresh()
    assert outer((inner(1, 2), inner(3, 4))).pack() == BYTES
    assert outer().both == (inner(), inner())
    inner, outer, either = fresh()
    union = either.unpack(BYTES)
    assert (union.one.x, union.pair.both[1].x) == (1, 3)
    inner, outer, either = fresh()
    assert either(one=inner(1, 2)).pack() == BYTES[:4] + bytes(4)
    inner, _, _ = fresh()
    with pytest.raises(LayoutError):
        inner.unpack(b"")
    inner, _, _ = fresh()
    with pytest.raises(TypeError, match="z"):
        inner(z=1)
    assert inner() == inner(0)


@pytest.mark.parametrize("length", [0, 7])
def test_too_few_bytes_are_refused(length: int) -> None:
    with pytest.raises(LayoutError, match=f"point: found '{length} bytes', expected 8 at 0"):
        point.unpack(bytes(length))


@pytest.mark.parametrize("offset", [1, -1, -8, 2**40, 2**80])
def test_an_offset_without_enough_bytes_behind_it_is_refused(offset: int) -> None:
    with pytest.raises(LayoutError, match=f"expected 8 at {offset}$"):
        point.unpack(bytes(8), offset)
    with pytest.raises(LayoutError, match=f"expected 48 at {offset}$"):
        shape.unpack(bytes(48), offset)


def test_padding_is_ignored_and_packed_as_zero() -> None:
    assert point.unpack(b"\x01\x00\xaa\xbb\x02\x00\x00\x00").pack() == b"\x01\x00\x00\x00\x02\x00\x00\x00"


@given(st.integers())
def test_a_scalar_fits_or_is_refused_by_name(number: int) -> None:
    value = point(x=number)
    if -(2**15) <= number < 2**15:
        assert point.unpack(value.pack()).x == number
        return
    with pytest.raises(LayoutError, match=r"point\.x") as caught:
        value.pack()
    assert (caught.value.layout, caught.value.field, caught.value.found) == ("point", "x", number)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", -1),
        ("id", 2**16),
        ("id", "1"),
        ("id", 1.0),
        ("id", None),
        ("name", b"123456"),
        ("name", "12345"),
        ("name", None),
        ("corner", None),
        ("corner", shape()),
        ("corner", point(y=-1)),
        ("corners", ()),
        ("corners", (point(),)),
        ("corners", (point(), 7)),
        ("corners", (point(), point(x=2**15))),
        ("corners", 7),
        ("a", (1, 2)),
        ("a", (1, 2, 256)),
        ("a", (1, 2, None)),
        ("a", b"123"),
        ("total", 2**63),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field: str, value: Any) -> None:
    wrong = shape()
    setattr(wrong, field, value)
    with pytest.raises(LayoutError, match=rf"shape\.{field}") as caught:
        wrong.pack()
    assert caught.value.field == field


def test_arrays_whose_wrong_lengths_add_up_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"shape\.a"):
        shape(a=(1, 2), b=(1, 2, 3, 4)).pack()


def test_an_array_may_be_a_list_and_a_byte_string_may_be_short() -> None:
    value = shape.unpack(shape(a=[1, 2, 3], name=b"ab").pack())  # type: ignore[arg-type]
    assert (value.a, value.name) == ((1, 2, 3), b"ab\0\0\0")


def test_equality_is_of_class_and_bytes() -> None:
    class twin(Struct):
        x: s16 = 0
        y: u32 = 0

    assert point(1, 2) != point(1, 3)
    assert point() != twin()
    assert point() != 0
    assert shape(name=b"a") == shape(name=b"a\0")
    with pytest.raises(TypeError, match="unhashable"):
        hash(point())


def test_repr_names_the_fields() -> None:
    assert repr(point(1, 2)) == "point(x=1, y=2)"
    assert "corner=point(x=0, y=0)" in repr(shape())


def test_structs_can_be_copied_and_pickled() -> None:
    value = shape(id=3, corner=point(4, 5))
    deep = copy.deepcopy(value)
    deep.corner.x = 9
    assert value.corner.x == 4
    assert pickle.loads(pickle.dumps(value)) == value


def test_codec_walks_many_structs_at_once() -> None:
    data = point(1, 2).pack() + point(3, 4).pack()
    assert list(point.codec.iter_unpack(data)) == [(1, 2), (3, 4)]


class args(Struct, size=56):
    op: u64 = 0
    args: Annotated[tuple[int, ...], Array(u64, 6)] = ZERO


@given(st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_a_field_may_bear_the_name_of_its_struct(values: list[int]) -> None:
    assert args.unpack(args(1, tuple(values)).pack()).args == tuple(values)
