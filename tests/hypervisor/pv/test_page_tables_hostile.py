"""What hostile kernels have tried with Xen's paging, row by row of its advisories; refused or contained here."""

import pytest

from hypervisor.abi.errno import XEN_EBUSY, XEN_EINVAL, XEN_ENOSYS, XEN_EPERM
from hypervisor.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_host_map,
    GNTMAP_readonly,
)
from hypervisor.abi.mmu import (
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE,
    UVMF_TLB_FLUSH,
)
from hypervisor.errors import BadFrame, InvalidArgument, XenError
from hypervisor.pv.layout import (
    FOREIGN_END,
    FOREIGN_FIRST,
    MFN_END,
    MONITOR_END,
    MONITOR_FIRST,
    RAM_FIRST,
    SHARED_INFO_MFN,
)
from tests.hypervisor.pv.paging import (
    BASE,
    FIRST_FREE,
    L1,
    L2,
    L3,
    L4,
    PAGE,
    RW,
    USER,
    P,
    PagedGuest,
    entry,
    machine_address,
    mfn,
    va,
)

A, B, C, D, E = range(FIRST_FREE, FIRST_FREE + 5)
TABLES = {1: L1, 2: L2, 3: L3, 4: L4}
FREE = {1: 300, 2: 300, 3: 300, 4: 300}
"""a slot of each of the first tables that is not used"""
PSE = 1 << 7
NO_FRAMES = [
    0,
    SHARED_INFO_MFN + 1,
    FOREIGN_FIRST + 2,
    FOREIGN_END - 1,
    RAM_FIRST - 1,
    mfn(64),
    MFN_END - 1,
    MFN_END,
    MONITOR_FIRST,
    MONITOR_END,
    1 << 32,
    (1 << 40) - 1,
    1 << 52,
    (1 << 64) - 1,
]


@pytest.fixture
def guest() -> PagedGuest:
    return PagedGuest().start()


def counted(guest: PagedGuest) -> list[tuple[str, int, int]]:
    return [guest.counted(page) for page in range(guest.pages)]


@pytest.mark.parametrize("frame", [*NO_FRAMES, FOREIGN_FIRST, SHARED_INFO_MFN])
def test_frames_that_are_no_ram_of_the_guest_become_nothing(guest: PagedGuest, frame: int) -> None:
    """XSA-32."""
    before = counted(guest)
    for command in range(MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L1_TABLE + 4):
        assert guest.extended((command, frame)) == -XEN_EINVAL
    for command in (MMUEXT_UNPIN_TABLE, MMUEXT_NEW_BASEPTR, MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE):
        assert guest.extended((command, frame, mfn(A))) == -XEN_EINVAL
    if frame:
        assert guest.extended((MMUEXT_NEW_USER_BASEPTR, frame)) == -XEN_EINVAL
    if frame != SHARED_INFO_MFN:
        assert guest.extended((MMUEXT_COPY_PAGE, mfn(A), frame)) == -XEN_EINVAL
    for level, table in TABLES.items():
        if level > 1 and frame < 1 << 40:
            slot = machine_address(table, FREE[level])
            assert guest.update([(slot, frame << 12 | P)]) == -XEN_EINVAL
    with pytest.raises(BadFrame):
        guest.page_tables.take_descriptor_page(frame)
    with pytest.raises(BadFrame):
        guest.page_tables.take_writable(frame)
    assert counted(guest) == before


@pytest.mark.parametrize(
    "frame", [frame for frame in NO_FRAMES if frame < 1 << 40] + [FOREIGN_FIRST, FOREIGN_FIRST + 1]
)
@pytest.mark.parametrize("bits", [P, P | RW])
def test_what_is_not_the_guests_is_not_mapped(guest: PagedGuest, frame: int, bits: int) -> None:
    value = frame << 12 | bits
    expected = (-XEN_EBUSY, -XEN_EPERM, -XEN_EINVAL)
    assert guest.map(va(A), value) in expected
    assert guest.update([(machine_address(L1, FREE[1]), value)]) in expected
    assert not guest.page_tables.emulate_pte_write(machine_address(L1, FREE[1]), 8, value)
    guest.set(B, 0, value)
    guest.protect(B)
    assert guest.pin(B, 1) in expected
    assert guest.get(L1, FREE[1]) == 0


