"""Guest memory of a translated guest: accesses against a plain model of bytes, changes of the physmap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.hvm_op import xen_hvm_param
from hypervisor.errors import BadFrame, BadGpfn, GuestFault
from hypervisor.extent import PAGE_SIZE
from hypervisor.frames import FrameTable
from hypervisor.guest_memory import GPFN_LIMIT, GuestMemory, PageKind
from hypervisor.reservation import Reservation


def never() -> None:
    """Nothing is ever drained here."""


class Memory:
    """A guest with RAM at 0 to 3 and 6 to 7, a foreign page at 4 and a read-only foreign one at 9."""

    def __init__(self) -> None:
        self.frames = FrameTable(4096)
        self.own = Reservation(self.frames, 1, 1024, never)
        self.peer = Reservation(self.frames, 2, 1024, never)
        self.guest = GuestMemory(self.frames, 1)
        self.guest.add_ram(0, self.own.allocate(4)[0].mfn, 4)
        self.guest.add_ram(6, self.own.allocate(2)[0].mfn, 2)
        self.theirs = self.peer.allocate(2)[0].mfn
        self.guest.map_foreign(4, self.theirs, True)
        self.guest.map_foreign(9, self.theirs + 1, False)

    readable = (0, 1, 2, 3, 4, 6, 7, 9)
    writable = (0, 1, 2, 3, 4, 6, 7)


@pytest.fixture
def memory() -> Memory:
    return Memory()


PLACES = st.one_of(st.integers(0, 11 * PAGE_SIZE), st.integers(0, 11).map(lambda page: page * PAGE_SIZE - 3))


@given(
    st.lists(st.tuples(PLACES, st.binary(max_size=3 * PAGE_SIZE)), max_size=6),
    st.lists(st.tuples(PLACES, st.integers(0, 3 * PAGE_SIZE)), max_size=6),
)
def test_reads_and_writes_do_what_a_plain_array_does(
    writes: list[tuple[int, bytes]], reads: list[tuple[int, int]]
) -> None:
    memory = Memory()
    model = bytearray(12 * PAGE_SIZE)

    def touched(address: int, size: int) -> set[int]:
        return set(range(address // PAGE_SIZE, (address + size - 1) // PAGE_SIZE + 1)) if size else set()

    for address, data in writes:
        if address < 0:
            continue
        if touched(address, len(data)) <= set(memory.writable):
            memory.guest.write(address, data)
            model[address : address + len(data)] = data
        else:
            with pytest.raises(GuestFault):
                memory.guest.write(address, data)
    for address, size in reads:
        if address < 0:
            continue
        if touched(address, size) <= set(memory.readable):
            assert memory.guest.read(address, size) == model[address : address + size]
        else:
            with pytest.raises(GuestFault):
                memory.guest.read(address, size)


def test_a_write_that_faults_has_written_nothing(memory: Memory) -> None:
    address = 4 * PAGE_SIZE - 2
    with pytest.raises(GuestFault) as caught:
        memory.guest.write(address, b"x" * (PAGE_SIZE + 4))
    assert (caught.value.domid, caught.value.address, caught.value.size) == (1, address, PAGE_SIZE + 4)
    assert memory.guest.read(address, 6) == bytes(6)


@pytest.mark.parametrize(
    "address",
    [5 * PAGE_SIZE, 4 * PAGE_SIZE + 4093, GPFN_LIMIT << 12, (1 << 64) - 8, (1 << 64) - 1, 1 << 64, 1 << 70],
)
def test_addresses_that_are_not_there_fault_and_never_wrap(memory: Memory, address: int) -> None:
    with pytest.raises(GuestFault):
        memory.guest.read_u64(address)
    with pytest.raises(GuestFault):
        memory.guest.write_u64(address, 1)
    with pytest.raises(GuestFault):
        memory.guest.read_struct(xen_hvm_param, address)
    with pytest.raises(GuestFault):
        memory.guest.check_writable(address, 8)


@pytest.mark.parametrize("address", [0, 5 * PAGE_SIZE, 1 << 64])
def test_no_bytes_are_everywhere(memory: Memory, address: int) -> None:
    for guest in (memory.guest, GuestMemory(memory.frames, 7)):
        assert guest.read(address, 0) == b""
        guest.write(address, b"")
        guest.check_writable(address, 0)


def test_structs_cross_pages_and_runs(memory: Memory) -> None:
    value = xen_hvm_param(domid=1, index=2, value=3)
    for address in (0, 5, PAGE_SIZE - 8, 4 * PAGE_SIZE - 8, 7 * PAGE_SIZE - 1):
        memory.guest.write_struct(address, value)
        assert memory.guest.read_struct(xen_hvm_param, address) == value


def test_numbers_are_little_endian_and_cut_to_their_width(memory: Memory) -> None:
    memory.guest.write_u64(8, 0x1_1122_3344_5566_7788)
    assert memory.guest.read(8, 8) == bytes.fromhex("8877665544332211")
    memory.guest.write_u32(8, -1)
    memory.guest.write_u16(8, 0x12345)
    assert (memory.guest.read_u16(8), memory.guest.read_u32(8)) == (0x2345, 0xFFFF2345)


def test_read_only_pages_are_read_only_in_every_way(memory: Memory) -> None:
    memory.frames.view(memory.theirs + 1)[0] = 5
    assert memory.guest.read(9 * PAGE_SIZE, 1) == b"\5"
    for use in (
        lambda: memory.guest.write(9 * PAGE_SIZE, b"x"),
        lambda: memory.guest.check_writable(9 * PAGE_SIZE, 1),
        lambda: memory.guest.contiguous(9 * PAGE_SIZE, 1),
    ):
        with pytest.raises(GuestFault):
            use()
    for view in (memory.guest.page(9), memory.guest.span(9, 1)):
        with pytest.raises(TypeError):
            view[0] = 1
    assert memory.frames.view(memory.theirs + 1)[0] == 5


def test_contiguous_gives_what_lies_together(memory: Memory) -> None:
    assert len(memory.guest.contiguous(8, 100)) == 100
    assert len(memory.guest.contiguous(3 * PAGE_SIZE, 3 * PAGE_SIZE)) == PAGE_SIZE
    assert len(memory.guest.contiguous(4 * PAGE_SIZE + 4000, 300)) == 96
    memory.guest.contiguous(4 * PAGE_SIZE, 8)[0] = 1
    assert memory.frames.view(memory.theirs)[0] == 1


def test_pages_and_spans(memory: Memory) -> None:
    memory.guest.write(PAGE_SIZE, b"\1")
    assert memory.guest.page(1)[0] == 1
    assert len(memory.guest.span(0, 4)) == 4 * PAGE_SIZE
    assert len(memory.guest.span(4, 1)) == PAGE_SIZE
    for gpfn, count in ((0, 5), (3, 2), (4, 2), (5, 1), (6, 3), (0, 0), (0, -1)):
        with pytest.raises(BadGpfn):
            memory.guest.span(gpfn, count)
    with pytest.raises(BadGpfn):
        memory.guest.page(5)


def test_what_is_where(memory: Memory) -> None:
    assert memory.guest.mfn(4) == memory.theirs
    assert memory.guest.mfn(5) is None
    assert memory.guest.mapped(0) is None
    page = memory.guest.mapped(9)
    assert page is not None
    assert (page.mfn, page.writable, page.kind) == (memory.theirs + 1, False, PageKind.GRANT)
    assert memory.guest.max_gpfn == 9
    assert GuestMemory(memory.frames, 7).max_gpfn == 0


@pytest.mark.parametrize(("gpfn", "count"), [(0, 1), (3, 1), (5, 2), (8, 2), (9, 1), (5, 10), (-1, 1)])
def test_nothing_is_mapped_over_what_is_there(memory: Memory, gpfn: int, count: int) -> None:
    mfn = memory.own.allocate(count)[0].mfn
    with pytest.raises(BadGpfn):
        memory.guest.add_ram(gpfn, mfn, count)
    with pytest.raises(BadGpfn):
        memory.guest.check_vacant(gpfn, count)


@pytest.mark.parametrize("gpfn", [GPFN_LIMIT, GPFN_LIMIT + 1, (1 << 64) - 1, -1])
def test_guest_frames_beyond_the_address_space_do_not_exist(memory: Memory, gpfn: int) -> None:
    with pytest.raises(BadGpfn):
        memory.guest.map_foreign(gpfn, memory.theirs, True)
    assert memory.frames.refs[memory.theirs] == 2


def test_neighbours_become_one_run(memory: Memory) -> None:
    (run,) = memory.own.allocate(3)
    for index in range(3):
        memory.guest.add_ram(20 + index, run.mfn + index, 1)
    assert len(memory.guest.span(20, 3)) == 3 * PAGE_SIZE


def test_a_hole_in_a_run_splits_it(memory: Memory) -> None:
    memory.guest.write(2 * PAGE_SIZE, b"\2")
    behind = memory.guest.mfn(1)
    assert memory.guest.remove_ram(1, 1) == (behind, 1)
    with pytest.raises(GuestFault):
        memory.guest.read(PAGE_SIZE, 1)
    assert memory.guest.read(2 * PAGE_SIZE, 1) == b"\2"
    assert memory.guest.remove_ram(2, 100)[1] == 2
    with pytest.raises(BadGpfn):
        memory.guest.remove_ram(2, 1)
    with pytest.raises(BadGpfn):
        memory.guest.remove_ram(4, 1)


def test_a_mapping_holds_a_reference(memory: Memory) -> None:
    frames = memory.frames
    assert (frames.refs[memory.theirs], frames.writable[memory.theirs]) == (2, 1)
    assert (frames.refs[memory.theirs + 1], frames.writable[memory.theirs + 1]) == (2, 0)
    assert memory.guest.unmap_foreign(4) == memory.theirs
    assert (frames.refs[memory.theirs], frames.writable[memory.theirs]) == (1, 0)
    with pytest.raises(BadGpfn):
        memory.guest.unmap_foreign(4)
    with pytest.raises(BadFrame):
        memory.guest.map_foreign(4, 1 << 40, True)
    memory.guest.check_vacant(4, 1)


def test_version_tells_that_a_view_may_be_stale(memory: Memory) -> None:
    before = memory.guest.version
    memory.guest.map_foreign(30, memory.theirs, True)
    assert memory.guest.version == before
    memory.guest.unmap_foreign(30)
    assert memory.guest.version != before
    before = memory.guest.version
    memory.guest.remove_ram(0, 1)
    assert memory.guest.version != before


def test_relinquishing_drops_references_in_slices(memory: Memory) -> None:
    assert not memory.guest.relinquish(1)
    assert memory.guest.relinquish(5)
    assert memory.frames.refs[memory.theirs] == memory.frames.refs[memory.theirs + 1] == 1
