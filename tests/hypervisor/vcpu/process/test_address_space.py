"""A process's guest-physical address space: what is said to be there is there, and nothing else."""

import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable, Iterator, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hypervisor.fixed_mapping import MappingFailed
from hypervisor.sealed_memfd import SEALED_READONLY, seal, sealed_memfd
from hypervisor.vcpu.process.address_space import (
    ADDRESS_BITS,
    PAGE_SIZE,
    AddressSpace,
    PageNotPresent,
    SharedPages,
    _joined,
)
from hypervisor.vcpu.process.wire import ShareResult
from tests.hypervisor.vcpu.process.wired import unmap

PAGES = 16


class Backed(AddressSpace):
    """With extent 0, of which page n begins with byte n + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = sealed_memfd(PAGES * PAGE_SIZE)
        for number in range(PAGES):
            os.pwrite(self.fd, bytes([number + 1]), number * PAGE_SIZE)
        self.add_extent(0, os.dup(self.fd))

    def close(self) -> None:
        for fd in (self.fd, *self._extents.values()):
            os.close(fd)
        unmap(self._base, 1 << ADDRESS_BITS)


@pytest.fixture
def space() -> Iterator[Backed]:
    space = Backed()
    yield space
    space.close()


def a_page(first: int, *, readonly: bool = False) -> int:
    fd = sealed_memfd(PAGE_SIZE, 0)
    os.pwrite(fd, bytes([first]), 0)
    if readonly:
        assert seal(fd, SEALED_READONLY)
    return fd


def died_by(child: Callable[[], object]) -> int:
    """The signal that ends a process which does this; 0: none does."""
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_ram_is_where_it_is_said_to_be(space: Backed) -> None:
    space.map_ram(0, 4, 0, 8)
    space.map_ram(4, 2, 0, 0)
    assert [space.page(pfn)[0] for pfn in range(6)] == [9, 10, 11, 12, 1, 2]
    assert space.count_from_zero() == 6
    assert len(space.span(0, 6)) == 6 * PAGE_SIZE
    space.page(5)[1] = 77
    assert os.pread(space.fd, 2, PAGE_SIZE) == bytes([2, 77])
    with pytest.raises(PageNotPresent):
        space.page(6)
    with pytest.raises(PageNotPresent):
        space.span(5, 2)


def test_the_highest_frame_there_can_be(space: Backed) -> None:
    last = (1 << 32) - 1
    space.map_ram(last, 1, 0, 3)
    assert space.page(last)[0] == 4
    with pytest.raises(PageNotPresent):
        space.page(last + 1)


def test_pages_of_others_can_be_read_only(space: Backed) -> None:
    space.map_page(3, a_page(33, readonly=True), writable=False)
    space.map_page(4, a_page(44), writable=True)
    assert space.page(3).readonly
    assert not space.page(4).readonly
    assert space.span(3, 2).readonly
    assert [space.page(pfn)[0] for pfn in (3, 4)] == [33, 44]
    with pytest.raises(MappingFailed):
        space.map_page(5, a_page(55, readonly=True), writable=True)


def test_what_takes_the_place_of_something_takes_all_of_it(space: Backed) -> None:
    """A page of somebody's over RAM is not writable as RAM was, and the other way round."""
    space.map_ram(0, 4, 0, 0)
    space.map_page(2, a_page(99, readonly=True), writable=False)
    assert space.page(2).readonly
    assert space.count_from_zero() == 2
    with pytest.raises(PageNotPresent):
        space.span(0, 3)
    space.map_ram(1, 2, 0, 5)
    assert not space.page(2).readonly
    assert [space.page(pfn)[0] for pfn in range(4)] == [1, 6, 7, 4]
    assert space.count_from_zero() == 4
    space.unmap(2, 1)
    with pytest.raises(PageNotPresent):
        space.page(2)


def test_views_stay_valid_when_a_page_moves(space: Backed) -> None:
    space.map_ram(0, 2, 0, 0)
    view = space.page(1)
    space.move_page(1, a_page(88))
    assert view[0] == 88
    assert space.count_from_zero() == 2
    space.move_page(2, a_page(89))
    assert space.count_from_zero() == 3
    space.map_ram(1, 1, 0, 1)
    assert view[0] == 2