def test_shared_info_may_be_mapped_and_nothing_else_made_of_it(guest: PagedGuest) -> None:
    assert guest.map(va(A), SHARED_INFO_MFN << 12 | P | RW) == 0
    assert guest.page_tables.translate(mfn(L4), va(A), True) == SHARED_INFO_MFN << 12
    assert guest.map(va(A), SHARED_INFO_MFN << 12 | P) == 0
    assert guest.extended((MMUEXT_PIN_L1_TABLE, SHARED_INFO_MFN)) == -XEN_EINVAL


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("command", [0, MMU_PT_UPDATE_PRESERVE_AD])
def test_superpages_are_refused_at_every_level(guest: PagedGuest, level: int, command: int) -> None:
    """XSA-148, XSA-176: in a new entry, and in one that is valid without the bit."""
    slots = {2: 0, 3: 510, 4: 511}
    for slot in (slots[level], FREE[level]):
        before = guest.get(TABLES[level], slot)
        for bits in (P | PSE, P | RW | PSE | USER):
            target = before & ~0xFFF if before else entry(A, 0)
            request = (machine_address(TABLES[level], slot) | command, target | bits)
            assert guest.update([request]) == -XEN_EINVAL
        assert guest.get(TABLES[level], slot) == before


@pytest.mark.parametrize("level", [2, 3, 4])
def test_superpages_are_refused_in_whole_tables(guest: PagedGuest, level: int) -> None:
    guest.set(A, 7, entry(B, P | RW | PSE))
    guest.protect(A)
    assert guest.pin(A, level) == -XEN_EINVAL


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [P, P | RW])
def test_tables_that_refer_to_themselves_are_refused(guest: PagedGuest, level: int, bits: int) -> None:
    """XSA-182, XSA-185, XSA-240: but a read-only mapping of an L1 table in itself is just that."""
    guest.set(A, 0, entry(A, bits))
    guest.protect(A)
    before = counted(guest)
    result = guest.pin(A, level)
    if level == 1 and bits == P:
        assert result == 0
        assert guest.update([(machine_address(A, 0), entry(A, P | RW))]) == -XEN_EBUSY
        assert guest.unpin(A) == 0
    else:
        assert result == (-XEN_EINVAL if level > 1 else -XEN_EBUSY)
    assert counted(guest) == before
    table = TABLES[level]
    if level > 1:
        assert guest.update([(machine_address(table, FREE[level]), entry(table, bits))]) == -XEN_EINVAL
    assert counted(guest) == before


@pytest.mark.parametrize("level", [2, 3, 4])
def test_tables_of_one_level_do_not_refer_to_each_other(guest: PagedGuest, level: int) -> None:
    """XSA-240, XSA-309: so no chain of them is longer than there are levels."""
    guest.set(A, 0, entry(B, P))
    guest.protect(A, B, C)
    assert guest.pin(B, level) == 0
    assert guest.pin(A, level) == -XEN_EINVAL
    assert guest.pin(C, level) == 0
    assert guest.update([(machine_address(B, 0), entry(C, P))]) == -XEN_EINVAL
    assert guest.update([(machine_address(C, 0), entry(B, P))]) == -XEN_EINVAL


def test_a_chain_of_5000_tables_is_as_deep_as_there_are_levels() -> None:
    guest = PagedGuest(pages=5700).start()
    for page in range(600, 5600):
        guest.set(page, 0, entry(page + 1, P))
    assert guest.pin(600, 4) == 0
    assert [guest.counted(page)[0] for page in range(600, 605)] == ["L4", "L3", "L2", "L1", "NONE"]
    assert guest.counted(604) == ("NONE", 0, 1)
    guest.set(5501, 1, entry(5500, P))
    assert guest.pin(5500, 4) == -XEN_EINVAL
    assert guest.unpin(600) == 0


def test_a_read_only_entry_is_not_made_writable_in_passing(guest: PagedGuest) -> None:
    """XSA-182: of all bits, these alone may change without another look."""
    guest.protect(A)
    assert guest.pin(A, 2) == 0
    value = guest.get(L1, A)
    for bit in (*range(12), *range(52, 64)):
        result = guest.update([(machine_address(L1, A), value ^ 1 << bit)])
        if 1 << bit in (PSE, 1 << 3, 1 << 4, 1 << 62):
            assert result == -XEN_EINVAL
        elif 1 << bit == RW:
            assert result == -XEN_EBUSY
        else:
            assert result == 0
        assert guest.page_tables.translate(mfn(L4), va(A), True) == -1
        assert guest.update([(machine_address(L1, A), value)]) == 0


