"""Who may reach which page: grants between domains in this process and isolated ones, and their ends."""

import os
from collections.abc import Iterator

import pytest

from hypervisor import page_sharing
from hypervisor.abi.grant_table import GNTST_general_error, GNTST_okay
from hypervisor.errors import BadFrame, BadGpfn, Busy, InvalidArgument, OutOfMemory
from hypervisor.extent import Extent
from hypervisor.guest_memory import PageKind
from hypervisor.machine import Machine
from hypervisor.page_sharing import MAX_COUNT, Importer, reclaim_pages, share_pages
from hypervisor.shared_page import SharedPage
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import WINDOW, GrantGuest
from tests.hypervisor.strangers import Stranger

REF = 8


class Four:
    """dom0 and a guest in this process, two isolated ones. Pages say whose they are."""

    def __init__(self) -> None:
        self.machine: Machine = new_machine()[0]
        self.dom0, self.near, self.far, self.other = self.guests = [
            GrantGuest(self.machine) for _ in range(4)
        ]
        for guest in (self.far, self.other):
            guest.domain.isolated = True
            guest.domain.memory.importer = Importer(guest.domain)
        for guest in self.guests:
            for pfn in range(1, 8):
                guest.domain.memory.write(pfn << 12, b"%d.%d" % (guest.domid, pfn))

    def mfn(self, guest: GrantGuest, pfn: int) -> int:
        mfn = guest.domain.memory.mfn(pfn)
        assert mfn is not None
        return mfn

    def extent(self, guest: GrantGuest) -> Extent:
        return self.machine.frames.extent_at(self.mfn(guest, 1))

    def shared(self, guest: GrantGuest, pfn: int) -> SharedPage | None:
        mfn = self.mfn(guest, pfn)
        extent = self.machine.frames.extent_at(mfn)
        return extent.shared.get(mfn - extent.mfn)

    def shared_pfns(self, guest: GrantGuest) -> dict[int, SharedPage]:
        """Which pages of RAM lie apart."""
        found = {pfn: self.shared(guest, pfn) for pfn in range(8) if guest.domain.memory.mfn(pfn) is not None}
        return {pfn: page for pfn, page in found.items() if page is not None}

    def page(self, guest: GrantGuest, pfn: int) -> SharedPage:
        page = self.shared(guest, pfn)
        assert page is not None
        return page


@pytest.fixture
def four() -> Iterator[Four]:
    four = Four()
    yield four
    assert four.machine.audit() == []
    assert not four.machine.faults


def content(page: SharedPage) -> bytes:
    return os.pread(page.fd, 3, 0)


# Owners in this process


@pytest.mark.parametrize("readonly", [False, True])
def test_a_page_moves_out_for_the_first_and_back_after_the_last(four: Four, readonly: bool) -> None:
    for guest, reference in ((four.far, REF), (four.other, REF + 1)):
        four.near.grant(reference, guest.domid, 3, readonly=readonly)
    first = four.far.map(four.near.domid, REF, readonly=readonly)
    page = four.page(four.near, 3)
    assert (page.readonly, page.mappers, content(page)) == (readonly, 1, b"1.3")
    second = four.other.map(four.near.domid, REF + 1, readonly=readonly)
    assert four.page(four.near, 3) is page
    assert page.mappings == {four.far.domid: 1, four.other.domid: 1}
    assert four.machine.audit() == []
    four.near.domain.memory.write(3 << 12, b"new")
    assert content(page) == b"new"
    assert four.far.unmap(first.handle) == GNTST_okay
    assert four.page(four.near, 3) is page
    assert four.other.unmap(second.handle) == GNTST_okay
    assert four.shared(four.near, 3) is None
    assert four.near.domain.memory.read(3 << 12, 3) == b"new"


