"""The first memory of a PV kernel, looked at as the kernel will: through its page tables, from RSI on."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dom0.images.errors import BadImage
from dom0.images.kernel_image import KernelImage, Segment
from dom0.images.load import parse_kernel, read_kernel
from dom0.toolstack.errors import CommandLineTooLong, TooLittleMemory
from dom0.toolstack.first_memory import Rings, first_context, first_memory
from dom0.toolstack.start_of_day import StartOfDay, plan
from hypervisor.abi.arch_x86_64 import VGCF_in_kernel, VGCF_online
from hypervisor.abi.start_info import SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, start_info
from hypervisor.pv.layout import RAM_FIRST, SHARED_INFO_MFN
from tests.dom0.images.kernels import P2M, VIRT_BASE, grub, linux
from tests.guest_images import guest_image

PAGE = 4096
ZEROS = bytes(PAGE)
MIB = 1 << 20
PAGES = 128 * MIB // PAGE
PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
ADDRESS = 0x000F_FFFF_FFFF_F000
RINGS = Rings(store_port=17, console_port=18)


class Machine:
    """The domain's machine frames as they are when it begins."""

    def __init__(self, start: StartOfDay, p2m: Sequence[int], ramdisk: bytes = b"") -> None:
        self.p2m = p2m
        self.m2p = {mfn: pfn for pfn, mfn in enumerate(p2m)}
        self.frames: dict[int, bytearray | bytes] = {}
        written: set[range] = set()
        for address, data in first_memory(start, p2m, RINGS, SHARED_INFO_MFN, ramdisk):
            piece = range(address, address + len(data))
            assert not any(piece.start < other.stop and other.start < piece.stop for other in written)
            written.add(piece)
            self._write(address, bytes(data))
        self.context = first_context(start, p2m)
        self.root = self.context.ctrlreg[3] // PAGE

    def _write(self, address: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            pfn, offset = divmod(address + at, PAGE)
            count = min(PAGE - offset, len(data) - at)
            frame = bytearray(self.frames.get(self.p2m[pfn], ZEROS))
            frame[offset : offset + count] = data[at : at + count]
            self.frames[self.p2m[pfn]] = frame
            at += count

    def frame(self, mfn: int) -> bytes | bytearray:
        assert mfn in self.m2p, f"{mfn:#x} is no frame of the domain"
        return self.frames.get(mfn, ZEROS)

    def table(self, mfn: int) -> memoryview:
        return memoryview(self.frame(mfn)).cast("Q")

    def leaves(self) -> Iterator[tuple[int, int]]:
        """Every page that is mapped: its virtual address and its level 1 entry."""
        for number, entry in self._entries(self.root, 4, 0):
            sign = number & 1 << 35
            yield ((number | (0xFFFF_FFF0_0000_0000 if sign else 0)) << 12) & (1 << 64) - 1, entry

    def _entries(self, mfn: int, level: int, number: int) -> Iterator[tuple[int, int]]:
        for index, entry in enumerate(self.table(mfn)):
            if not entry:
                continue
            assert entry & PRESENT
            if level == 1:
                yield number << 9 | index, entry
            else:
                assert entry & ~ADDRESS == PRESENT | WRITABLE | USER | ACCESSED | DIRTY
                yield from self._entries((entry & ADDRESS) >> 12, level - 1, number << 9 | index)

    def tables(self) -> dict[int, int]:
        """The level of each page table, by MFN."""
        found = {self.root: 4}

        def look(mfn: int, level: int) -> None:
            for entry in self.table(mfn):
                if entry and level > 1:
                    below = (entry & ADDRESS) >> 12
                    assert found.setdefault(below, level - 1) == level - 1
                    look(below, level - 1)

        look(self.root, 4)
        return found

    def read(self, virt: int, size: int) -> bytes:
        """What the kernel reads there."""
        offset = virt % PAGE
        pages = range(virt - offset, virt + size, PAGE)
        data = b"".join(self.frame(self.walk(page)) for page in pages)
        return data[offset : offset + size]

    def walk(self, virt: int) -> int:
        """The frame that the page at `virt` is mapped to."""
        mfn = self.root
        for level in (4, 3, 2, 1):
            entry = self.table(mfn)[virt >> (3 + 9 * level) & 511]
            assert entry & PRESENT, f"{virt:#x} is not mapped"
            mfn = (entry & ADDRESS) >> 12
        return mfn

    def info(self) -> start_info:
        return start_info.unpack(self.read(self.context.user_regs.rsi, start_info.size))


def in_order(pages: int) -> Sequence[int]:
    return range(RAM_FIRST, RAM_FIRST + pages)


def shuffled(pages: int, seed: int = 1) -> Sequence[int]:
    mfns = array("Q", in_order(pages))
    Random(seed).shuffle(mfns)
    return mfns


def check(start: StartOfDay, machine: Machine, ramdisk: bytes) -> None:
    """All that xen.h promises."""
    image, layout, p2m = start.image, start.layout, machine.p2m
    registers, info = machine.context.user_regs, machine.info()
    mapped = dict(machine.leaves())
    tables = machine.tables()
    base = image.virt_base

    # 1, 2, 5, 7: one region, to a border of 4 MiB, of the first pages one to one, with padding
    region = {
        virt: entry for virt, entry in mapped.items() if base <= virt < base + layout.region_pages * PAGE
    }
    assert sorted(region) == [base + pfn * PAGE for pfn in range(layout.region_pages)]
    assert (base + layout.region_pages * PAGE) % (4 * MIB) == 0
    assert all(entry & ADDRESS == p2m[(virt - base) // PAGE] << 12 for virt, entry in region.items())
    assert layout.region_pages - (layout.stack_pfn + 1) >= 512 * 1024 // PAGE

    # 6: everything may be written but the page tables
    for entry in mapped.values():
        is_table = (entry & ADDRESS) >> 12 in tables
        assert entry & ~ADDRESS == PRESENT | ACCESSED | (0 if is_table else WRITABLE)

    # 3, 4: the order, packed
    order = [0 if image.unmapped_ramdisk or not ramdisk else layout.ramdisk_pfn]
    order += [] if image.init_p2m is not None else [layout.p2m_pfn]
    order += [
        layout.start_info_pfn,
        layout.store_pfn,
        layout.console_pfn,
        layout.tables_pfn,
        layout.stack_pfn,
    ]
    assert order == sorted(order)
    assert layout.start_info_pfn + 1 == layout.store_pfn == layout.console_pfn - 1 == layout.tables_pfn - 2
    assert layout.tables_pfn + layout.tables == layout.stack_pfn
    kernel_pages = -(-(image.virt_end - base) // PAGE)
    first_after = next((pfn for pfn in order if pfn), layout.start_info_pfn)
    assert kernel_pages == first_after

    # the kernel
    for segment in image.segments:
        assert machine.read(segment.virt, len(segment.data)) == bytes(segment.data)
        zeros = segment.memory_bytes - len(segment.data)
        assert machine.read(segment.virt + len(segment.data), zeros) == bytes(zeros)

    # start_info
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_64"
    assert info.nr_pages == start.pages == len(p2m)
    assert info.shared_info == SHARED_INFO_MFN * PAGE
    assert (info.store_mfn, info.store_evtchn) == (p2m[layout.store_pfn], RINGS.store_port)
    console = info.console.domU
    assert (console.mfn, console.evtchn) == (p2m[layout.console_pfn], RINGS.console_port)
    for mfn in (info.store_mfn, console.mfn):
        assert machine.frame(mfn) == bytes(PAGE)
    assert info.cmd_line.rstrip(b"\0") == start.command_line
    assert info.flags & ~SIF_MOD_START_PFN == SIF_VIRT_P2M_4TOOLS

    # page tables
    assert (info.pt_base, info.nr_pt_frames) == (base + layout.tables_pfn * PAGE, layout.tables)
    assert machine.root == p2m[layout.tables_pfn]
    first = {p2m[pfn] for pfn in range(layout.tables_pfn, layout.tables_pfn + layout.tables)}
    assert first <= tables.keys()
    others = {machine.m2p[mfn] for mfn in tables.keys() - first}
    list_frames = -(-start.pages * 8 // PAGE)
    if image.init_p2m is None:
        assert not others
        assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
    else:
        assert (info.first_p2m_pfn, info.nr_p2m_frames) == (layout.p2m_pfn, layout.p2m_frames)
        assert others == set(range(layout.p2m_pfn + list_frames, layout.p2m_pfn + layout.p2m_frames))
        assert info.mfn_list == image.init_p2m

    # p2m
    assert machine.read(info.mfn_list, 8 * start.pages) == array("Q", p2m).tobytes()

    # ramdisk
    assert info.mod_len == len(ramdisk)
    if ramdisk and image.unmapped_ramdisk:
        assert info.flags & SIF_MOD_START_PFN
        first_pfn = info.mod_start
        pages = range(first_pfn, first_pfn + -(-len(ramdisk) // PAGE))
        found = b"".join(machine.frame(p2m[pfn]) for pfn in pages)
        assert found.rstrip(b"\0") == ramdisk.rstrip(b"\0")
        assert first_pfn >= layout.region_pages
    elif ramdisk:
        assert machine.read(info.mod_start, len(ramdisk)) == ramdisk
        assert not info.flags & SIF_MOD_START_PFN

    # the first vCPU
    assert registers.rip == image.entry
    assert registers.rsp == machine.context.kernel_sp == base + (layout.stack_pfn + 1) * PAGE
    assert registers.rflags == 0x200
    assert (registers.cs, registers.ss, registers.ds, registers.es) == (0xE033, 0xE02B, 0, 0)
    assert machine.context.flags == VGCF_in_kernel | VGCF_online
    assert layout.end_pfn <= start.pages


RAMDISK = bytes(range(1, 200)) * 100


@pytest.mark.parametrize("order", [in_order, shuffled])
@pytest.mark.parametrize("ramdisk", [b"", b"x", RAMDISK, bytes(3 * PAGE)])
@pytest.mark.parametrize("data", [linux(), grub()])
def test_everything_is_where_xen_says(data: bytes, ramdisk: bytes, order: type[Sequence[int]]) -> None:
    start = plan(parse_kernel(data, "kernel"), PAGES, b"console=hvc0 quiet", len(ramdisk))
    check(start, Machine(start, order(PAGES), ramdisk), ramdisk)


def image_of(virt_base: int, start: int, size: int, **changes: object) -> KernelImage:
    virt = virt_base + start
    image = KernelImage("k", virt, virt_base, virt, virt + size, (Segment(virt, memoryview(b"k"), size),))
    return replace(image, **changes)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(
    virt_base=st.sampled_from(
        [0, 0x1000, 0x20_0000, 0x3FF_F000, VIRT_BASE, VIRT_BASE - 0x1000, 0xFFFF_8800_0000_0000]
    ),
    start_page=st.integers(0, 2000),
    size=st.integers(1, 6 * MIB),
    ramdisk=st.integers(0, MIB),
    pages=st.integers(6000, 20000),
    unmapped=st.booleans(),
    p2m=st.sampled_from([None, 0x1000, P2M, P2M + 0x1FF000, VIRT_BASE - (1 << 30), VIRT_BASE - 0x80_0000]),
    seed=st.integers(0, 9),
)
def test_kernels_of_any_size(  # noqa: PLR0917
    virt_base: int,
    start_page: int,
    size: int,
    ramdisk: int,
    pages: int,
    unmapped: bool,
    p2m: int | None,
    seed: int,
) -> None:
    assume(p2m is None or p2m < virt_base)
    image = image_of(virt_base, start_page * PAGE, size, init_p2m=p2m, unmapped_ramdisk=unmapped)
    disk = b"\1" * ramdisk
    try:
        start = plan(image, pages, b"", ramdisk)
    except (TooLittleMemory, BadImage):
        assume(False)
        raise
    check(start, Machine(start, shuffled(pages, seed), disk), disk)


@pytest.mark.parametrize("data", [linux(), grub()])
def test_a_domain_that_is_too_small(data: bytes) -> None:
    """The smallest one has not one page more than is used."""
    image = parse_kernel(data, "kernel")
    least = plan(image, PAGES, b"", len(RAMDISK)).layout.end_pfn
    while True:
        try:
            start = plan(image, least, b"", len(RAMDISK))
        except TooLittleMemory as found:
            error = found
            break
        check(start, Machine(start, in_order(least), RAMDISK), RAMDISK)
        least = min(least, start.layout.end_pfn) - 1
    assert error.wanted_pages > error.pages == least
    for pages in (1, 2, least // 2):
        with pytest.raises(TooLittleMemory):
            plan(image, pages, b"", len(RAMDISK))


def test_a_command_line_has_room_for_its_end() -> None:
    image = parse_kernel(linux(), "kernel")
    start = plan(image, PAGES, b"c" * 1023)
    assert Machine(start, in_order(PAGES)).info().cmd_line == b"c" * 1023 + b"\0"
    with pytest.raises(CommandLineTooLong, match="1024 bytes, start_info has room for 1023"):
        plan(image, PAGES, b"c" * 1024)


@pytest.mark.parametrize(
    ("virt_base", "size"),
    [
        ((1 << 47) - 8 * MIB, 8 * MIB),
        ((1 << 47) - 8 * MIB, 7 * MIB + 0x80000),
        ((1 << 64) - 8 * MIB, 8 * MIB),
        ((1 << 64) - 8 * MIB, 7 * MIB + 0x80000),
        (0xFFFF_FFFF_FF80_0000 - 0x1000, 8 * MIB),
    ],
)
def test_a_region_that_would_leave_the_guests_addresses(virt_base: int, size: int) -> None:
    with pytest.raises(BadImage, match="first mapping"):
        plan(image_of(virt_base, 0, size), PAGES)


def test_a_region_may_end_where_addresses_end() -> None:
    start = plan(image_of((1 << 64) - 8 * MIB, 0, 4 * MIB), PAGES)
    assert start.layout.region_pages == 8 * MIB // PAGE
    check(start, Machine(start, in_order(PAGES)), b"")


@pytest.mark.parametrize("p2m", [VIRT_BASE - 0x1000, 0x7FFF_FFFF_F000, 0xFFFF_87FF_FFFF_F000])
def test_a_p2m_list_that_would_lie_on_something_else(p2m: int) -> None:
    with pytest.raises(BadImage, match="p2m list"):
        plan(image_of(VIRT_BASE, 0, 4 * MIB, init_p2m=p2m), PAGES)


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("vmlinuz-amd64", 256),
        ("vmlinuz-cloud-amd64", 256),
        ("vmlinuz-cloud-amd64", 3000),
        ("grub-x86_64-xen.bin", 64),
    ],
)
def test_real_kernels(name: str, mib: int) -> None:
    image = read_kernel(guest_image(name))
    pages = mib * MIB // PAGE
    start = plan(image, pages, b"console=hvc0", len(RAMDISK))
    check(start, Machine(start, in_order(pages), RAMDISK), RAMDISK)


def test_a_recorded_start() -> None:
    """Debian's 6.1.0-56-amd64 with 256 MiB on a real Xen 4.17: the rings are neighbours, the ramdisk is at
    0x04c00000, as its console and XenStore said.
    """
    image = image_of(VIRT_BASE, 0x100_0000, 0x3A0_0000, init_p2m=P2M, unmapped_ramdisk=True)
    start = plan(image, 256 * MIB // PAGE, b"", 0x44_2000)
    assert start.layout.ramdisk_pfn == 0x4C00
    assert start.layout.console_pfn == start.layout.store_pfn + 1
