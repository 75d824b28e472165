"""Handles of native guests: what its page tables say is what the hypervisor reaches, and nothing of anybody else's."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hypervisor.abi import xen
from hypervisor.abi.errno import XEN_EFAULT
from hypervisor.errors import GuestFault
from hypervisor.guest_access import GuestAccess
from hypervisor.pv.layout import (
    ARGUMENT_MFN,
    FOREIGN_FIRST,
    GRANT_TABLE_FIRST,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    MFN_END,
    MONITOR_FIRST,
    RAM_FIRST,
    SHARED_INFO_MFN,
)
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import GrantGuest
from tests.hypervisor.native_guest import ALL, KERNEL_BASE, PAGE, PRESENT, PSE, RW, USER, NativeGuest

VA = 0x7000_0000_0000
PAGES = 40
Access = Callable[[GuestAccess, int], object]


@pytest.fixture
def guest() -> NativeGuest:
    return new_guest()


def new_guest() -> NativeGuest:
    guest = NativeGuest(new_machine()[0], pages=PAGES)
    guest.vcpu.root = guest.root
    return guest


def _check(access: GuestAccess, address: int) -> object:
    access.check_writable(address, 8)
    return None


def _write(access: GuestAccess, address: int) -> object:
    access.write(address, b"12345678")
    return None


READS: list[Access] = [lambda access, address: access.read(address, 8)]
WRITES: list[Access] = [_write, _check, lambda access, address: access.contiguous(address, 8)]


def caught(action: Callable[[], object]) -> GuestFault | None:
    try:
        action()
    except GuestFault as fault:
        return fault
    return None


def refused(guest: NativeGuest, address: int, ways: list[Access]) -> bool:
    """Whether all of these accesses fault. None may do anything else."""
    faults = 0
    for way in ways:
        fault = caught(lambda way=way: way(guest.vcpu.access, address))  # type: ignore[misc]
        if fault is not None:
            assert (fault.domid, fault.address) == (guest.domid, address)
            faults += 1
    assert faults in (0, len(ways))
    return bool(faults)


def content(guest: NativeGuest) -> bytes:
    return b"".join(bytes(guest.domain.memory.page(RAM_FIRST + page)) for page in range(guest.pages))


def test_data_goes_where_the_page_tables_say(guest: NativeGuest) -> None:
    access = guest.vcpu.access
    guest.map(VA, RAM_FIRST + 7)
    guest.map(VA + PAGE, RAM_FIRST + 3)
    access.write(VA + 0xFF0, bytes(range(32)))
    assert guest.domain.memory.page(RAM_FIRST + 7)[0xFF0:] == bytes(range(16))
    assert guest.domain.memory.page(RAM_FIRST + 3)[:16] == bytes(range(16, 32))
    assert access.read(VA + 0xFF0, 32) == bytes(range(32))
    assert access.read(VA + 0xFF0, 16) == bytes(range(16))
    assert access.read(VA + PAGE, 0) == b""
    assert len(access.contiguous(VA + 0xFF0, 32)) == 16
    access.write_u32(VA + 4, 0x11223344)
    assert access.read_u32(VA + 4) == 0x11223344


def test_without_a_root_addresses_are_machine_addresses(guest: NativeGuest) -> None:
    guest.vcpu.root = 0
    access = guest.vcpu.access
    access.write((RAM_FIRST + 2) * PAGE + 5, b"by frame")
    assert bytes(guest.domain.memory.page(RAM_FIRST + 2)[5:13]) == b"by frame"
    assert access.read((RAM_FIRST + 2) * PAGE + 5, 8) == b"by frame"
    access.check_writable(ARGUMENT_MFN * PAGE, PAGE)
    assert len(access.contiguous(ARGUMENT_MFN * PAGE, 64)) == 64
    for way in READS + WRITES:
        with pytest.raises(GuestFault):
            way(access, KERNEL_BASE)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_each_level_has_its_say(guest: NativeGuest, level: int) -> None:
    guest.map(VA, RAM_FIRST + 1)
    table, index = guest.tables(VA)[level]
    entry = guest.entry(table, index)
    for bits, reads in ((ALL & ~PRESENT, False), (ALL & ~USER, False), (ALL & ~RW, True), (ALL, True)):
        guest.set_entry(table, index, entry & ~ALL | bits)
        assert refused(guest, VA, READS) is not reads
        assert refused(guest, VA, WRITES) is (bits != ALL)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_superpage_is_neither_a_table_nor_memory(guest: NativeGuest, level: int) -> None:
    guest.map(VA, RAM_FIRST + 1)
    table, index = guest.tables(VA)[level]
    guest.set_entry(table, index, guest.entry(table, index) | PSE)
    assert refused(guest, VA, READS)
    assert refused(guest, VA, WRITES)


@pytest.mark.parametrize(
    "address",
    [
        1 << 47,
        (1 << 47) - 4,
        HYPERVISOR_VIRT_START,
        HYPERVISOR_VIRT_START - 8,
        HYPERVISOR_VIRT_END - 8,
        HYPERVISOR_VIRT_END - 4,
        (1 << 64) - 4,
        1 << 64,
        -8,
    ],
)
def test_addresses_that_no_guest_has(guest: NativeGuest, address: int) -> None:
    """Every slot of the level-4 table leads somewhere: it is the address that is refused."""
    table = guest.tables(VA)[0][0]
    for index in range(512):
        guest.set_entry(table, index, table << 12 | ALL)
    before = content(guest)
    for ways in (READS, WRITES):
        for way in ways:
            with pytest.raises(GuestFault):
                way(guest.vcpu.access, address) if way is not WRITES[2] else _check(
                    guest.vcpu.access, address
                )
    assert content(guest) == before


def test_the_last_bytes_below_each_border_are_the_guest_s(guest: NativeGuest) -> None:
    for last in ((1 << 47) - PAGE, (1 << 64) - PAGE, HYPERVISOR_VIRT_END):
        guest.map(last, RAM_FIRST + 5)
        assert not refused(guest, last + PAGE - 8, READS + WRITES)


def test_what_a_write_cannot_reach_wholly_is_not_written(guest: NativeGuest) -> None:
    guest.map(VA, RAM_FIRST + 1)
    guest.map(VA + PAGE, RAM_FIRST + 2, PRESENT | USER)
    before = content(guest)
    with pytest.raises(GuestFault):
        guest.vcpu.access.write(VA + 0xFF8, bytes(range(16)))
    assert content(guest) == before


def test_pages_that_are_not_ram_are_reached_but_are_no_tables(guest: NativeGuest) -> None:
    guest.map(VA, SHARED_INFO_MFN)
    guest.map(VA + PAGE, GRANT_TABLE_FIRST)
    assert not refused(guest, VA + 0xF00, READS + WRITES)
    assert not refused(guest, VA + PAGE, READS + WRITES)
    for level in range(4):
        fresh = new_guest()
        fresh.map(VA, RAM_FIRST + 1)
        fresh.domain.shared_info[:] = bytes(fresh.domain.memory.page(fresh.tables(VA)[level][0]))
        if level:
            table, index = fresh.tables(VA)[level - 1]
            fresh.set_entry(table, index, SHARED_INFO_MFN << 12 | ALL)
        else:
            fresh.vcpu.root = SHARED_INFO_MFN
        assert refused(fresh, VA, READS)


@pytest.mark.parametrize(
    "mfn",
    [
        0,
        1,
        RAM_FIRST - 1,
        RAM_FIRST + PAGES,
        FOREIGN_FIRST,
        MFN_END - 1,
        MFN_END,
        MONITOR_FIRST,
        (1 << 40) - 1,
    ],
)
def test_frames_that_are_not_there(guest: NativeGuest, mfn: int) -> None:
    guest.map(VA, mfn)
    assert refused(guest, VA, READS)
    assert refused(guest, VA, WRITES)
    for level in (1, 2, 3):
        fresh = new_guest()
        fresh.map(VA, RAM_FIRST + 1)
        table, index = fresh.tables(VA)[level - 1]
        fresh.set_entry(table, index, mfn << 12 | ALL)
        assert refused(fresh, VA, READS)
    guest.vcpu.root = mfn or MFN_END
    assert refused(guest, KERNEL_BASE, READS)


def test_what_was_granted_read_only_is_read_only(guest: NativeGuest) -> None:
    """Whatever its page tables say."""
    peer = GrantGuest(guest.machine, pages=8)
    peer.grant(5, guest.domid, 3, readonly=True)
    pin = peer.domain.grants.pin(5, guest.domid, readonly=True)
    guest.domain.memory.map_foreign(FOREIGN_FIRST, pin.mfn, False)
    guest.map(VA, FOREIGN_FIRST)
    assert not refused(guest, VA, READS)
    assert refused(guest, VA, WRITES)


@given(st.data())
def test_random_page_tables_lead_to_the_guest_s_own_pages_or_nowhere(data: st.DataObject) -> None:
    """A read gives what is in one of its pages, a write changes one of its pages, or it is a fault."""
    guest = new_guest()
    stranger = GrantGuest(guest.machine, pages=8)
    untouched = [bytes(stranger.domain.memory.page(page)) for page in range(8)]
    frame = st.one_of(
        st.integers(RAM_FIRST, RAM_FIRST + PAGES),
        st.sampled_from([0, SHARED_INFO_MFN, FOREIGN_FIRST, stranger.domain.memory.mfn(1) or 0]),
        st.integers(0, (1 << 40) - 1),
    )
    flags = st.one_of(st.just(ALL), st.integers(0, 0xFFF))
    for _ in range(data.draw(st.integers(1, 40))):
        table = data.draw(st.integers(RAM_FIRST, RAM_FIRST + PAGES - 1))
        index = data.draw(st.sampled_from([0, 1, 256, 510, 511]))
        guest.set_entry(
            table, index, data.draw(frame) << 12 | data.draw(flags) | data.draw(st.sampled_from([0, 1 << 63]))
        )
    guest.vcpu.root = data.draw(st.one_of(st.just(guest.root), frame))
    slots = st.sampled_from([0, 1, 256, 510, 511])
    address = sum(data.draw(slots) << shift for shift in (39, 30, 21, 12))
    address = data.draw(st.integers(0, 4095)) + (address | (0xFFFF << 48 if address >> 47 else 0))
    size = data.draw(st.integers(1, 3 * PAGE))
    before = content(guest)
    try:
        assert len(guest.vcpu.access.read(address, size)) == size
        guest.vcpu.access.write(address, bytes(size))
    except GuestFault:
        assert content(guest) == before
    assert [bytes(stranger.domain.memory.page(page)) for page in range(8)] == untouched
    assert guest.machine.audit() == []


def test_a_table_that_changes_is_walked_anew(guest: NativeGuest) -> None:
    """In one multicall, too: no translation is remembered."""
    guest.map(VA, RAM_FIRST + 1)
    access = guest.vcpu.access
    access.write(VA, b"first")
    table, index = guest.tables(VA)[2]
    other = RAM_FIRST + 9
    guest.domain.memory.page(other)[:] = bytes(PAGE)
    guest.set_entry(other, VA >> 12 & 511, (RAM_FIRST + 2) << 12 | ALL)
    guest.set_entry(table, index, other << 12 | ALL)
    access.write(VA, b"other")
    assert bytes(guest.domain.memory.page(RAM_FIRST + 1)[:5]) == b"first"
    assert bytes(guest.domain.memory.page(RAM_FIRST + 2)[:5]) == b"other"


def test_hypercalls_take_virtual_addresses(guest: NativeGuest) -> None:
    result = guest.hypercall(xen.__HYPERVISOR_xen_version, 1, VA)
    assert result == -XEN_EFAULT
    guest.map(VA, RAM_FIRST + 4)
    assert guest.hypercall(xen.__HYPERVISOR_xen_version, 1, VA + 8) == 0
    assert bytes(guest.domain.memory.page(RAM_FIRST + 4)[8:10]) == b".0"
    assert guest.hypercall(xen.__HYPERVISOR_xen_version, 1, VA, root=RAM_FIRST + 4) == -XEN_EFAULT
    assert not guest.machine.faults


def test_memory_in_many_pieces(guest: NativeGuest) -> None:
    """Tables and pages lie in runs of their own, as after ballooning."""
    domain = guest.domain
    domain.reservation.max_pages += 12
    places = [RAM_FIRST + 0x1000 + 3 * index for index in range(12)]
    for place in reversed(places):
        domain.populate(place, 1)
    table, index = guest.root, VA >> 39 & 511
    for shift, place in zip((30, 21, 12), places):
        guest.set_entry(table, index, place << 12 | ALL)
        table, index = place, VA >> shift & 511
    for page, place in enumerate(places[3:]):
        guest.set_entry(table, index + page, place << 12 | ALL)
    data = bytes(range(256)) * 16 * 9
    guest.vcpu.access.write(VA, data)
    assert guest.vcpu.access.read(VA, len(data)) == data
    assert [bytes(domain.memory.page(place)) for place in places[3:]] == [data[:4096]] * 9
    mfn, _ = domain.memory.remove_ram(places[1], 1)
    domain.reservation.give_up(mfn)
    assert refused(guest, VA, READS)
    assert guest.machine.audit() == []
