"""Unions: alternatives over the same bytes."""

from typing import Annotated, Any

import pytest

from hypervisor.abi.layout import ZERO, Array, Bytes, LayoutError, Struct, Union, u8, u16, u32, u64


class pair(Struct, size=8):
    low: u16 = 0
    high: u32 = 0


class either(Union, size=16):
    number: u64 = ZERO
    small: u8 = ZERO
    both: pair = ZERO
    words: Annotated[tuple[int, ...], Array(u32, 3)] = ZERO
    raw: Annotated[bytes, Bytes(16)] = ZERO


class holder(Struct, size=24):
    kind: u32 = 0
    u: either = ZERO


def test_a_union_starts_as_zero_bytes_or_with_one_alternative() -> None:
    assert either().pack() == bytes(16)
    assert either(number=0x0102).pack() == b"\x02\x01" + bytes(14)
    assert either(both=pair(1, 2)).both == pair(1, 2)
    with pytest.raises(LayoutError, match="one alternative"):
        either(number=1, small=2)


def test_all_alternatives_read_the_same_bytes() -> None:
    union = either.unpack(bytes(range(16)))
    assert union.small == 0
    assert union.number == 0x0706050403020100
    assert union.both == pair(0x0100, 0x07060504)
    assert union.words == (0x03020100, 0x07060504, 0x0B0A0908)
    assert union.raw == bytes(range(16))


def test_a_short_alternative_leaves_the_other_bytes_alone() -> None:
    union = either.unpack(b"\xff" * 16)
    union.small = 1
    assert union.pack() == b"\x01" + b"\xff" * 15
    union.number = 0
    assert union.raw == bytes(8) + b"\xff" * 8


def test_a_struct_inside_a_union_is_changed_in_place() -> None:
    value = holder()
    value.u.both.high = 7
    assert holder.unpack(value.pack()).u.both == pair(0, 7)


def test_looking_at_another_alternative_sees_the_change_and_ends_the_old_struct() -> None:
    union = either()
    old = union.both
    old.low = 3
    assert union.number == 3
    old.low = 4
    assert (union.number, union.both.low) == (3, 3)


@pytest.mark.parametrize(
    ("alternative", "value"),
    [
        ("number", -1),
        ("small", 256),
        ("small", None),
        ("both", holder()),
        ("both", pair(low=-1)),
        ("words", (1, 2)),
        ("words", (1, 2, 2**32)),
        ("raw", bytes(17)),
    ],
)
def test_what_does_not_fit_is_refused_by_name(alternative: str, value: Any) -> None:
    union = either()
    setattr(union, alternative, value)
    with pytest.raises(LayoutError, match=rf"either\.{alternative}") as caught:
        union.pack()
    assert (caught.value.layout, caught.value.field) == ("either", alternative)
    with pytest.raises(LayoutError):
        holder(u=union).pack()


def test_unpack_copies_and_wants_enough_bytes() -> None:
    data = bytearray(b"\x05" * 17)
    union = either.unpack(data, 1)
    data[:] = bytes(17)
    assert union.small == 5
    for offset in (2, -1, -16, 2**80):
        with pytest.raises(LayoutError, match=f"expected 16 at {offset}$"):
            either.unpack(data, offset)


def test_equality_is_of_class_and_bytes() -> None:
    assert either(small=1) == either(number=1)
    assert either() != either(small=1)
    assert either() != 0


def test_repr_names_the_live_alternative() -> None:
    assert repr(either(small=1)) == "either(small=1)"
    assert repr(either.unpack(bytes(16))).startswith("either.unpack(b'")


def test_offsets_reach_through_a_union() -> None:
    assert holder.offsets["u.both.high"] == 12