def test_what_is_granted_read_only_cannot_be_written_by_any_way(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3, readonly=True)
    share_pages(four.other.domain, four.far.domid, [3], readonly=True)
    four.other.grant(REF, four.far.domid, 3, readonly=True)
    for place, owner in enumerate((four.near, four.other)):
        assert four.far.map(owner.domid, REF, WINDOW + place, readonly=True).status == GNTST_okay
        with Stranger(four.page(owner, 3).fd) as stranger:
            assert "done" not in stranger.ask("writes").values()


def test_domains_in_this_process_need_no_sharing(four: Four) -> None:
    four.near.grant(REF, 0, 3)
    four.far.grant(REF, 0, 3)
    assert four.dom0.map(four.near.domid, REF).status == GNTST_okay
    assert four.dom0.map(four.far.domid, REF, WINDOW + 1).status == GNTST_okay
    assert four.shared(four.near, 3) is four.shared(four.far, 3) is None


def test_every_mapping_counts(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    handles = [four.far.map(four.near.domid, REF, WINDOW + n, readonly=n == 2).handle for n in range(3)]
    assert four.page(four.near, 3).mappings == {four.far.domid: 3}
    for n, handle in enumerate(handles):
        assert four.page(four.near, 3).mappers == 3 - n
        four.far.unmap(handle, WINDOW + n)
    assert four.shared(four.near, 3) is None


@pytest.mark.parametrize("first", [False, True])
def test_both_modes_at_once_are_refused(four: Four, first: bool) -> None:
    four.near.grant(REF, four.far.domid, 3, readonly=first)
    four.near.grant(REF + 1, four.other.domid, 3, readonly=not first)
    handle = four.far.map(four.near.domid, REF, readonly=first).handle
    refused = four.other.map(four.near.domid, REF + 1, readonly=not first)
    assert refused.status == GNTST_general_error
    assert four.near.in_use(REF + 1) == ""
    assert four.machine.audit() == []
    four.far.unmap(handle)
    assert four.other.map(four.near.domid, REF + 1, readonly=not first).status == GNTST_okay
    assert four.page(four.near, 3).readonly is not first


def test_who_reads_only_cannot_write_as_well(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    four.far.map(four.near.domid, REF, readonly=True)
    assert four.far.map(four.near.domid, REF, WINDOW + 1).status == GNTST_general_error


def test_a_foreign_page_of_the_control_domain_is_no_exception(four: Four) -> None:
    memory = four.far.domain.memory
    info = four.near.domain.shared_info_mfn
    memory.map_foreign(WINDOW, info, True, PageKind.FOREIGN)
    extent = four.machine.frames.extent_at(info)
    assert extent.shared[info - extent.mfn].mappers == 1
    four.near.domain.shared_info[5] = 9
    assert os.pread(extent.shared[info - extent.mfn].fd, 1, 5) == b"\t"
    memory.unmap_foreign(WINDOW)
    assert extent.shared == {}


def test_a_domains_own_special_frames_are_not_shared(four: Four) -> None:
    four.far.domain.memory.map_foreign(WINDOW, four.far.domain.shared_info_mfn, True, PageKind.SPECIAL)
    assert four.extent(four.far).shared == {}
    four.far.domain.memory.unmap_foreign(WINDOW)


def test_a_mapping_that_fails_leaves_nothing_shared(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    four.far.map(four.near.domid, REF)
    assert four.far.map(four.near.domid, REF, WINDOW).status == GNTST_general_error  # not vacant
    assert four.page(four.near, 3).mappers == 1
    assert four.far.map(four.near.domid, REF, 1 << 40).status == GNTST_general_error
    assert four.page(four.near, 3).mappers == 1


# Isolated owners


def test_what_its_owner_has_not_shared_cannot_be_mapped(four: Four) -> None:
    four.far.grant(REF, four.other.domid, 3)
    assert four.other.map(four.far.domid, REF).status == GNTST_general_error
    assert four.far.in_use(REF) == ""
    with pytest.raises(BadFrame, match="has not shared"):
        four.other.domain.memory.map_foreign(WINDOW, four.mfn(four.far, 3), True)


def test_an_isolated_owner_shares_grants_and_reclaims(four: Four) -> None:
    moved = share_pages(four.far.domain, four.other.domid, [3, 4, 3], readonly=False)
    assert moved == {3: four.page(four.far, 3), 4: four.page(four.far, 4)}
    assert content(four.page(four.far, 4)) == b"2.4"
    assert share_pages(four.far.domain, four.other.domid, [3], readonly=False) == {}
    four.far.grant(REF, four.other.domid, 3)
    handle = four.other.map(four.far.domid, REF).handle
    assert four.page(four.far, 3).mappers == 1
    with pytest.raises(Busy):
        reclaim_pages(four.far.domain, 1, 7)
    assert sorted(four.shared_pfns(four.far)) == [3, 4]
    four.other.unmap(handle)
    assert four.page(four.far, 3).mappers == 0
    assert four.machine.audit() == []
    assert reclaim_pages(four.far.domain, 1, 7) == [3, 4]
    assert reclaim_pages(four.far.domain, 1, 7) == []
    assert four.extent(four.far).shared == {}


def test_only_who_was_named_may_map(four: Four) -> None:
    four.far.grant(REF, four.other.domid, 3)
    third = GrantGuest(four.machine)
    third.domain.isolated = True
    share_pages(four.far.domain, third.domid, [3], readonly=False)
    assert four.other.map(four.far.domid, REF).status == GNTST_general_error
    assert share_pages(four.far.domain, four.other.domid, [3], readonly=False) == {}
    assert four.other.map(four.far.domid, REF).status == GNTST_okay


def test_what_is_shared_read_only_is_not_mapped_writable(four: Four) -> None:
    share_pages(four.far.domain, four.other.domid, [3], readonly=True)
    four.far.grant(REF, four.other.domid, 3)
    assert four.other.map(four.far.domid, REF).status == GNTST_general_error
    assert four.other.map(four.far.domid, REF, readonly=True).status == GNTST_okay


def test_what_is_shared_writable_may_be_mapped_read_only(four: Four) -> None:
    share_pages(four.far.domain, four.other.domid, [3], readonly=False)
    four.far.grant(REF, four.other.domid, 3)
    assert four.other.map(four.far.domid, REF, readonly=True).status == GNTST_okay


def test_the_mode_changes_when_nobody_maps_the_page(four: Four) -> None:
    share_pages(four.far.domain, four.other.domid, [3], readonly=True)
    before = four.page(four.far, 3)
    assert share_pages(four.far.domain, four.other.domid, [3], readonly=False) == {}
    four.far.grant(REF, four.other.domid, 3)
    handle = four.other.map(four.far.domid, REF).handle
    with pytest.raises(BadFrame, match="other mode"):
        share_pages(four.far.domain, four.other.domid, [4, 3], readonly=True)
    assert list(four.shared_pfns(four.far)) == [3]
    four.other.unmap(handle)
    moved = share_pages(four.far.domain, four.other.domid, [3], readonly=True)
    assert moved == {3: four.page(four.far, 3)}
    assert moved[3] is not before


def test_who_knew_a_page_does_not_see_what_it_holds_for_the_next(four: Four) -> None:
    third = GrantGuest(four.machine)
    third.domain.isolated = True
    share_pages(four.far.domain, four.other.domid, [3], readonly=False)
    four.far.grant(REF, four.other.domid, 3)
    handle = four.other.map(four.far.domid, REF).handle
    with Stranger(four.page(four.far, 3).fd) as stranger:
        assert stranger.read(3) == b"2.3"
        four.other.unmap(handle)
        moved = share_pages(four.far.domain, third.domid, [3], readonly=False)
        assert moved is not None
        assert list(moved) == [3]
        four.far.domain.memory.write(3 << 12, b"not")
        assert stranger.read(3) == b"2.3"
        assert content(moved[3]) == b"not"


@pytest.mark.parametrize("domid", [0, 1, 2, 77, 0x7FF0])
def test_who_is_not_isolated_needs_no_sharing(four: Four, domid: int) -> None:
    """dom0, a coroutine, the owner itself, nobody, DOMID_SELF."""
    assert share_pages(four.far.domain, domid, [3, 1 << 70, -1], readonly=False) is None
    assert share_pages(four.near.domain, four.far.domid, [3], readonly=False) is None
    assert four.extent(four.far).shared == {}


def test_only_own_ordinary_ram_is_shared(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    four.far.map(four.near.domid, REF)
    memory = four.far.domain.memory
    memory.map_foreign(WINDOW + 1, four.far.domain.shared_info_mfn, True, PageKind.SPECIAL)
    for pfn in (WINDOW, WINDOW + 1, 8, -1, 1 << 52, 1 << 70):
        with pytest.raises(BadGpfn) as refused:
            share_pages(four.far.domain, four.other.domid, [3, pfn], readonly=False)
        assert refused.value.gpfn == pfn
        assert four.extent(four.far).shared == {}
    assert reclaim_pages(four.far.domain, WINDOW, 2) == []
    assert four.page(four.near, 3).mappers == 1


def test_how_many_pages_one_call_takes(four: Four) -> None:
    with pytest.raises(InvalidArgument):
        share_pages(four.far.domain, four.other.domid, [3] * (MAX_COUNT + 1), readonly=False)
    for count in (-1, MAX_COUNT + 1, 1 << 64):
        with pytest.raises(InvalidArgument):
            reclaim_pages(four.far.domain, 0, count)
    assert reclaim_pages(four.far.domain, -5, MAX_COUNT) == []


def test_a_page_that_its_owner_maps_as_a_grant_is_not_shared_and_the_reverse(four: Four) -> None:
    four.far.grant(REF, four.far.domid, 3)
    handle = four.far.map(four.far.domid, REF).handle
    with pytest.raises(BadFrame, match="by its owner"):
        share_pages(four.far.domain, four.other.domid, [3], readonly=False)
    assert four.far.unmap(handle) == GNTST_okay
    share_pages(four.far.domain, four.other.domid, [3], readonly=False)
    assert four.far.map(four.far.domid, REF).status == GNTST_general_error


def test_an_owner_that_seals_its_page_in_another_way_is_refused(four: Four) -> None:
    share_pages(four.far.domain, four.other.domid, [3], readonly=False)
    page = four.page(four.far, 3)
    page.readonly = True
    page.seal()
    page.readonly = False
    four.far.grant(REF, four.other.domid, 3)
    assert four.other.map(four.far.domid, REF).status == GNTST_general_error
    assert page.mappers == 0


# Ends


def test_a_mapper_that_dies_leaves_nothing_shared(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    four.near.grant(REF + 1, four.far.domid, 4, readonly=True)
    four.far.map(four.near.domid, REF)
    four.far.map(four.near.domid, REF + 1, WINDOW + 1, readonly=True)
    four.far.destroy()
    assert four.extent(four.near).shared == {}
    assert four.near.end(REF)


def test_an_owner_that_dies_leaves_its_page_to_who_maps_it(four: Four) -> None:
    four.near.grant(REF, four.far.domid, 3)
    share_pages(four.other.domain, four.far.domid, [4, 5], readonly=False)
    four.other.grant(REF, four.far.domid, 4)
    handles = [
        four.far.map(four.near.domid, REF).handle,
        four.far.map(four.other.domid, REF, WINDOW + 1).handle,
    ]
    pages = four.page(four.near, 3), four.page(four.other, 4)
    spare = four.page(four.other, 5)
    four.near.destroy()
    four.other.destroy()
    assert four.machine.audit() == []
    assert [content(page) for page in pages] == [b"1.3", b"3.4"]
    assert four.far.domain.memory.read((WINDOW + 1) << 12, 3) == b"3.4"
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(spare.fd)
    for n, handle in enumerate(handles):
        assert four.far.unmap(handle, WINDOW + n) == GNTST_okay
    assert [domid for domid in (1, 3) if domid in four.machine.domains] == []


def test_a_shared_page_that_is_given_up_is_its_mappers_until_the_end(four: Four) -> None:
    share_pages(four.far.domain, four.other.domid, [3, 4], readonly=False)
    four.far.grant(REF, four.other.domid, 3)
    handle = four.other.map(four.far.domid, REF).handle
    extent, page = four.extent(four.far), four.page(four.far, 3)
    for pfn in (3, 4):
        mfn, _ = four.far.domain.memory.remove_ram(pfn, 1)
        four.far.domain.reservation.give_up(mfn)
    assert list(extent.shared.values()) == [page]
    assert content(page) == b"2.3"
    four.other.unmap(handle)
    assert extent.shared == {}
    four.far.domain.populate(20, 2)
    assert four.far.domain.memory.read(20 << 12, 8192) == bytes(8192)


# Limits


def test_no_owner_takes_all_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 descriptors 32 may be for shared pages: 16 for the first owner, 8 for the next."""
    monkeypatch.setattr(page_sharing, "getrlimit", lambda _: (64, 64))
    machine, _ = new_machine()
    owner, rival, peer = [GrantGuest(machine, pages=64) for _ in range(3)]
    for guest in (owner, rival, peer):
        guest.domain.isolated = True
    with pytest.raises(OutOfMemory):
        share_pages(owner.domain, peer.domid, range(17), readonly=False)
    moved = share_pages(owner.domain, peer.domid, range(16), readonly=False)
    assert moved is not None
    assert len(moved) == 16
    assert share_pages(owner.domain, peer.domid, range(16), readonly=True) == {}
    with pytest.raises(OutOfMemory) as refused:
        share_pages(owner.domain, peer.domid, [20], readonly=False)
    assert refused.value.left == 0
    with pytest.raises(OutOfMemory):
        share_pages(rival.domain, peer.domid, range(9), readonly=False)
    assert share_pages(rival.domain, peer.domid, range(8), readonly=False)
    assert machine.audit() == []
    for guest in (owner, rival):
        guest.destroy()


def fail_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than `count` pages can be moved out from now on."""
    left = [count]
    renew = Extent.renew

    def refuse(extent: Extent, offset: int, *, readonly: bool) -> SharedPage:
        left[0] -= 1
        if left[0] < 0:
            raise OutOfMemory("a memfd for a shared page", 1, 0)
        return renew(extent, offset, readonly=readonly)

    monkeypatch.setattr(Extent, "renew", refuse)


def test_when_one_page_cannot_move_none_does(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    share_pages(four.far.domain, four.other.domid, [5], readonly=False)
    page = four.page(four.far, 5)
    page.seal()
    fail_after(2, monkeypatch)
    with pytest.raises(OutOfMemory):
        share_pages(four.far.domain, four.other.domid, [5, 3, 4], readonly=True)
    assert four.shared_pfns(four.far) == {5: page}
    assert not page.readonly
    assert not four.far.domain.stopped


def test_an_owner_whose_pages_have_moved_for_nothing_crashes(
    four: Four, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_pages(four.far.domain, four.other.domid, [5, 6], readonly=False)
    for pfn in (5, 6):
        four.page(four.far, pfn).seal()
    fail_after(1, monkeypatch)
    with pytest.raises(OutOfMemory):
        share_pages(four.far.domain, four.other.domid, [5, 6], readonly=True)
    assert four.far.domain.stopped


def test_a_grant_that_cannot_be_shared_for_want_of_descriptors_is_not_mapped(
    four: Four, monkeypatch: pytest.MonkeyPatch
) -> None:
    four.near.grant(REF, four.far.domid, 3)
    fail_after(0, monkeypatch)
    assert four.far.map(four.near.domid, REF).status == GNTST_general_error
    assert four.near.in_use(REF) == ""
    assert four.machine.audit() == []
