"""Columns say what the codec of single slots says."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import (
    READ_HEAD,
    WRITE_HEAD,
    is_whole_page,
    pack_page_list,
    pack_page_requests,
    pack_successes,
    page_word,
    set_status,
    unpack_responses,
    whole_page_list,
    whole_page_requests,
)
from ringbuffers.protocols.blkif_runs import pack_rw1_run, unpack_response_run

SLOT = blkif.REQUEST_SLOT_SIZE
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
slots = st.binary(min_size=SLOT, max_size=SLOT)
page_requests = st.lists(
    st.tuples(st.sampled_from([READ_HEAD, WRITE_HEAD]), u64, u64, u32, st.integers(1, 8)),
    min_size=1,
    max_size=40,
)


@given(page_requests)
def test_requests_of_a_page(requests: list[tuple[int, int, int, int, int]]) -> None:
    heads, ids, sectors, grefs, sizes = zip(*requests)
    run = pack_page_requests(heads, ids, sectors, [page_word(g, n) for g, n in zip(grefs, sizes)])
    assert run == pack_rw1_run([(h & 0xFF, 1, 0, i, s, g, 0, n - 1) for h, i, s, g, n in requests])
    found = whole_page_requests(run)
    if any(size < 8 for size in sizes):
        assert found is None
    else:
        assert found is not None
        assert list(found.operations) == [head & 0xFF for head in heads]
        assert list(found.sectors) == list(sectors)
        assert list(found.grefs) == list(grefs)


@given(st.lists(slots, min_size=1, max_size=8))
def test_only_whole_pages_pass_for_whole_pages(run: list[bytes]) -> None:
    for slot in run:
        request = blkif.unpack_request(slot)
        whole = (
            isinstance(request, blkif.Request)
            and request.operation in (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE)
            and [segment[1:] for segment in request.segments] == [(0, 7)]
        )
        assert is_whole_page(slot) is whole
        assert (whole_page_requests(slot) is not None) is whole
    assert (whole_page_requests(b"".join(run)) is not None) is all(map(is_whole_page, run))


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize(
    "request_",
    [
        blkif.Request(operation, 0, 1, 8, segments)
        for operation, segments in (
            (2, (blkif.Segment(7, 0, 7),)),
            (3, (blkif.Segment(7, 0, 7),)),
            (0, ()),
            (0, (blkif.Segment(7, 0, 7),) * 2),
            (1, (blkif.Segment(7, 1, 7),)),
            (1, (blkif.Segment(7, 0, 6),)),
            (1, (blkif.Segment(7, 0, 8),)),
        )
    ],
)
def test_one_other_request_among_whole_pages(place: int, request_: blkif.Request) -> None:
    slots = [blkif.Request(number % 2, 0, number, 8, (blkif.Segment(7, 0, 7),)).pack() for number in range(8)]
    assert whole_page_requests(b"".join(slots)) is not None
    slots[place] = request_.pack()
    assert whole_page_requests(b"".join(slots)) is None
    assert not is_whole_page(slots[place])


@given(st.lists(st.tuples(u32, st.integers(1, 8)), max_size=512))
def test_a_list_of_pages(pages: list[tuple[int, int]]) -> None:
    listed = pack_page_list([page_word(gref, sectors) for gref, sectors in pages])
    assert listed == blkif.pack_segments([(gref, 0, sectors - 1) for gref, sectors in pages])
    found = whole_page_list(listed)
    assert found == (
        None if any(sectors < 8 for _, sectors in pages) else array("I", [gref for gref, _ in pages])
    )


@given(st.binary(max_size=64).map(lambda junk: junk[: len(junk) // 8 * 8]), st.integers(0, 4))
def test_only_a_list_of_whole_pages_passes_for_one(junk: bytes, whole: int) -> None:
    listed = junk + pack_page_list([page_word(7)] * whole)
    segments = blkif.unpack_segments(listed, len(listed) // 8)
    found = whole_page_list(listed)
    if all(segment[1:] == (0, 7) for segment in segments):
        assert found == array("I", [segment.gref for segment in segments])
    else:
        assert found is None


@given(st.lists(slots, min_size=1, max_size=8), st.data())
def test_successes(run: list[bytes], data: st.DataObject) -> None:
    answers = pack_successes(b"".join(run))
    statuses = [0] * len(run)
    for index in data.draw(st.sets(st.integers(0, len(run) - 1))):
        statuses[index] = data.draw(st.sampled_from([-1, -2]))
        set_status(answers, index, statuses[index])
    requests = [blkif.unpack_request(slot) for slot in run]
    expected = [(request.id, request.operation, status) for request, status in zip(requests, statuses)]
    assert list(unpack_response_run(bytes(answers))) == expected
    assert bytes(answers) == b"".join(blkif.Response(*response).pack() for response in expected)


@given(st.lists(st.tuples(u64, st.integers(0, 255), st.sampled_from([0, -1, -2])), min_size=1, max_size=40))
def test_responses(responses: list[tuple[int, int, int]]) -> None:
    run = b"".join(blkif.Response(*response).pack() for response in responses)
    ids, codes = unpack_responses(run)
    assert list(ids) == [request_id for request_id, _, _ in responses]
    for code, (_, operation, status) in zip(codes, responses):
        assert (code == operation) is (status == 0)
