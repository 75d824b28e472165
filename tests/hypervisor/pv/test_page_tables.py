"""Paging of a native domain as its hypercalls show it: what is mapped, pinned, refused, counted."""

import pytest

from hypervisor.abi.errno import (
    XEN_EACCES,
    XEN_EBUSY,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hypervisor.abi.mmu import (
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_MARK_SUPER,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
)
from hypervisor.abi.xen import DOMID_IO, DOMID_SELF
from hypervisor.errors import BadFrame, GuestFault
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.entries import BadEntry
from hypervisor.pv.frames import Kind
from hypervisor.pv.layout import FOREIGN_FIRST, MFN_END, MONITOR_FIRST, RAM_FIRST, SHARED_INFO_MFN
from tests.hypervisor.pv.paging import (
    ARGUMENT,
    BASE,
    DOMID,
    FIRST_FREE,
    L1,
    L2,
    L3,
    L4,
    PAGE,
    RW,
    USER,
    XEN_ENTRIES,
    P,
    PagedGuest,
    entry,
    machine_address,
    mfn,
    va,
)

A = FIRST_FREE
B = FIRST_FREE + 1
C = FIRST_FREE + 2
D = FIRST_FREE + 3
GUEST_KERNEL = 1 << 52
GLOBAL = 1 << 8
LOW = 0x40_0000


@pytest.fixture
def guest() -> PagedGuest:
    return PagedGuest().start()


# What the builder leaves


def test_first_tables_are_validated_and_pinned(guest: PagedGuest) -> None:
    assert guest.counted(L4) == ("L4", 2, 1)
    assert guest.counted(L3) == ("L3", 1, 1)
    assert guest.counted(L1) == ("L1", 1, 1)
    assert guest.counted(A) == ("WRITABLE", 1, 0)
    assert guest.vcpu.kernel_root == guest.cpu.root == mfn(L4)
    assert guest.frames.pinned == {mfn(L4)}


def test_entries_are_for_user_mode_and_remember_whose_they_were() -> None:
    guest = PagedGuest()
    guest.build()
    guest.set(L1, A, entry(A, P | RW | USER))
    guest.page_tables.set_initial_root(guest.vcpu, mfn(L4))
    assert guest.get(L1, A) == entry(A, P | RW | USER | GLOBAL)
    assert guest.get(L1, B) == entry(B, P | RW | USER | GUEST_KERNEL)
    assert guest.get(L2, 0) == entry(L1, P | RW | USER)
    assert guest.get(L4, 511) == entry(L3, P | RW | USER | 0x20)
    guest.check()


def test_hypervisors_slots_are_its_own(guest: PagedGuest) -> None:
    assert {slot: guest.get(L4, slot) for slot in XEN_ENTRIES} == XEN_ENTRIES
    assert guest.get(L4, 257) == 0
    assert guest.update([(machine_address(L4, 256), entry(L3))]) == -XEN_EINVAL
    assert guest.update([(machine_address(L4, 271), 0)]) == -XEN_EINVAL


def test_what_a_guest_wrote_into_the_hypervisors_slots_is_overwritten() -> None:
    guest = PagedGuest()
    guest.build()
    for slot in range(256, 272):
        guest.set(L4, slot, MONITOR_FIRST + 1 << 12 | P | RW | USER)
    guest.start()
    assert guest.get(L4, 256) == XEN_ENTRIES[256]
    assert guest.get(L4, 271) == 0


@pytest.mark.parametrize("page", [L4, L3, L2, L1])
def test_builder_that_maps_a_table_writable_is_refused(page: int) -> None:
    guest = PagedGuest()
    guest.build()
    guest.set(L1, page, entry(page))
    with pytest.raises(BadEntry) as refused:
        guest.page_tables.set_initial_root(guest.vcpu, mfn(L4))
    assert refused.value.errno == XEN_EBUSY
    assert guest.vcpu.kernel_root == 0
    guest.check()


# Reading and writing by virtual address


def test_read_and_write_across_pages(guest: PagedGuest) -> None:
    data = bytes(range(256)) * 40
    guest.page_tables.write(mfn(L4), va(A) + 100, data)
    assert guest.page_tables.read(mfn(L4), va(A) + 100, len(data)) == data
    assert guest.memory.frame(mfn(A))[100:PAGE].tobytes() == data[: PAGE - 100]
    assert guest.memory.frame(mfn(B))[:].tobytes() == data[PAGE - 100 : 2 * PAGE - 100]


def test_nothing_is_written_unless_all_can_be(guest: PagedGuest) -> None:
    guest.protect(B)
    with pytest.raises(GuestFault):
        guest.page_tables.write(mfn(L4), va(A) + 4000, b"x" * 200)
    assert not any(guest.memory.frame(mfn(A)))
    with pytest.raises(GuestFault):
        guest.page_tables.check_writable(mfn(L4), va(A), PAGE + 1)
    guest.page_tables.check_writable(mfn(L4), va(A), PAGE)
    with pytest.raises(GuestFault):
        guest.page_tables.contiguous(mfn(L4), va(B), 8)
    assert len(guest.page_tables.contiguous(mfn(L4), va(A) + 4000, 200)) == 96


@pytest.mark.parametrize(
    "address",
    [
        0,
        0x0000_7FFF_FFFF_F000,
        0x0000_8000_0000_0000,
        0xFFFF_7FFF_FFFF_F000,
        0xFFFF_8000_0000_0000,
        0xFFFF_87FF_FFFF_F000,
        1 << 64,
        BASE + 64 * PAGE,
    ],
)
def test_what_is_not_mapped_or_not_the_guests_is_a_fault(guest: PagedGuest, address: int) -> None:
    with pytest.raises(GuestFault) as fault:
        guest.page_tables.read(mfn(L4), address, 8)
    assert fault.value.domid == DOMID
    assert guest.page_tables.translate(mfn(L4), address, False) == -1
    assert guest.page_tables.entry(mfn(L4), address) == 0


def test_read_only_at_any_level_is_read_only(guest: PagedGuest) -> None:
    assert guest.update([(machine_address(L3, 510), entry(L2, P))]) == 0
    assert guest.page_tables.translate(mfn(L4), va(A), False) == machine_address(A)
    assert guest.page_tables.translate(mfn(L4), va(A), True) == -1


def test_walk_sets_accessed_and_dirty(guest: PagedGuest) -> None:
    guest.page_tables.translate(mfn(L4), va(A), False)
    assert guest.get(L1, A) & 0x60 == 0x20
    guest.page_tables.translate(mfn(L4), va(A), True)
    assert guest.get(L1, A) & 0x60 == 0x60


def test_only_a_validated_root_is_walked(guest: PagedGuest) -> None:
    for root in (0, mfn(A), mfn(L3), MFN_END, 1 << 40):
        assert guest.page_tables.translate(root, va(A), False) == -1


# mmu_update


def test_update_of_an_l1_entry(guest: PagedGuest) -> None:
    assert guest.update([(machine_address(L1, 100), entry(A, P)), (machine_address(L1, 101), entry(A))]) == 0
    assert guest.counted(A) == ("WRITABLE", 2, 1)
    assert guest.update([(machine_address(L1, 100), 0), (machine_address(L1, 101), 0)]) == 0
    assert guest.counted(A) == ("WRITABLE", 1, 0)


def test_accessed_and_dirty_bits_may_be_preserved(guest: PagedGuest) -> None:
    guest.set(L1, A, guest.get(L1, A) | 0x60)
    assert guest.update([(machine_address(L1, A) | MMU_PT_UPDATE_PRESERVE_AD, entry(A, P))]) == 0
    assert guest.get(L1, A) == entry(A, P | USER | GUEST_KERNEL | 0x60)
    assert guest.update([(machine_address(L1, A) | MMU_PT_UPDATE_NO_TRANSLATE, entry(A, P))]) == 0
    assert guest.get(L1, A) == entry(A, P | USER | GUEST_KERNEL)


def test_updates_end_at_the_first_that_is_refused(guest: PagedGuest) -> None:
    slots = [machine_address(L1, 100 + index) for index in range(4)]
    requests = [(slots[0], entry(A)), (slots[1], entry(A)), (slots[2], entry(L1)), (slots[3], entry(A))]
    done = va(B)
    data = PagedGuest.update
    guest.memory.octets[machine_address(B) : machine_address(B) + 4] = b"\xff" * 4
    assert data(guest, requests) == -XEN_EBUSY
    args = va(ARGUMENT), 4, done, DOMID_SELF
    assert guest.result(guest.page_tables.mmu_update, guest.vcpu, *args) == -XEN_EBUSY
    assert guest.memory.octets[machine_address(B) : machine_address(B) + 4].tobytes() == b"\2\0\0\0"
    assert guest.counted(A) == ("WRITABLE", 3, 0)


def test_memory_that_is_no_table_is_just_written(guest: PagedGuest) -> None:
    assert guest.update([(machine_address(A, 5), 0x1234)]) == 0
    assert guest.get(A, 5) == 0x1234
    assert guest.cpu.forgotten == [mfn(A)]
    assert guest.update([(SHARED_INFO_MFN << 12, 1)]) == 0


@pytest.mark.parametrize(
    "frame", [0, SHARED_INFO_MFN + 1, FOREIGN_FIRST, RAM_FIRST - 1, MFN_END, (1 << 40) - 1, 1 << 51]
)
def test_frames_that_are_not_the_domains_are_not_written(guest: PagedGuest, frame: int) -> None:
    assert guest.update([(frame << 12, 0)]) == -XEN_EINVAL


def test_commands_that_there_are_not(guest: PagedGuest) -> None:
    assert guest.update([(machine_address(A) | 4, 0)]) == -XEN_ENOSYS


@pytest.mark.parametrize(
    ("foreigndom", "result"), [(DOMID, -XEN_ESRCH), (DOMID + 1, -XEN_EPERM), (DOMID_IO, -XEN_EPERM)]
)
def test_other_domains(guest: PagedGuest, foreigndom: int, result: int) -> None:
    assert guest.update([(machine_address(L1, 100), 0)], foreigndom) == result
    assert guest.extended((MMUEXT_TLB_FLUSH_LOCAL, 0), foreigndom=foreigndom) == result
    otherdomain = guest.page_tables.update_va_mapping_otherdomain
    assert guest.result(otherdomain, guest.vcpu, va(A), entry(A), 0, foreigndom) == result


def test_tables_of_other_domains(guest: PagedGuest) -> None:
    for domid, result in ((DOMID, 0), (DOMID + 1, -XEN_EPERM), (DOMID_SELF, -XEN_EPERM)):
        assert guest.update([(machine_address(L1, 100), 0)], (domid + 1) << 16 | DOMID_SELF) == result


def test_m2p(guest: PagedGuest) -> None:
    assert guest.set_m2p(mfn(A), 77) == 0
    assert guest.m2p[mfn(A)] == 77
    for frame in (FOREIGN_FIRST, RAM_FIRST - 1, MFN_END, (1 << 40) - 1):
        assert guest.set_m2p(frame, 77) == -XEN_EINVAL


def test_requests_that_cannot_be_read(guest: PagedGuest) -> None:
    for address in (va(64), 0, 0x0000_8000_0000_0000, 0xFFFF_8000_0000_0000, (1 << 64) - 16):
        for hypercall in (guest.page_tables.mmu_update, guest.page_tables.mmuext_op):
            assert guest.result(hypercall, guest.vcpu, address, 2, 0, DOMID_SELF) == -XEN_EFAULT
            assert guest.result(hypercall, guest.vcpu, va(A), 0, 0, DOMID_SELF) == 0


def test_flags_that_are_refused(guest: PagedGuest) -> None:
    for flag in (1 << 3, 1 << 4, 1 << 7, 1 << 62):
        assert guest.update([(machine_address(L1, 100), entry(A, P | flag))]) == -XEN_EINVAL
    for flag in (1 << 3, 1 << 4, 1 << 7, 1 << 8):
        assert guest.update([(machine_address(L2, 100), entry(L1, P | flag))]) == -XEN_EINVAL
    for flag in (1 << 5, 1 << 6, 1 << 8, 1 << 9, 1 << 58, 1 << 63):
        assert guest.update([(machine_address(L1, 100), entry(A, P | flag))]) == 0


def test_code_that_others_have_written_is_forgotten_before_it_is_executed(guest: PagedGuest) -> None:
    written = guest.frames.written
    nx = 1 << 63
    written[mfn(A)] = 1
    assert guest.map(va(B), entry(A, P | nx)) == 0
    assert guest.cpu.forgotten == []
    assert guest.map(va(B), entry(A, P)) == 0
    assert guest.cpu.forgotten == [mfn(A)]
    assert guest.map(va(C), entry(A, P)) == 0
    assert guest.cpu.forgotten == [mfn(A)]
    guest.set(D, 5, entry(A, P))
    guest.set(D, 6, entry(B, P | nx))
    guest.protect(D)
    written[mfn(A)] = written[mfn(B)] = 1
    assert guest.pin(D, 1) == 0
    assert guest.cpu.forgotten == [mfn(A)] * 2
    assert guest.map(va(A), 0) == 0
    assert (
        guest.update([(machine_address(L1, B), 0), (machine_address(L1, C), 0), (machine_address(D, 5), 0)])
        == 0
    )
    guest.page_tables.vanish(mfn(A), 1)
    guest.page_tables.appear(mfn(A), 1, Kind.OWN)
    assert guest.map(va(A), entry(A, P)) == 0
    assert guest.cpu.forgotten == [mfn(A)] * 3


# update_va_mapping


def test_mapping_by_address(guest: PagedGuest) -> None:
    assert guest.map(va(A), entry(B)) == 0
    assert guest.page_tables.translate(mfn(L4), va(A), True) == machine_address(B)
    assert guest.counted(A) == ("NONE", 0, 0)
    assert guest.map(BASE + (2 << 20), 0) == -XEN_EINVAL
    assert guest.map(0x0000_8000_0000_0000, 0) == -XEN_EINVAL
    assert guest.map(0xFFFF_8000_0000_0000, 0) == -XEN_EINVAL


def test_flushes_that_are_asked_for(guest: PagedGuest) -> None:
    flushes = guest.cpu.flushes
    assert guest.map(va(A), entry(B)) == 0
    assert guest.cpu.flushes == flushes
    assert guest.map(va(A), entry(C), UVMF_TLB_FLUSH) == 0
    assert guest.cpu.flushes == flushes + 1
    guest.cpu.execute()
    assert guest.map(va(A), entry(D), UVMF_INVLPG) == 0
    assert {frame for address, frame, _ in guest.cpu.cached if address == va(A)} == {mfn(D)}
    assert guest.map(va(A), entry(D), UVMF_INVLPG | va(B)) == 0
    assert guest.map(va(A), entry(D), UVMF_INVLPG | 0x1000) == -XEN_EFAULT


def test_failed_mapping_flushes_nothing(guest: PagedGuest) -> None:
    """XSA-279."""
    flushes, cached = guest.cpu.flushes, set(guest.cpu.cached)
    for address in (0x0000_8000_0000_0000, 0xFFFF_8000_0000_0000, 0x1000):
        assert guest.map(address, entry(A), UVMF_INVLPG) == -XEN_EINVAL
        assert guest.map(address, entry(A), UVMF_TLB_FLUSH) == -XEN_EINVAL
    assert guest.cpu.flushes == flushes
    assert cached <= guest.cpu.cached


# mmuext_op


def new_table(guest: PagedGuest, page: int, entries: dict[int, int]) -> None:
    """Write a table, and make it read-only."""
    for slot, value in entries.items():
        guest.set(page, slot, value)
    guest.protect(page)


def test_pin_and_unpin(guest: PagedGuest) -> None:
    new_table(guest, A, {0: entry(B), 511: entry(C, P)})
    assert guest.pin(A, 1) == 0
    assert guest.counted(A) == ("L1", 1, 1)
    assert guest.counted(B) == ("WRITABLE", 2, 0)
    assert guest.pin(A, 1) == -XEN_EINVAL
    assert guest.pin(A, 2) == -XEN_EINVAL
    assert guest.unpin(A) == 0
    assert guest.counted(A) == ("NONE", 0, 1)
    assert guest.counted(B) == ("WRITABLE", 1, 0)
    assert guest.counted(C) == ("WRITABLE", 1, 0)
    assert guest.unpin(A) == -XEN_EINVAL


def test_a_writable_page_is_not_pinned(guest: PagedGuest) -> None:
    for level in (1, 2, 3, 4):
        assert guest.pin(A, level) == -XEN_EINVAL


def test_a_pinned_page_is_not_mapped_writable(guest: PagedGuest) -> None:
    guest.protect(A)
    assert guest.pin(A, 4) == 0
    assert guest.map(va(A), entry(A)) == -XEN_EBUSY
    assert guest.update([(machine_address(L1, A), entry(A))]) == -XEN_EBUSY


def test_whole_address_spaces(guest: PagedGuest) -> None:
    new_table(guest, A, {0: entry(D)})
    new_table(guest, B, {2: entry(A)})
    new_table(guest, C, {0: entry(B)})
    new_table(guest, D + 1, {0: entry(C), 511: guest.get(L4, 511)})
    assert guest.pin(D + 1, 4) == 0
    assert guest.counted(L3) == ("L3", 2, 1)
    assert guest.new_baseptr(D + 1) == 0
    assert guest.cpu.root == guest.vcpu.kernel_root == mfn(D + 1)
    assert guest.counted(L4) == ("L4", 1, 1)
    assert guest.page_tables.translate(guest.vcpu.kernel_root, LOW, True) == machine_address(D)
    assert guest.extended((MMUEXT_NEW_USER_BASEPTR, mfn(L4))) == 0
    guest.page_tables.toggle(guest.vcpu, False)
    assert guest.cpu.root == mfn(L4)
    guest.page_tables.toggle(guest.vcpu, True)
    assert guest.cpu.root == mfn(D + 1)
    assert guest.extended((MMUEXT_NEW_USER_BASEPTR, 0)) == 0
    with pytest.raises(DomainCrash):
        guest.page_tables.toggle(guest.vcpu, False)
    assert guest.new_baseptr(L4) == 0
    assert guest.unpin(D + 1) == 0
    for page in (A, B, C, D + 1):
        assert guest.counted(page) == ("NONE", 0, 1)


def test_a_table_is_of_one_level(guest: PagedGuest) -> None:
    new_table(guest, A, {})
    assert guest.update([(machine_address(L2, 5), entry(A))]) == 0
    assert guest.update([(machine_address(L3, 5), entry(A))]) == -XEN_EINVAL
    assert guest.update([(machine_address(L4, 5), entry(A))]) == -XEN_EINVAL
    assert guest.new_baseptr(A) == -XEN_EINVAL
    assert guest.extended((MMUEXT_NEW_USER_BASEPTR, mfn(L3))) == -XEN_EINVAL
    assert guest.update([(machine_address(L2, 5), 0)]) == 0
    assert guest.counted(A) == ("NONE", 0, 1)


def test_failed_pin_leaves_counts_as_they_were(guest: PagedGuest) -> None:
    """XSA-58."""
    new_table(guest, A, {slot: entry(D) for slot in range(511)} | {511: entry(L1)})
    new_table(guest, B, {0: entry(L1), 1: entry(A)})
    before = [guest.counted(page) for page in range(guest.pages)]
    assert guest.pin(A, 1) == -XEN_EBUSY
    assert guest.pin(B, 2) == -XEN_EBUSY
    assert [guest.counted(page) for page in range(guest.pages)] == before


def test_clear_and_copy(guest: PagedGuest) -> None:
    guest.set(A, 5, 99)
    assert guest.extended((MMUEXT_COPY_PAGE, mfn(B), mfn(A))) == 0
    assert guest.get(B, 5) == 99
    assert guest.extended((MMUEXT_CLEAR_PAGE, mfn(A))) == 0
    assert guest.cpu.forgotten == [mfn(B), mfn(A)]
    assert not any(guest.memory.frame(mfn(A)))
    assert guest.extended((MMUEXT_COPY_PAGE, mfn(B), mfn(L1))) == 0
    for target in (mfn(L1), FOREIGN_FIRST, SHARED_INFO_MFN, MFN_END, (1 << 64) - 1):
        assert guest.extended((MMUEXT_CLEAR_PAGE, target)) == -XEN_EINVAL
        assert guest.extended((MMUEXT_COPY_PAGE, target, mfn(A))) == -XEN_EINVAL
    assert guest.extended((MMUEXT_COPY_PAGE, mfn(A), FOREIGN_FIRST)) == -XEN_EINVAL


def test_the_rest_of_mmuext(guest: PagedGuest) -> None:
    assert guest.extended((MMUEXT_FLUSH_CACHE, 0)) == -XEN_EACCES
    assert guest.extended((MMUEXT_FLUSH_CACHE_GLOBAL, 0)) == -XEN_EINVAL
    assert guest.extended((MMUEXT_MARK_SUPER, 0)) == -XEN_EOPNOTSUPP
    assert guest.extended((14, 0)) == -XEN_ENOSYS
    assert guest.extended((MMUEXT_TLB_FLUSH_MULTI, 0, 0x1000)) == -XEN_EINVAL
    flushes = guest.cpu.flushes
    operations = [(MMUEXT_TLB_FLUSH_ALL, 0), (MMUEXT_TLB_FLUSH_LOCAL, 0), (MMUEXT_TLB_FLUSH_MULTI, 0, va(A))]
    assert guest.extended(*operations) == 0
    assert guest.cpu.flushes == flushes + 1
    assert guest.extended((MMUEXT_INVLPG_LOCAL, va(A) + 5), (MMUEXT_INVLPG_LOCAL, 1 << 47)) == 0


def test_ldt(guest: PagedGuest) -> None:
    guest.set(A, 3, 0x00CF_9200_0000_FFFF)
    guest.protect(A, B)
    assert guest.extended((MMUEXT_SET_LDT, va(A), 1000)) == 0
    assert guest.ldts == [(0, [mfn(A), mfn(B)], 1000)]
    assert guest.counted(A) == ("SEGDESC", 1, 1)
    assert guest.get(A, 3) == 0x00CF_F200_0000_FFFF
    assert guest.extended((MMUEXT_SET_LDT, va(A), 1000)) == 0
    assert len(guest.ldts) == 1
    assert guest.map(va(A), entry(A)) == -XEN_EBUSY
    assert guest.extended((MMUEXT_SET_LDT, va(B), 8193)) == -XEN_EINVAL
    assert guest.extended((MMUEXT_SET_LDT, va(B) + 8, 8)) == -XEN_EINVAL
    assert guest.extended((MMUEXT_SET_LDT, 1 << 47, 8)) == -XEN_EINVAL
    assert guest.extended((MMUEXT_SET_LDT, 0, 0)) == 0
    assert guest.ldts[1:] == [(0, [], 0)]
    assert guest.counted(A) == ("NONE", 0, 1)
    guest.unprotect(A)


def test_ldt_follows_the_kernels_root(guest: PagedGuest) -> None:
    guest.protect(A)
    new_table(guest, B, {511: guest.get(L4, 511)})
    new_table(guest, C, {})
    assert guest.pin(B, 4) == 0
    assert guest.pin(C, 4) == 0
    assert guest.extended((MMUEXT_SET_LDT, va(A), 8)) == 0
    assert guest.new_baseptr(B) == 0
    assert guest.ldts == [(0, [mfn(A)], 8)] * 2
    assert guest.counted(A) == ("SEGDESC", 1, 1)
    guest.page_tables.load_kernel_root(guest.vcpu, mfn(C))
    assert guest.ldts[2:] == [(0, [0], 8)]
    assert guest.counted(A) == ("NONE", 0, 1)
    guest.page_tables.load_kernel_root(guest.vcpu, mfn(L4))
    assert guest.ldts[3:] == [(0, [mfn(A)], 8)]
    guest.check()


def test_ldt_pages_that_are_no_descriptor_tables_hold_none(guest: PagedGuest) -> None:
    guest.set(B, 3, 0x0000_8900_0000_FFFF)
    guest.protect(A, B)
    assert guest.extended((MMUEXT_SET_LDT, va(A), 2000)) == 0
    assert guest.ldts == [(0, [mfn(A), 0, 0, 0], 2000)]
    assert guest.counted(B) == ("NONE", 0, 1)


# Frames


def test_frames_in_use_do_not_vanish(guest: PagedGuest) -> None:
    for page in (L4, A):
        with pytest.raises(BadFrame) as refused:
            guest.page_tables.vanish(mfn(page), 1)
        assert refused.value.errno == XEN_EBUSY
    assert guest.map(va(A), 0) == 0
    guest.page_tables.vanish(mfn(A), 1)
    guest.check()
    assert guest.map(va(A), entry(A)) == -XEN_EBUSY
    assert guest.pin(A, 1) == -XEN_EINVAL
    with pytest.raises(BadFrame):
        guest.page_tables.vanish(mfn(A), 1)
    with pytest.raises(BadFrame):
        guest.page_tables.appear(mfn(A), 2, Kind.OWN)
    guest.page_tables.appear(mfn(A), 1, Kind.OWN)
    assert guest.map(va(A), entry(A)) == 0


def test_vcpus_have_roots_of_their_own(guest: PagedGuest) -> None:
    second = guest.vcpus[1]
    guest.page_tables.set_roots(second, mfn(L4), 0)
    assert guest.counted(L4) == ("L4", 3, 1)
    guest.check()
    guest.page_tables.release_vcpu(second)
    guest.check()
    with pytest.raises(BadFrame):
        guest.page_tables.set_roots(second, mfn(L4), mfn(A))
    assert (second.kernel_root, second.user_root) == (0, 0)
    guest.check()


def test_strict_m2p_hides_the_table_from_user_mode(guest: PagedGuest) -> None:
    guest.page_tables.strict_m2p = True
    new_table(guest, A, {})
    assert guest.pin(A, 4) == 0
    assert guest.extended((MMUEXT_NEW_USER_BASEPTR, mfn(A))) == 0
    assert guest.get(A, 256) == 0
    assert guest.get(A, 260) == XEN_ENTRIES[260]
    assert guest.get(L4, 256) == XEN_ENTRIES[256]


def test_everything_is_given_back(guest: PagedGuest) -> None:
    guest.release_all()
