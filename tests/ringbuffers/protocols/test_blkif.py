import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import RingMisuse
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif import (
    DiscardRequest,
    IndirectRequest,
    MalformedRequest,
    Request,
    Response,
    Segment,
    UnknownRequest,
    indirect_pages,
    pack_indirect_segments,
    pack_segments,
    unpack_indirect_segments,
    unpack_request,
    unpack_segments,
)

u8, u16 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
segments = st.builds(Segment, u32, u8, u8)
some_segments = st.lists(segments, min_size=1, max_size=11).map(tuple)
transfers = st.builds(Request, st.sampled_from([0, 1]), u16, u64, u64, some_segments)
flushes = st.builds(
    Request, st.sampled_from([2, 3]), u16, u64, u64, st.lists(segments, max_size=11).map(tuple)
)
discards = st.builds(DiscardRequest, u8, u16, u64, u64, u64)
indirects = st.integers(1, blkif.MAX_INDIRECT_SEGMENTS).flatmap(
    lambda count: st.builds(
        IndirectRequest,
        st.sampled_from([0, 1]),
        st.just(count),
        u64,
        u64,
        u16,
        st.tuples(*[u32] * indirect_pages(count)),
    )
)


@given(st.one_of(transfers, flushes, discards, indirects))
def test_requests_come_back(request: Request | DiscardRequest | IndirectRequest) -> None:
    slot = request.pack()
    assert len(slot) == 112
    assert unpack_request(slot) == request
    assert slot[0] == request.operation


@given(st.builds(Response, u64, u8, st.integers(-(2**15), 2**15 - 1)))
def test_responses_come_back_and_fill_their_slot(response: Response) -> None:
    slot = response.pack()
    assert len(slot) == 112
    assert Response.unpack(slot) == response


def test_a_request_lies_as_in_the_header() -> None:
    slot = Request(
        1, 0xCA00, 0x1122334455667788, 0x99AABBCC, (Segment(8, 0, 7), Segment(0xABCD, 3, 4))
    ).pack()
    assert slot.hex(" ", 8) == (
        "010200ca00000000 8877665544332211 ccbbaa9900000000 0800000000070000 cdab000003040000"
        + " 0000000000000000" * 9
    )


def test_a_discard_lies_as_in_the_header() -> None:
    slot = DiscardRequest(blkif.BLKIF_DISCARD_SECURE, 0xCA00, 5, 6, 7).pack()
    assert slot[:32].hex(" ", 8) == "050100ca00000000 0500000000000000 0600000000000000 0700000000000000"
    assert slot[32:] == bytes(80)


def test_an_indirect_request_lies_as_in_the_header() -> None:
    slot = IndirectRequest(1, 0x201, 5, 6, 0xCA00, (7, 8)).pack()
    assert slot[:40].hex(" ", 8) == (
        "0601010200000000 0500000000000000 0600000000000000 00ca000007000000 0800000000000000"
    )
    assert slot[40:] == bytes(72)


def test_a_response_lies_as_in_the_header() -> None:
    slot = Response(0x1122334455667788, 3, blkif.BLKIF_RSP_EOPNOTSUPP).pack()
    assert slot == bytes.fromhex("8877665544332211 0300feff00000000") + bytes(96)


@given(st.binary(min_size=112, max_size=112))
def test_nothing_that_a_frontend_writes_raises(slot: bytes) -> None:
    request = unpack_request(slot)
    assert request.operation == slot[0]
    assert request.id == int.from_bytes(slot[8:16], "little")
    assert isinstance(request, UnknownRequest) == (slot[0] in {4, *range(7, 256)})
    if isinstance(request, Request):
        assert len(request.segments) == slot[1] <= 11


