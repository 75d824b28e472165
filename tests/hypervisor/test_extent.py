"""Extents whose pages come and go: content, views, descriptors, and what another process can do with a page."""

import errno
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import F_ADD_SEALS, F_SEAL_WRITE, fcntl
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest

from hypervisor import extent as extent_module
from hypervisor.errors import BadFrame, OutOfMemory
from hypervisor.extent import EXTENT_FRAMES, PAGE_SIZE, Extent
from hypervisor.fixed_mapping import MappingFailed
from hypervisor.sealed_memfd import F_SEAL_FUTURE_WRITE
from hypervisor.shared_page import SharedPage
from tests.hypervisor.strangers import Stranger

MODES = pytest.mark.parametrize("readonly", [False, True], ids=["writable", "read-only"])


@pytest.fixture
def extent() -> Iterator[Extent]:
    extent = Extent(256, EXTENT_FRAMES)
    for offset in range(4):
        extent.view[offset * PAGE_SIZE : (offset + 1) * PAGE_SIZE] = bytes([offset + 1]) * PAGE_SIZE
    yield extent
    extent.close()


def page_of(extent: Extent, offset: int) -> memoryview:
    return extent.view[offset * PAGE_SIZE : (offset + 1) * PAGE_SIZE]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def content(page: SharedPage, size: int = PAGE_SIZE) -> bytes:
    return os.pread(page.fd, size, 0)


# Moving


@MODES
def test_a_page_moves_with_its_content_and_every_view_follows(extent: Extent, readonly: bool) -> None:
    before = page_of(extent, 1)
    wide = extent.view[: 3 * PAGE_SIZE]
    page = extent.share(1, readonly=readonly)
    assert page.seal()
    assert content(page) == bytes(before) == b"\2" * PAGE_SIZE
    before[5] = 77
    wide[PAGE_SIZE + 6] = 78
    assert content(page, 8) == b"\2\2\2\2\2\x4d\x4e\2"
    assert bytes(page_of(extent, 1)[:8]) == content(page, 8)
    assert os.pread(extent.fd, 8, PAGE_SIZE) == b"\2" * 8


@MODES
def test_a_page_moves_back_with_its_content(extent: Extent, readonly: bool) -> None:
    view = page_of(extent, 1)
    page = extent.share(1, readonly=readonly)
    page.seal()
    kept = os.dup(page.fd)
    view[:4] = b"late"
    extent.unshare(1)
    view[4:8] = b"r on"
    assert bytes(view[:8]) == os.pread(extent.fd, 8, PAGE_SIZE) == b"later on"
    assert os.pread(kept, 8, 0) == b"late\2\2\2\2"
    os.close(kept)
    assert extent.shared == {}
    assert not is_open(page.fd)
    extent.unshare(1)


def test_the_neighbours_stay_where_they_are(extent: Extent) -> None:
    extent.share(1, readonly=False)
    page_of(extent, 0)[-1] = 9
    page_of(extent, 2)[0] = 8
    assert os.pread(extent.fd, 1, PAGE_SIZE - 1) + os.pread(extent.fd, 1, 2 * PAGE_SIZE) == b"\t\x08"


def test_the_first_and_the_last_page_can_move(extent: Extent) -> None:
    for offset in (0, EXTENT_FRAMES - 1):
        page_of(extent, offset)[0] = 5
        assert content(extent.share(offset, readonly=True), 1) == b"\5"
        extent.unshare(offset)
        assert page_of(extent, offset)[0] == 5


# Modes


def test_sharing_again_in_the_same_mode_changes_nothing(extent: Extent) -> None:
    page = extent.share(1, readonly=True)
    page.seal()
    page.mappings[7] = 1
    assert extent.share(1, readonly=True) is page


def test_a_page_that_nobody_was_given_changes_its_mode_in_place(extent: Extent) -> None:
    page = extent.share(1, readonly=True)
    assert extent.share(1, readonly=False) is page
    assert page.seal()
    page_of(extent, 1)[0] = 1
    os.pwrite(page.fd, b"\3", 0)
    assert page_of(extent, 1)[0] == 3


@MODES
def test_a_sealed_page_changes_its_mode_by_moving(extent: Extent, readonly: bool) -> None:
    page = extent.share(1, readonly=readonly)
    page.seal()
    kept = os.dup(page.fd)
    after = extent.share(1, readonly=not readonly)
    assert after is not page
    assert extent.shared == {1: after}
    page_of(extent, 1)[0] = 9
    assert (content(after, 2), os.pread(kept, 2, 0)) == (b"\t\2", b"\2\2")
    os.close(kept)
    assert not is_open(page.fd)


@MODES
def test_a_page_that_is_mapped_keeps_its_mode(extent: Extent, readonly: bool) -> None:
    page = extent.share(1, readonly=readonly)
    page.mappings[7] = 1
    with pytest.raises(BadFrame) as refused:
        extent.share(1, readonly=not readonly)
    assert refused.value.mfn == 257
    assert extent.shared == {1: page}
    assert page.readonly is readonly


def test_an_owner_that_seals_its_page_otherwise_is_noticed(extent: Extent) -> None:
    page = extent.share(1, readonly=True)
    page.seal()
    page.readonly = False
    assert not page.seal()


