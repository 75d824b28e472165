import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import RingMisuse
from ringbuffers.protocols.blkif import Request, Response, Segment, unpack_request
from ringbuffers.protocols.blkif_runs import (
    RW1,
    ResponseFields,
    pack_response_run,
    pack_rw1,
    pack_rw1_run,
    unpack_response_run,
    unpack_rw1_run,
)

u8, u16 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
requests = st.tuples(st.sampled_from([0, 1]), st.just(1), u16, u64, u64, u32, u8, u8)
responses = st.tuples(u64, u8, st.integers(-(2**15), 2**15 - 1))


@given(st.lists(requests, max_size=8))
def test_runs_of_requests_are_the_slots_of_single_ones(run: list[RW1]) -> None:
    packed = pack_rw1_run(run)
    assert list(unpack_rw1_run(packed)) == run
    slots = [packed[i : i + 112] for i in range(0, len(packed), 112)]
    singles = [
        Request(op, handle, number, sector, (Segment(gref, first, last),))
        for op, _, handle, number, sector, gref, first, last in run
    ]
    assert slots == [single.pack() for single in singles]
    assert [unpack_request(slot) for slot in slots] == singles
    assert slots == [pack_rw1(op, *rest) for op, _, *rest in run]


@given(st.lists(responses, max_size=8))
def test_runs_of_responses_are_the_slots_of_single_ones(run: list[ResponseFields]) -> None:
    packed = pack_response_run(run)
    assert packed == b"".join(Response(*fields).pack() for fields in run)
    assert list(unpack_response_run(packed)) == run


@given(st.lists(st.binary(min_size=112, max_size=112), max_size=5))
def test_any_slots_can_be_walked_and_show_operation_count_and_id(slots: list[bytes]) -> None:
    for slot, fields in zip(slots, unpack_rw1_run(b"".join(slots)), strict=True):
        assert fields[:2] == (slot[0], slot[1])
        assert fields[3] == unpack_request(slot).id


@pytest.mark.parametrize("length", [1, 16, 111, 113])
def test_what_is_no_run_of_slots_is_refused(length: int) -> None:
    with pytest.raises(RingMisuse, match="bytes of a run"):
        unpack_rw1_run(bytes(length))
    with pytest.raises(RingMisuse, match="bytes of a run"):
        unpack_response_run(bytes(length))


def test_fields_out_of_range_are_our_own_fault() -> None:
    with pytest.raises(RingMisuse):
        pack_rw1(0, 0, 2**64, 0, 0, 0, 0)
    with pytest.raises(RingMisuse):
        pack_response_run([(0, 0, 0), (0, 0, -40000)])
