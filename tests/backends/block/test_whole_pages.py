"""The quick path takes nothing that the slow one would not have taken, and does the same with it."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from backends.block.pages import GrantedPages, PageBudget
from backends.block.requests import Listed, Transfer, judge, judge_segments
from backends.block.service import Service
from backends.block.stats import BlockStats
from backends.block.whole_pages import WholePages
from kernel.grants import Grants
from ringbuffers.protocols import blkif
from tests.backends.block.granting import FakeGrants
from tests.backends.block.stores import GatedStore

SECTORS = 256
MAPPED = 10  # of 16 pages
sectors = st.one_of(
    st.integers(0, SECTORS + 8), st.sampled_from([SECTORS - 8, SECTORS - 7, 2**63, 2**64 - 1])
)
requests = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        sectors,
        st.integers(0, 15),
        st.sampled_from([(0, 7), (0, 7), (1, 7), (0, 6)]),
    ),
    min_size=1,
    max_size=6,
)


def opened(*, read_only: bool, sector_size: int) -> OpenedStore:
    store = MemoryStore(
        MemoryStoreConfig(size=ByteSize(SECTORS * 512), sector_size=sector_size), read_only=read_only
    )
    store.open()
    return OpenedStore(store)


def mapped_pages() -> tuple[FakeGrants, GrantedPages]:
    grants = FakeGrants(16)
    pages = GrantedPages(cast(Grants, grants), 1, PageBudget(), 64)
    pages.lease([(gref, False) for gref in range(MAPPED)]).release()
    return grants, pages


@given(requests, st.booleans(), st.sampled_from([512, 4096]))
def test_it_takes_what_would_be_taken_and_is_mapped(
    found: list[tuple[int, int, int, tuple[int, int]]], read_only: bool, sector_size: int
) -> None:
    disk = opened(read_only=read_only, sector_size=sector_size)
    _, pages = mapped_pages()
    whole = WholePages(Service(disk, BlockStats()), pages)
    slots = [
        blkif.Request(operation, 0, index, sector, (blkif.Segment(gref, *part),))
        for index, (operation, sector, gref, part) in enumerate(found)
    ]
    quick = whole.find(b"".join(slot.pack() for slot in slots)) is not None
    taken = [judge(slot, disk, 256) for slot in slots]
    assert quick is all(
        isinstance(judged, Transfer) and judged.length == 4096 and judged.segments[0].gref < MAPPED
        for judged in taken
    )


def test_what_it_leaves_to_the_slow_path() -> None:
    """One reason at a time."""
    _, pages = mapped_pages()

    def found(
        operation: int, sector: int, gref: int, *, read_only: bool = False, sector_size: int = 512
    ) -> bool:
        disk = opened(read_only=read_only, sector_size=sector_size)
        slot = blkif.Request(operation, 0, 1, sector, (blkif.Segment(gref, 0, 7),)).pack()
        return WholePages(Service(disk, BlockStats()), pages).find(slot) is not None

    assert found(0, 8, 0)
    assert found(1, SECTORS - 8, MAPPED - 1)
    assert found(0, 8, 0, read_only=True)
    assert found(1, 8, 0, sector_size=4096)
    assert not found(1, 8, 0, read_only=True)
    assert not found(0, 4, 0, sector_size=4096)
    assert not found(1, SECTORS - 7, 0)
    assert not found(0, 2**64 - 1, 0)
    assert not found(0, 8, MAPPED)
    assert not found(2, 8, 0)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 31), st.integers(0, MAPPED - 1)), min_size=1)
)
def test_it_moves_the_right_bytes_in_order(found: list[tuple[int, int, int]]) -> None:
    disk = opened(read_only=False, sector_size=512)
    grants, pages = mapped_pages()
    stats = BlockStats()
    whole = WholePages(Service(disk, stats), pages)
    memory = [bytes([gref]) * 4096 for gref in range(MAPPED)]
    for gref, content in enumerate(memory):
        grants.memory[gref][:] = content
    content = [bytes(4096)] * 32
    slots = [
        blkif.Request(operation, 0, 1000 + index, place * 8, (blkif.Segment(gref, 0, 7),)).pack()
        for index, (operation, place, gref) in enumerate(found)
    ]
    answers = whole.serve(b"".join(slots))
    for operation, place, gref in found:
        if operation:
            content[place] = memory[gref]
        else:
            memory[gref] = content[place]
    assert [bytes(grants.memory[gref]) for gref in range(MAPPED)] == memory
    disk_bytes = bytearray(SECTORS * 512)
    disk.store.read(0, [memoryview(disk_bytes)])
    assert disk_bytes == b"".join(content)
    assert answers is not None
    assert bytes(answers) == b"".join(
        blkif.Response(1000 + index, operation, 0).pack() for index, (operation, _, _) in enumerate(found)
    )
    assert stats.bytes_read + stats.bytes_written == 4096 * len(found)


def test_a_store_that_waits_is_never_served_here() -> None:
    store = GatedStore(MemoryStoreConfig(size=ByteSize(1 << 20)))
    store.sectors = 2048
    disk = OpenedStore(store)
    _, pages = mapped_pages()
    slot = blkif.Request(0, 0, 1, 0, (blkif.Segment(0, 0, 7),)).pack()
    assert WholePages(Service(disk, BlockStats()), pages).find(slot) is None


LIST = 15
lists = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([(0, 7), (0, 7), (0, 7), (1, 7), (0, 6), (7, 0)])),
    min_size=1,
    max_size=24,
)


def large(operation: int, sector: int, count: int, grefs: tuple[int, ...] = (LIST,)) -> Listed:
    return Listed(77, operation, bool(operation), sector, count, grefs)


@given(st.sampled_from([0, 1]), sectors, lists, st.booleans(), st.sampled_from([512, 4096]))
def test_a_list_is_taken_if_it_would_be_taken_and_is_mapped(
    operation: int,
    sector: int,
    listed: list[tuple[int, tuple[int, int]]],
    list_is_mapped: bool,
    sector_size: int,
) -> None:
    disk = opened(read_only=False, sector_size=sector_size)
    grants, pages = mapped_pages()
    if list_is_mapped:
        pages.lease([(LIST, True)]).release()
    segments = [blkif.Segment(gref, *part) for gref, part in listed]
    blkif.pack_indirect_segments(grants.memory[LIST], segments)
    request = large(operation, sector, len(segments))
    judged = judge_segments(request, segments, disk)
    quick = WholePages(Service(disk, BlockStats()), pages).serve_list(request) is not None
    assert quick is (
        list_is_mapped
        and isinstance(judged, Transfer)
        and judged.length == 4096 * len(segments)
        and all(gref < MAPPED or gref == LIST for gref, _ in listed)
    )


def test_a_list_may_fill_two_pages_and_is_read_no_further() -> None:
    store = MemoryStore(MemoryStoreConfig(size=ByteSize(600 * 4096)))
    store.open()
    disk = OpenedStore(store)
    grants, pages = mapped_pages()
    grants.memory[0][:] = blkif.pack_segments([(3, 0, 7)] * 512)
    grants.memory[1][:] = blkif.pack_segments([(4, 0, 7)] * 88 + [(5, 1, 0)] * 424)
    grants.memory[3][:], grants.memory[4][:] = b"3" * 4096, b"4" * 4096
    stats = BlockStats()
    assert WholePages(Service(disk, stats), pages).serve_list(large(1, 0, 600, (0, 1))) == 0
    found = bytearray(600 * 4096)
    store.read(0, [memoryview(found)])
    assert found == b"3" * 512 * 4096 + b"4" * 88 * 4096
    assert stats.bytes_written == 600 * 4096


@given(st.lists(st.integers(0, MAPPED - 1), min_size=1, max_size=32), st.integers(0, 31))
def test_a_large_read_fills_the_right_pages(grefs: list[int], place: int) -> None:
    if place + len(grefs) > 32:
        place = 32 - len(grefs)
    disk = opened(read_only=False, sector_size=512)
    content = [bytes([number + 1]) * 4096 for number in range(32)]
    disk.store.write(0, [memoryview(page) for page in content])
    grants, pages = mapped_pages()
    pages.lease([(LIST, True)]).release()
    blkif.pack_indirect_segments(grants.memory[LIST], [(gref, 0, 7) for gref in grefs])
    assert WholePages(Service(disk, BlockStats()), pages).serve_list(large(0, place * 8, len(grefs))) == 0
    expected = {gref: content[place + index] for index, gref in enumerate(grefs)}
    assert {gref: bytes(grants.memory[gref]) for gref in expected} == expected


def test_a_list_is_left_to_the_slow_path_by_a_store_that_waits_and_its_failure_is_counted() -> None:
    grants, pages = mapped_pages()
    pages.lease([(LIST, True)]).release()
    blkif.pack_indirect_segments(grants.memory[LIST], [(0, 0, 7)] * 12)
    gated = GatedStore(MemoryStoreConfig(size=ByteSize(SECTORS * 512)))
    MemoryStore.open(gated)
    assert WholePages(Service(OpenedStore(gated), BlockStats()), pages).serve_list(large(0, 0, 12)) is None

    class Failing(MemoryStore):
        def read(self, offset: int, buffers: object) -> None:
            raise OSError(5, "broken")

    store = Failing(MemoryStoreConfig(size=ByteSize(SECTORS * 512)))
    store.open()
    stats = BlockStats()
    assert WholePages(Service(OpenedStore(store), stats), pages).serve_list(large(0, 0, 12)) == -1
    assert stats.errors


def test_a_list_that_came_before_is_not_found_when_its_pages_are_gone() -> None:
    grants = FakeGrants(16)
    pages = GrantedPages(cast(Grants, grants), 1, PageBudget(), 4)
    pages.lease([(gref, True) for gref in (0, 1, LIST)]).release()
    blkif.pack_indirect_segments(grants.memory[LIST], [(0, 0, 7), (1, 0, 7)])
    disk = opened(read_only=False, sector_size=512)
    whole = WholePages(Service(disk, BlockStats()), pages)
    for place in range(2):
        grants.memory[0][:] = bytes([place + 1]) * 4096
        assert whole.serve_list(large(1, place * 16, 2)) == 0
    found = bytearray(3 * 4096)
    disk.store.read(0, [memoryview(found)])
    assert found == b"\1" * 4096 + bytes(4096) + b"\2" * 4096
    pages.lease([(gref, False) for gref in (2, 3, 4)]).release()  # which need the place of the others
    pages.lease([(LIST, True)]).release()
    assert not {0, 1} & grants.mapped.keys()
    assert whole.serve_list(large(1, 0, 2)) is None
    pages.lease([(0, True), (1, True)]).release()
    pages.close()
    assert whole.serve_list(large(1, 0, 2)) is None
    assert not grants.mapped


def test_few_lists_are_kept() -> None:
    grants, pages = mapped_pages()
    pages.lease([(LIST, True)]).release()
    whole = WholePages(Service(opened(read_only=False, sector_size=512), BlockStats()), pages)
    for number in range(1000):
        listed = [(number >> shift & 7, 0, 7) for shift in (0, 3, 6, 9)]
        blkif.pack_indirect_segments(grants.memory[LIST], listed)
        assert whole.serve_list(large(1, 0, 4)) == 0
    assert 0 < len(pages.lists) <= 64