def test_no_table_of_any_level_gets_a_writable_mapping(guest: PagedGuest) -> None:
    assert guest.map(va(E), 0) == 0
    guest.use_as_gdt(E)
    for page in (L1, L2, L3, L4, E):
        for attempt in (
            lambda page=page: guest.map(va(page), entry(page)),
            lambda page=page: guest.update([(machine_address(L1, FREE[1]), entry(page))]),
            lambda page=page: guest.update(
                [(machine_address(L1, page) | MMU_PT_UPDATE_PRESERVE_AD, entry(page))]
            ),
        ):
            assert attempt() == -XEN_EBUSY
        assert not guest.page_tables.emulate_pte_write(machine_address(L1, page), 8, entry(page))
        assert guest.extended((MMUEXT_CLEAR_PAGE, mfn(page))) == -XEN_EINVAL
        assert guest.extended((MMUEXT_COPY_PAGE, mfn(page), mfn(A))) == -XEN_EINVAL
        with pytest.raises(BadFrame):
            guest.page_tables.take_writable(mfn(page))
    assert guest.update([(machine_address(E), 0)]) == -XEN_EINVAL


def test_wrong_types(guest: PagedGuest) -> None:
    """Each kind of table in the place of each other kind."""
    before = counted(guest)
    for level, table in TABLES.items():
        for other in range(1, 5):
            if other != level:
                assert guest.pin(table, other) == -XEN_EINVAL
            if other > 1 and other - 1 != level:
                slot = machine_address(TABLES[other], FREE[other])
                assert guest.update([(slot, entry(table, P))]) == -XEN_EINVAL
    assert counted(guest) == before


def test_a_new_table_is_used_at_once(guest: PagedGuest) -> None:
    """XSA-286: no translation is remembered between an L3 or L2 entry that changes and the L1 entry behind it."""
    for slot in range(64):
        guest.set(A, slot, guest.get(L1, slot))
    guest.set(B, 0, entry(A))
    guest.protect(A, B)
    for slot in (A, B):
        guest.set(A, slot, entry(slot, P))
    assert guest.update([(machine_address(L3, 510), entry(B))]) == 0
    assert guest.map(va(C), entry(D)) == 0
    assert guest.get(A, C) & ~0xFFF & ~(1 << 52) == entry(D, 0)
    assert guest.get(L1, C) & ~0xFFF & ~(1 << 52) == entry(C, 0)
    assert guest.page_tables.translate(mfn(L4), va(C), False) == machine_address(D)


def test_nothing_of_the_old_root_is_left_after_a_switch(guest: PagedGuest) -> None:
    """XSA-292."""
    guest.set(A, 0, entry(E, P))
    guest.set(B, 0, entry(A))
    guest.set(C, 510, entry(B))
    guest.set(D, 511, entry(C))
    guest.protect(A, B, C, D)
    assert guest.pin(D, 4) == 0
    old = {cached for cached in guest.cpu.cached if cached[0] == BASE}
    assert old
    assert guest.new_baseptr(D) == 0
    assert {frame for address, frame, _ in guest.cpu.cached if address == BASE} == {mfn(E)}


def test_translations_cached_before_a_pin_do_not_survive_it(guest: PagedGuest) -> None:
    """XSA-401, XSA-408: the guest makes no flush between its last write and the pin."""
    assert (va(A), mfn(A), True) in guest.cpu.cached
    assert guest.map(va(A), entry(A, P)) == 0
    assert (va(A), mfn(A), True) in guest.cpu.cached
    assert guest.pin(A, 1) == 0
    assert (va(A), mfn(A), True) not in guest.cpu.cached
    assert guest.unpin(A) == 0
    guest.unprotect(A)
    guest.protect(A)
    with_flush = guest.cpu.flushes
    assert guest.map(va(A), entry(A, P), UVMF_TLB_FLUSH) == 0
    assert guest.pin(A, 2) == 0
    assert guest.cpu.flushes == with_flush + 1


def test_flushes_of_a_batch_are_one_and_not_forgotten(guest: PagedGuest) -> None:
    flushes = guest.cpu.flushes
    guest.check = lambda: None
    guest.page_tables.begin_batch()
    for page in (A, B, C):
        assert guest.map(va(page), entry(page, P)) == 0
        assert guest.pin(page, 1) == 0
    assert guest.cpu.flushes == flushes
    guest.page_tables.end_batch()
    assert guest.cpu.flushes == flushes + 1