def test_descriptors_are_used_up(space: Backed) -> None:
    before = len(os.listdir("/proc/self/fd"))
    space.map_page(1, a_page(1), writable=True)
    space.move_page(2, a_page(1))
    space.add_extent(7, a_page(1))
    space.drop_extent(7)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(KeyError):
        space.map_ram(0, 1, 7, 0)


def test_what_is_not_there_ends_the_process_that_touches_it(space: Backed) -> None:
    space.map_ram(0, 1, 0, 0)
    space.map_page(1, a_page(1, readonly=True), writable=False)
    view = space._view

    def write_read_only() -> None:
        ctypes.memset(space._base + PAGE_SIZE, 1, 1)

    assert died_by(lambda: view[0]) == 0
    assert died_by(lambda: view[2 * PAGE_SIZE]) == signal.SIGSEGV
    assert died_by(write_read_only) == signal.SIGSEGV
    space.unmap(0, 1)
    assert died_by(lambda: view[0]) == signal.SIGSEGV


def test_a_word(space: Backed) -> None:
    space.map_ram(0, 2, 0, 0)
    space.page(1)[8:12] = (0xDEADBEEF).to_bytes(4, "little")
    assert space.word(PAGE_SIZE + 8) == 0xDEADBEEF
    with pytest.raises(PageNotPresent):
        space.word(2 * PAGE_SIZE)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.booleans())))
def test_runs_are_kept_as_a_set_of_pages_would_be(changes: list[tuple[int, int, bool]]) -> None:
    space = AddressSpace.__new__(AddressSpace)
    space._ram, space._foreign = [], {}
    pages: set[int] = set()
    for first, count, is_there in changes:
        if is_there:
            space._is_ram(first, first + count)
            pages |= {*range(first, first + count)}
        else:
            space._drop_run(first, count)
            pages -= {*range(first, first + count)}
        assert {page for run in space._ram for page in range(*run)} == pages
        assert space._ram == _joined(space._ram)


class Asked:
    """What was asked of the hypervisor, which answers by what the peer is."""

    def __init__(self) -> None:
        self.peers = {1: ShareResult.SHARED, 2: ShareResult.NO_PROCESS}
        self.shared: list[tuple[int, list[int], bool]] = []
        self.reclaimed: list[tuple[int, int]] = []

    def share(self, domid: int, pfns: Sequence[int], readonly: bool) -> ShareResult:
        self.shared.append((domid, list(pfns), readonly))
        return self.peers.get(domid, ShareResult.NOBODY)

    def reclaim(self, pfn: int, count: int) -> None:
        self.reclaimed.append((pfn, count))


def test_sharing_is_asked_for_once(space: Backed) -> None:
    asked = Asked()
    pages = SharedPages(space, asked.share, asked.reclaim)
    pages.share(1, [4, 5], readonly=False)
    pages.share(1, [5, 4, 6], readonly=False)
    pages.share(1, [6], readonly=True)
    assert asked.shared == [(1, [4, 5], False), (1, [6], False), (1, [6], True)]
    pages.reclaim(3, 2)
    pages.reclaim(3, 2)
    assert asked.reclaimed == [(4, 1)]
    pages.share(1, [4], readonly=False)
    assert len(asked.shared) == 4


def test_a_peer_that_is_no_process_is_asked_about_once_and_one_that_is_not_there_again(space: Backed) -> None:
    asked = Asked()
    pages = SharedPages(space, asked.share, asked.reclaim)
    for pfn in range(3):
        pages.share(2, [pfn], readonly=False)
        pages.share(3, [pfn], readonly=False)
    assert [domid for domid, _, _ in asked.shared] == [2, 3, 3, 3]
    asked.peers[3] = ShareResult.SHARED
    pages.share(3, [0, 1], readonly=False)
    assert asked.shared[-1] == (3, [0, 1], False)
    pages.reclaim(0, 3)
    assert asked.reclaimed == [(0, 1), (1, 1)]