# Ends


def test_what_is_scrubbed_is_shared_no_more_and_reads_as_zeros(extent: Extent) -> None:
    pages = [extent.share(offset, readonly=offset == 1) for offset in range(4)]
    kept = [os.dup(page.fd) for page in pages]
    for page in pages:
        page.seal()
    extent.scrub(1, 2)
    assert sorted(extent.shared) == [0, 3]
    assert [page_of(extent, offset)[0] for offset in range(4)] == [1, 0, 0, 4]
    page_of(extent, 1)[0] = 9
    assert [os.pread(fd, 1, 0) for fd in kept] == [b"\1", b"\2", b"\3", b"\4"]
    for fd in kept:
        os.close(fd)


def test_closing_closes_all_descriptors_and_views_stay(extent: Extent) -> None:
    fds = [extent.fd, *(extent.share(offset, readonly=True).fd for offset in range(3))]
    extent.close()
    assert not any(map(is_open, fds))
    assert page_of(extent, 2)[0] == 3
    extent.close()


def test_an_extent_that_is_forgotten_closes_its_descriptors() -> None:
    extent = Extent(256, EXTENT_FRAMES)
    fds = [extent.fd, extent.share(3, readonly=False).fd]
    del extent
    gc.collect()
    assert not any(map(is_open, fds))


def test_nothing_keeps_the_mapping_from_being_closed(extent: Extent) -> None:
    extent.share(1, readonly=False)
    extent.view.release()
    extent.map.close()


# Limits


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = getrlimit(RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    setrlimit(RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_nothing_changes(extent: Extent) -> None:
    shared = extent.share(2, readonly=True)
    shared.seal()
    with no_more_descriptors():
        for offset, readonly in ((1, False), (2, False)):
            with pytest.raises(OutOfMemory, match="memfd"):
                extent.share(offset, readonly=readonly)
        assert extent.shared == {2: shared}
        assert [page_of(extent, offset)[0] for offset in range(4)] == [1, 2, 3, 4]
        extent.unshare(2)
    assert page_of(extent, 2)[0] == 3


def test_without_mappings_nothing_changes(extent: Extent, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = []

    def refuse(fd: int, offset: int, address: int, length: int) -> None:
        fds.append(fd)
        raise MappingFailed(errno.ENOMEM, address, length)

    shared = extent.share(2, readonly=True)
    monkeypatch.setattr(extent_module, "map_shared", refuse)
    with pytest.raises(OutOfMemory, match="mapping"):
        extent.share(1, readonly=False)
    with pytest.raises(MappingFailed):
        extent.unshare(2)
    assert extent.shared == {2: shared}
    assert content(shared, 1) == b"\3"
    assert not is_open(fds[0])


def test_without_descriptors_there_is_no_extent() -> None:
    with no_more_descriptors(), pytest.raises(OSError, match="Too many open files"):
        Extent(256, EXTENT_FRAMES)


# Others


def test_nobody_can_change_the_size_of_an_extent_or_seal_it_further(extent: Extent) -> None:
    for resize in (0, PAGE_SIZE, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(extent.fd, resize)
    for more in (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE):
        with pytest.raises(PermissionError):
            fcntl(extent.fd, F_ADD_SEALS, more)


def test_a_process_shares_a_writable_page_and_no_more(extent: Extent) -> None:
    view = page_of(extent, 1)
    page = extent.share(1, readonly=False)
    page.seal()
    with Stranger(page.fd) as stranger:
        view[:5] = b"hello"
        assert stranger.read(6) == b"hello\2"
        stranger.put(b"HE")
        assert bytes(view[:5]) == b"HEllo"
        assert set(stranger.ask("resizes").values()) == {"EPERM"}
        assert stranger.ask("behind") == [signal.SIGBUS, ""]
        extent.unshare(1)
        view[:5] = b"again"
        assert stranger.read(5) == b"HEllo"
        stranger.put(b"dead")
        assert bytes(view[:5]) == b"again"


def test_a_process_only_reads_a_read_only_page(extent: Extent) -> None:
    view = page_of(extent, 1)
    page = extent.share(1, readonly=True)
    page.seal()
    with Stranger(page.fd) as stranger:
        view[:5] = b"hello"
        assert stranger.read(5) == b"hello"
        outcomes = stranger.ask("writes")
        assert "done" not in outcomes.values(), outcomes
        assert set(stranger.ask("resizes").values()) == {"EPERM"}
        assert stranger.ask("behind") == [signal.SIGBUS, ""]
        assert bytes(view) == b"hello" + b"\2" * (PAGE_SIZE - 5)
        extent.scrub(1, 1)
        view[:5] = b"again"
        assert stranger.read(5) == b"hello"


def test_the_attempts_work_on_a_page_that_is_not_protected(extent: Extent) -> None:
    """Or the test before would show nothing."""
    page = extent.share(1, readonly=False)
    page.seal()
    with Stranger(page.fd) as stranger:
        outcomes = stranger.ask("writes")
        assert outcomes.pop("/proc/self/mem") == "EIO"  # never for shared mappings
        assert set(outcomes.values()) == {"done"}
