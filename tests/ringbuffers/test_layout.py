import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import RingMisuse
from ringbuffers.layout import Field, Layout

SCALARS = {
    "B": ctypes.c_uint8,
    "b": ctypes.c_int8,
    "H": ctypes.c_uint16,
    "h": ctypes.c_int16,
    "I": ctypes.c_uint32,
    "Q": ctypes.c_uint64,
}

fields = st.lists(st.tuples(st.sampled_from(sorted(SCALARS)), st.integers(0, 5)), min_size=1, max_size=12)


@given(fields)
def test_offsets_and_size_are_those_of_a_c_compiler(kinds: list[tuple[str, int]]) -> None:
    mine: dict[str, Field] = {}
    theirs: list[tuple[str, type]] = []
    for number, (code, count) in enumerate(kinds):
        mine[f"f{number}"] = f"{count}{code}" if count else code
        theirs.append((f"f{number}", SCALARS[code] * count if count else SCALARS[code]))
    structure = type("structure", (ctypes.Structure,), {"_fields_": theirs})
    layout = Layout("structure", ctypes.sizeof(structure), **mine)
    assert layout.offsets == {name: getattr(structure, name).offset for name, _ in theirs}
    assert layout.alignment == ctypes.alignment(structure)


def test_padding_goes_out_as_zeroes() -> None:
    layout = Layout("padded", 24, a="B", b="Q", c="H")
    assert layout.struct.pack(1, 2, 3) == bytes([1, *bytes(7), 2, *bytes(7), 3, *bytes(7)])


def test_an_array_of_structs_is_one_bytes() -> None:
    inner = Layout("inner", 8, gref="I", first="B", last="B")
    outer = Layout("outer", 28, count="B", items=(inner, 3))
    assert outer.offsets == {"count": 0, "items": 4}
    assert outer.struct.unpack(bytes(range(28))) == (0, bytes(range(4, 28)))


def test_a_wrong_size_is_found_at_once() -> None:
    with pytest.raises(RingMisuse, match="size of struct wrong") as caught:
        Layout("wrong", 15, id="Q", status="h")
    assert caught.value.found == 16