def test_unpinning_is_not_done_by_giving_back(guest: PagedGuest) -> None:
    """XSA-242, XSA-252."""
    assert guest.map(va(A), 0) == 0
    assert guest.pin(A, 3) == 0
    with pytest.raises(BadFrame):
        guest.page_tables.vanish(mfn(A), 1)
    assert guest.counted(A) == ("L3", 1, 0)
    assert guest.unpin(A) == 0
    guest.page_tables.vanish(mfn(A), 1)
    guest.check()


def test_current_roots_outlive_their_pins(guest: PagedGuest) -> None:
    assert guest.unpin(L4) == 0
    assert guest.counted(L4) == ("L4", 1, 1)
    with pytest.raises(BadFrame):
        guest.page_tables.vanish(mfn(L4), 1)
    assert guest.map(va(L4), entry(L4)) == -XEN_EBUSY
    assert guest.page_tables.read(mfn(L4), va(A), 8) == bytes(8)


def test_frames_that_others_write_to_become_no_tables(guest: PagedGuest) -> None:
    guest.protect(A)
    guest.granted[mfn(A)] = 1
    before = counted(guest)
    for level in (1, 2, 3, 4):
        assert guest.pin(A, level) == -XEN_EINVAL
    with pytest.raises(BadFrame):
        guest.page_tables.take_descriptor_page(mfn(A))
    assert counted(guest) == before
    assert guest.types[mfn(A)] == 0
    guest.granted[mfn(A)] = 0
    assert guest.pin(A, 1) == 0


def test_bad_descriptors_make_no_descriptor_table(guest: PagedGuest) -> None:
    """A gate, a TSS, an LDT and a call gate with reserved bits."""
    for bad in (0x0000_8E00_0000_0000, 0x0000_8900_0000_0000, 0x0000_8200_0000_0000, 0x0000_8CFF_0000_0000):
        assert guest.map(va(A), 0) == 0
        guest.set(A, 511, bad)
        with pytest.raises(BadFrame):
            guest.page_tables.take_descriptor_page(mfn(A))
        assert guest.counted(A) == ("NONE", 0, 0)
        guest.check()
    guest.set(A, 511, 0)
    guest.use_as_gdt(A)
    assert guest.map(va(A), entry(A)) == -XEN_EBUSY
    assert guest.pin(A, 1) == -XEN_EINVAL
    guest.vcpu.gdt_frames[0] = 0
    guest.page_tables.put_descriptor_page(mfn(A))
    assert guest.map(va(A), entry(A)) == 0


# Writes to read-only L1 tables


def test_parts_of_entries(guest: PagedGuest) -> None:
    address = machine_address(L1, FREE[1])
    assert guest.page_tables.emulate_pte_write(address, 8, entry(A, P | USER | 0x60))
    assert guest.page_tables.emulate_pte_write(address + 1, 1, 0x51)
    assert guest.get(L1, FREE[1]) == entry(A, P | USER | 0x160)
    assert guest.page_tables.emulate_pte_write(address, 1, 0x67)
    assert guest.counted(A) == ("WRITABLE", 2, 0)
    assert not guest.page_tables.emulate_pte_write(address + 2, 4, 0)
    assert not guest.page_tables.emulate_pte_write(address + 1, 2, 0)
    assert guest.page_tables.emulate_pte_write(address, 2, 0)
    assert guest.counted(A) == ("WRITABLE", 1, 0)
    guest.check()


@pytest.mark.parametrize("table", [L2, L3, L4, A])
def test_only_l1_tables_are_emulated(guest: PagedGuest, table: int) -> None:
    assert not guest.page_tables.emulate_pte_write(machine_address(table, 300), 8, 0)
    assert not guest.page_tables.emulate_pte_write(MFN_END << 12, 8, 0)


# Grants


def test_granted_frames_are_mapped_as_granted(guest: PagedGuest) -> None:
    tables, vcpu = guest.page_tables, guest.vcpu
    tables.map_grant(vcpu, va(A), GNTMAP_host_map, FOREIGN_FIRST)
    assert tables.translate(mfn(L4), va(A), True) == FOREIGN_FIRST << 12
    guest.check()
    slot = machine_address(L1, FREE[1])
    how = GNTMAP_host_map | GNTMAP_contains_pte | GNTMAP_readonly | GNTMAP_application_map | 3 << 16
    tables.map_grant(vcpu, slot, how, FOREIGN_FIRST + 1)
    assert guest.get(L1, FREE[1]) & 0xE00 == 0x600
    assert tables.translate(mfn(L4), BASE + FREE[1] * PAGE, True) == -1
    guest.check()
    tables.unmap_grant(vcpu, va(A), GNTMAP_host_map, FOREIGN_FIRST)
    assert (va(A), FOREIGN_FIRST, True) not in guest.cpu.cached
    tables.unmap_grant(vcpu, slot, how, FOREIGN_FIRST + 1)
    guest.check()
    tables.vanish(FOREIGN_FIRST, 2)
    guest.check()