@pytest.mark.parametrize(
    ("slot", "what", "found"),
    [
        ([0, 0], "nr_segments", 0),
        ([1, 0], "nr_segments", 0),
        ([0, 12], "nr_segments", 12),
        ([1, 255], "nr_segments", 255),
        ([2, 12], "nr_segments", 12),
        ([3, 12], "nr_segments", 12),
        ([6, 0, 0, 0], "nr_segments", 0),
        ([6, 1, 1, 16], "nr_segments", 4097),
        ([6, 1, 255, 255], "nr_segments", 65535),
        ([6, 2, 1, 0], "indirect_op", 2),
        ([6, 6, 1, 0], "indirect_op", 6),
    ],
)
def test_counts_out_of_bounds_are_told_not_raised(slot: list[int], what: str, found: int) -> None:
    request = unpack_request(bytes(slot).ljust(8, b"\0") + (77).to_bytes(8, "little") + bytes(96))
    assert request == MalformedRequest(slot[0], 77, what, found)


@pytest.mark.parametrize("operation", [2, 3])
def test_a_flush_or_barrier_needs_no_segments(operation: int) -> None:
    assert unpack_request(bytes([operation]).ljust(112, b"\0")) == Request(operation, 0, 0, 0, ())


@pytest.mark.parametrize("length", [0, 16, 111, 113, 224])
def test_what_is_no_slot_is_refused(length: int) -> None:
    with pytest.raises(RingMisuse, match="bytes of a slot"):
        unpack_request(bytes(length))
    with pytest.raises(RingMisuse, match="bytes of a slot"):
        Response.unpack(bytes(length))


@pytest.mark.parametrize(
    "wrong",
    [
        Request(256, 0, 0, 0, ()),
        Request(0, 65536, 0, 0, ()),
        Request(0, 0, 2**64, 0, ()),
        Request(0, 0, 0, -1, ()),
        Request(0, 0, 0, 0, (Segment(2**32, 0, 0),)),
        Request(0, 0, 0, 0, (Segment(0, 0, 256),)),
        Request(0, 0, 0, 0, (Segment(0, 0, 0),) * 12),
        DiscardRequest(0, 0, 0, 0, 2**64),
        IndirectRequest(0, 65536, 0, 0, 0, (1,)),
        IndirectRequest(0, 1, 0, 0, 0, (1,) * 9),
        Response(0, 0, 40000),
    ],
)
def test_fields_out_of_range_are_our_own_fault(
    wrong: Request | DiscardRequest | IndirectRequest | Response,
) -> None:
    with pytest.raises(RingMisuse):
        wrong.pack()


@given(st.lists(segments, max_size=512))
def test_segments_travel_in_indirect_pages(listed: list[Segment]) -> None:
    page = memoryview(bytearray(b"\xaa" * 4096))
    pack_indirect_segments(page, listed)
    assert list(unpack_indirect_segments(page, len(listed))) == listed
    assert bytes(page[len(listed) * 8 :]) == b"\xaa" * (4096 - len(listed) * 8)


def test_an_indirect_page_holds_512_segments() -> None:
    page = memoryview(bytearray(4096))
    with pytest.raises(RingMisuse, match="number of segments"):
        pack_indirect_segments(page, [Segment(0, 0, 0)] * 513)
    with pytest.raises(RingMisuse, match="number of segments"):
        unpack_indirect_segments(page, 513)
    with pytest.raises(RingMisuse, match="number of segments"):
        unpack_segments(bytes(8), 2)
    assert [indirect_pages(n) for n in (1, 512, 513, 4096)] == [1, 1, 2, 8]


def test_padding_of_segments_is_zero() -> None:
    assert pack_segments([(0xFFFFFFFF, 0xFF, 0xFF)]) == b"\xff" * 6 + bytes(2)


@pytest.mark.parametrize(
    ("first", "last", "sectors", "fits"),
    [
        (0, 7, 8, True),
        (7, 7, 8, True),
        (1, 0, 8, False),
        (0, 8, 8, False),
        (255, 255, 8, False),
        (0, 1, 1, False),
    ],
)
def test_a_segment_lies_inside_its_page(first: int, last: int, sectors: int, fits: bool) -> None:
    assert Segment(1, first, last).fits(sectors) == fits
