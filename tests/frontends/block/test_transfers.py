"""Transfers are cut into requests that together are exactly the transfer."""

from hypothesis import given
from hypothesis import strategies as st

from frontends.block.buffers import PageBuffer
from frontends.block.transfers import Transfer, packed_discard, packed_flush
from ringbuffers.protocols import blkif


def buffers(first: int, count: int) -> list[PageBuffer]:
    return [PageBuffer(gref, memoryview(bytearray(4096))) for gref in range(first, first + count)]


@given(
    st.sampled_from([blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE, blkif.BLKIF_OP_WRITE_BARRIER]),
    st.integers(0, 1 << 40),
    st.integers(1, 8 * 600),
    st.integers(0, 1000),
)
def test_requests_are_the_transfer(operation: int, sector: int, sectors: int, max_indirect: int) -> None:
    pages = buffers(1000, -(-sectors // 8))
    transfer = Transfer(operation, sector, sectors, pages, max_indirect=max_indirect)
    lists = buffers(9000, transfer.lists)
    named = {page.gref: page for page in lists}
    at, grefs = sector, []
    used = []
    for request_id, pack in enumerate(transfer.packers(lists)):
        request = blkif.unpack_request(pack(request_id))
        assert request.id == request_id
        if isinstance(request, blkif.IndirectRequest):
            assert operation in (0, 1)
            assert request.indirect_op == operation
            assert blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST < request.nr_segments <= min(max_indirect, 512)
            (gref,) = request.indirect_grefs
            used.append(gref)
            segments = blkif.unpack_indirect_segments(named[gref].view, request.nr_segments)
        else:
            assert isinstance(request, blkif.Request)
            assert request.operation == operation
            segments = request.segments
        assert request.sector_number == at
        for segment in segments:
            assert segment.first_sect == 0
            grefs.append(segment.gref)
            at += segment.last_sect + 1
    assert at == sector + sectors
    assert grefs == [page.gref for page in pages]
    assert len(set(used)) == len(used) == transfer.lists


def test_commands() -> None:
    assert blkif.unpack_request(packed_flush(3)(7)) == blkif.Request(3, 0, 7, 0, ())
    for secure in (False, True):
        found = blkif.unpack_request(packed_discard(16, 8, secure=secure)(9))
        assert found == blkif.DiscardRequest(int(secure), 0, 9, 16, 8)