@pytest.mark.parametrize(
    ("address", "flags", "frame"),
    [
        (machine_address(L1, 300) + 4, GNTMAP_contains_pte, FOREIGN_FIRST),
        (machine_address(L2, 300), GNTMAP_contains_pte, FOREIGN_FIRST),
        (machine_address(A, 0), GNTMAP_contains_pte, FOREIGN_FIRST),
        (MFN_END << 12, GNTMAP_contains_pte, FOREIGN_FIRST),
        (1 << 63, GNTMAP_contains_pte, FOREIGN_FIRST),
        (0, GNTMAP_contains_pte, FOREIGN_FIRST),
        (0x0000_8000_0000_0000, 0, FOREIGN_FIRST),
        (0xFFFF_8000_0000_0000, 0, FOREIGN_FIRST),
        (0x1000, 0, FOREIGN_FIRST),
        (va(A), 0, FOREIGN_FIRST + 1),
        (va(A), 0, FOREIGN_FIRST + 2),
        (va(A), 0, mfn(L1)),
        (va(A), 0, MFN_END),
    ],
)
def test_grants_that_are_not_mapped(guest: PagedGuest, address: int, flags: int, frame: int) -> None:
    """XSA-227: an address that is none of an L1 entry; a frame that is not granted so."""
    before = counted(guest)
    with pytest.raises(XenError):
        guest.page_tables.map_grant(guest.vcpu, address, flags | GNTMAP_host_map, frame)
    guest.check()
    assert counted(guest) == before


def test_what_is_unmapped_is_what_was_mapped(guest: PagedGuest) -> None:
    """XSA-234: neither another frame, nor another right, nor an entry that the guest has replaced."""
    tables, vcpu = guest.page_tables, guest.vcpu
    tables.map_grant(vcpu, va(A), GNTMAP_host_map, FOREIGN_FIRST)
    tables.map_grant(vcpu, va(B), GNTMAP_host_map | GNTMAP_readonly, FOREIGN_FIRST)
    for address, flags, frame in (
        (va(B), 0, FOREIGN_FIRST),
        (va(C), 0, FOREIGN_FIRST),
        (va(A), GNTMAP_readonly, FOREIGN_FIRST),
        (va(A), 0, FOREIGN_FIRST + 1),
        (va(A), 0, mfn(A)),
    ):
        with pytest.raises(InvalidArgument):
            tables.unmap_grant(vcpu, address, flags | GNTMAP_host_map, frame)
        guest.check()
    tables.unmap_grant(vcpu, va(B), GNTMAP_host_map | GNTMAP_readonly, FOREIGN_FIRST)
    assert guest.map(va(A), entry(A)) == 0
    with pytest.raises(InvalidArgument):
        tables.unmap_grant(vcpu, va(A), GNTMAP_host_map, FOREIGN_FIRST)
    tables.vanish(FOREIGN_FIRST, 1)
    guest.check()


def test_a_granted_frame_is_not_mapped_again_by_the_guest(guest: PagedGuest) -> None:
    guest.page_tables.map_grant(guest.vcpu, va(A), GNTMAP_host_map | GNTMAP_readonly, FOREIGN_FIRST)
    value = guest.get(L1, A)
    for attempt in (value, value & ~(1 << 62), value & ~(1 << 62) | RW):
        assert guest.update([(machine_address(L1, FREE[1]), attempt)]) in (-XEN_EINVAL, -XEN_EBUSY)
    assert guest.map(va(A), value & ~(1 << 62) | RW) == -XEN_EBUSY
    assert guest.counted(A) == ("NONE", 0, 0)
    with pytest.raises(BadFrame):
        guest.page_tables.vanish(FOREIGN_FIRST, 1)


def test_hypercalls_with_numbers_that_there_are_not(guest: PagedGuest) -> None:
    assert guest.extended((21, 0)) == -XEN_ENOSYS
    assert guest.extended((0xFFFF_FFFF, 0)) == -XEN_ENOSYS
    assert guest.update([((1 << 64) - 1, 0)]) == -XEN_ENOSYS
