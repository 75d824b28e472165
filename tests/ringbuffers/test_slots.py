import mmap
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import RingMisuse
from ringbuffers.slots import HEADER_SIZE, Detached, SlotMemory, SplitSlot, ring_size
from tests.ringbuffers.pairs import SHAPES, run, shared_pages, slot

slot_sizes = st.sampled_from([1, 8, 12, 16, 64, 100, 112, 255, 2000])


def flat(pages: Sequence[memoryview]) -> bytes:
    return b"".join(bytes(page) for page in pages)


@pytest.mark.parametrize(
    ("pages", "slot_size", "slots"),
    [
        (1, 112, 32),
        (2, 112, 64),
        (4, 112, 128),
        (8, 112, 256),
        (16, 112, 512),
        (1, 12, 256),
        (1, 8, 256),
        (3, 112, 64),
    ],
)
def test_sizes_are_those_of_ring_h(pages: int, slot_size: int, slots: int) -> None:
    assert ring_size(pages, slot_size) == slots
    assert SlotMemory(shared_pages((pages,)), slot_size).size == slots


@given(st.integers(1, 16), st.integers(1, 4096))
def test_a_ring_is_the_largest_power_of_two_that_fits(pages: int, slot_size: int) -> None:
    size = ring_size(pages, slot_size)
    room = pages * 4096 - 64
    if size:
        assert size & (size - 1) == 0
        assert size * slot_size <= room < 2 * size * slot_size
    else:
        assert slot_size > room


@given(st.sampled_from(SHAPES), slot_sizes, st.integers(0, 2**33), st.data())
def test_runs_come_back_wherever_pages_and_slots_end(
    shape: tuple[int, ...], slot_size: int, index: int, data: st.DataObject
) -> None:
    pages = shared_pages(shape, filler=0xAA)
    memory = SlotMemory(pages, slot_size)
    count = data.draw(st.integers(0, memory.size))
    memory.copy_in(index, run(index, count, slot_size))
    assert memory.copy_out(index, count) == run(index, count, slot_size)

    expected = bytearray(b"\xaa" * (4096 * sum(shape)))
    for number in range(index, index + count):
        start = HEADER_SIZE + number % memory.size * slot_size
        expected[start : start + slot_size] = slot(number, slot_size)
    assert flat(pages) == expected


@given(st.sampled_from(SHAPES), slot_sizes)
def test_single_slots_are_where_runs_put_them(shape: tuple[int, ...], slot_size: int) -> None:
    memory = SlotMemory(shared_pages(shape), slot_size)
    memory.copy_in(0, run(0, memory.size, slot_size))
    slots = memory.slots()
    assert [one.tobytes() for one in slots] == [slot(i, slot_size) for i in range(memory.size)]
    for number, one in enumerate(slots):
        one[:] = slot(number + 3, slot_size)
    assert memory.copy_out(0, memory.size) == run(3, memory.size, slot_size)


def test_slots_lie_across_scattered_pages_only() -> None:
    def split(shape: tuple[int, ...]) -> int:
        return sum(isinstance(one, SplitSlot) for one in SlotMemory(shared_pages(shape), 112).slots())

    assert split((4,)) == 0
    # Slot 36 begins where the second page does; the two later borders cut a slot each.
    assert split((1, 1, 1, 1)) == 2


def test_the_header_alone_is_cleared() -> None:
    pages = shared_pages((1,), filler=0xAA)
    SlotMemory(pages, 112).clear_header()
    assert flat(pages) == bytes(64) + b"\xaa" * (4096 - 64)


@pytest.mark.parametrize(
    ("pages", "what"),
    [
        ([], "number of ring pages"),
        ([memoryview(bytearray(17 * 4096))], "number of ring pages"),
        ([memoryview(bytearray(4096))] * 17, "number of ring pages"),
        ([memoryview(bytes(4096))], "ring page"),
        ([memoryview(bytearray(8192))[::2]], "ring page"),
        ([memoryview(bytearray(4095))], "bytes of a ring page"),
        ([memoryview(bytearray(0))], "bytes of a ring page"),
    ],
)
def test_what_is_no_ring_page_is_refused(pages: list[memoryview], what: str) -> None:
    with pytest.raises(RingMisuse) as caught:
        SlotMemory(pages, 112)
    assert caught.value.what == what


@pytest.mark.parametrize("slot_size", [0, -1, 4097, 4096])
def test_a_slot_size_that_leaves_no_slot_is_refused(slot_size: int) -> None:
    with pytest.raises(RingMisuse, match="slot_size"):
        SlotMemory(shared_pages(), slot_size)


def test_released_memory_can_be_unmapped() -> None:
    mapping = mmap.mmap(-1, 8192)
    with memoryview(mapping) as whole:
        memory = SlotMemory([whole[:4096], whole[4096:]], 112)
        memory.release()
    mapping.close()


def test_detached_memory_refuses_everything() -> None:
    detached = Detached()
    with pytest.raises(RingMisuse, match="detached"):
        detached[0]
    with pytest.raises(RingMisuse, match="detached"):
        detached[0] = 1
    with pytest.raises(RingMisuse, match="detached"):
        detached.copy_out(0, 1)
