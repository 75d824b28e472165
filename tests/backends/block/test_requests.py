"""Judging requests: what passes lies within the disk, whatever was asked; what does not is refused as Linux does."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from backends.block.requests import Discard, Flush, Listed, Refusal, Transfer, judge, judge_segments
from ringbuffers.protocols import blkif

SECTORS = 2048
u64 = st.integers(0, 2**64 - 1)
near = st.one_of(st.integers(0, SECTORS + 16), st.integers(2**64 - 16, 2**64 - 1), u64)
segments = st.lists(
    st.builds(blkif.Segment, st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9)),
    min_size=1,
    max_size=11,
).map(tuple)


def disk(*, read_only: bool = False, sector_size: int = 512) -> OpenedStore:
    config = MemoryStoreConfig(size=ByteSize(SECTORS * 512), sector_size=sector_size)
    store = MemoryStore(config, read_only=read_only)
    store.open()
    return OpenedStore(store)


DISKS = st.sampled_from([disk(), disk(read_only=True), disk(sector_size=4096)])
direct = st.builds(blkif.Request, st.integers(0, 3), st.integers(0, 65535), u64, near, segments)
discards = st.builds(blkif.DiscardRequest, st.integers(0, 3), st.integers(0, 65535), u64, near, near)
indirect = st.builds(
    blkif.IndirectRequest,
    st.integers(0, 1),
    st.integers(1, 4096),
    u64,
    near,
    st.integers(0, 65535),
    st.just((1, 2)),
)
any_slot = st.binary(min_size=112, max_size=112).map(blkif.unpack_request)


@given(st.one_of(direct, discards, indirect, any_slot), DISKS)
def test_what_passes_lies_within_the_disk(request: blkif.AnyRequest, target: OpenedStore) -> None:
    judged = judge(request, target, 256)
    assert judged.id == request.id
    match judged:
        case Transfer(segments=found):
            assert 0 <= judged.offset < judged.offset + judged.length <= SECTORS * 512
            assert judged.offset % target.sector_size == judged.length % target.sector_size == 0
            assert judged.length == sum(last - first + 1 for _, first, last in found) * 512
            assert all(first <= last <= 7 for _, first, last in found)
            assert not (judged.writes and target.read_only)
            assert judged.writes is (request.operation != blkif.BLKIF_OP_READ)
            assert judged.durable is (request.operation > 1)
            assert judged.barrier is (request.operation == blkif.BLKIF_OP_WRITE_BARRIER)
        case Discard():
            assert 0 <= judged.offset < judged.offset + judged.length <= SECTORS * 512
            assert not target.read_only
        case Flush():
            assert not target.read_only
        case Listed():
            assert judged.nr_segments <= 256
            assert judged.operation in (0, 1)
        case Refusal():
            assert judged.status in (blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP)
            assert judged.reason


@given(direct)
def test_what_is_refused_is_wrong(request: blkif.Request) -> None:
    """The other way round: a refused transfer breaks one of the rules."""
    judged = judge(request, disk(), 256)
    sectors = sum(last - first + 1 for _, first, last in request.segments)
    bad_segment = any(not first <= last <= 7 for _, first, last in request.segments)
    wrong = bad_segment or request.sector_number + sectors > SECTORS
    assert isinstance(judged, Refusal) is wrong
    if wrong:
        assert judged.status == blkif.BLKIF_RSP_ERROR  # type: ignore[union-attr]


@given(
    near,
    st.lists(
        st.builds(blkif.Segment, st.just(1), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=256
    ),
)
def test_listed_segments_are_judged_like_direct_ones(sector: int, found: list[blkif.Segment]) -> None:
    listed = Listed(7, 1, True, sector, len(found), (1,))
    sectors = sum(last - first + 1 for _, first, last in found)
    wrong = any(not first <= last <= 7 for _, first, last in found) or sector + sectors > SECTORS
    judged = judge_segments(listed, found, disk())
    assert isinstance(judged, Refusal) is wrong
    assert (judged.id, judged.operation) == (7, 1)


def test_refusals_say_why() -> None:
    target = disk()
    page = (blkif.Segment(1, 0, 7),)
    cases: list[tuple[blkif.AnyRequest, str]] = [
        (blkif.Request(0, 0, 1, SECTORS, page), "beyond the end"),
        (blkif.Request(1, 0, 1, 0, (blkif.Segment(1, 3, 2),)), "segment outside its page"),
        (blkif.DiscardRequest(1, 0, 1, 0, 8), "secure discard is not offered"),
        (blkif.DiscardRequest(0, 0, 1, 0, 0), "no sectors"),
        (blkif.UnknownRequest(9, 1), "unknown operation"),
        (blkif.MalformedRequest(0, 1, "nr_segments", 12), "nr_segments out of range"),
        (blkif.IndirectRequest(0, 300, 1, 0, 0, (1,)), "too many indirect segments"),
    ]
    for request, reason in cases:
        judged = judge(request, target, 256)
        assert isinstance(judged, Refusal)
        assert judged.reason == reason
    refused = judge(blkif.Request(1, 0, 1, 0, page), disk(read_only=True), 256)
    assert isinstance(refused, Refusal)
    assert refused.reason == "write to a read-only disk"
    odd = judge(blkif.Request(0, 0, 1, 4, (blkif.Segment(1, 0, 7),)), disk(sector_size=4096), 256)
    assert isinstance(odd, Refusal)
    assert odd.reason == "not a multiple of the sector size"
