"""What a PV kernel finds when it begins: the start-of-day memory layout of public/xen.h.

From virt_base on, one region maps the domain's first pages one to one: the kernel, the ramdisk (if it must be
mapped), the p2m list (unless the kernel wants it elsewhere), start_info, the XenStore ring, the console ring,
the page tables, a stack, and at least 512 KiB of padding up to a border of 4 MiB. A ramdisk that need not be
mapped follows, then a p2m list that is mapped elsewhere, with the page tables that map it.

All of it is a pure function of the image and the sizes: no domain is needed. The bytes are made in
first_memory.py and initial_tables.py, once it is known which machine frame each page is.
"""

from dataclasses import dataclass
from typing import Final

from dom0.images.errors import BadImage
from dom0.images.kernel_elf import outside_of_xen
from dom0.images.kernel_image import KernelImage
from dom0.toolstack.errors import CommandLineTooLong, TooLittleMemory
from dom0.toolstack.initial_tables import InitialTables, Mapping
from hypervisor.abi.start_info import MAX_GUEST_CMDLINE
from kernel.platform import PAGE_SHIFT, PAGE_SIZE

PADDING_PAGES: Final = (512 << 10) >> PAGE_SHIFT
REGION_PAGES: Final = (4 << 20) >> PAGE_SHIFT
"""The first region ends on a multiple of this, in virtual addresses."""

P2M_ENTRY_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is, in pseudo-physical frame numbers (PFNs) and virtual addresses."""

    ramdisk_pfn: int
    p2m_pfn: int
    p2m_frames: int
    """frames of the p2m list, and of the page tables that map it where it is not in the first region"""
    p2m_virt: int
    start_info_pfn: int
    store_pfn: int
    console_pfn: int
    tables_pfn: int
    """the first of the page tables, which is the root"""
    tables: int
    """how many of them map the first region"""
    stack_pfn: int
    region_pages: int
    """pages of the first region"""
    end_pfn: int
    """the first page that nothing was put into"""


@dataclass(frozen=True, slots=True)
class StartOfDay:
    """A domain's first memory. `layout` says where things are, `tables` are its page tables."""

    image: KernelImage
    pages: int
    command_line: bytes
    ramdisk_bytes: int
    layout: Layout
    tables: InitialTables

    def virt(self, pfn: int) -> int:
        """Where a page of the first region is mapped."""
        return self.image.virt_base + (pfn << PAGE_SHIFT)


def plan(image: KernelImage, pages: int, command_line: bytes = b"", ramdisk_bytes: int = 0) -> StartOfDay:
    """Where everything goes in a domain of so many pages.

    Raises:
        BadImage: the kernel asks for what cannot be.
        CommandLineTooLong, TooLittleMemory.
    """
    if len(command_line) >= MAX_GUEST_CMDLINE:
        raise CommandLineTooLong(len(command_line), MAX_GUEST_CMDLINE - 1)
    free = _Free(pages)
    free.take(_frames(image.virt_end - image.virt_base), "the kernel")
    ramdisk_frames, p2m_frames = _frames(ramdisk_bytes), _frames(pages * P2M_ENTRY_BYTES)
    ramdisk_pfn = p2m_pfn = 0
    if not image.unmapped_ramdisk:
        ramdisk_pfn = free.take(ramdisk_frames, "the ramdisk")
    if image.init_p2m is None:
        p2m_pfn = free.take(p2m_frames, "the p2m list")
    start_info_pfn = free.take(1, "start_info")
    store_pfn = free.take(1, "the XenStore ring")
    console_pfn = free.take(1, "the console ring")
    tables = InitialTables(free.next)
    region_pages = _region(image, free.next, tables)
    free.take(tables.count, "the page tables")
    first_tables = tables.count
    stack_pfn = free.take(1, "the stack")
    free.take(region_pages - free.next, "the first mapping")
    if image.unmapped_ramdisk:
        ramdisk_pfn = free.take(ramdisk_frames, "the ramdisk")
    p2m_virt = image.virt_base + (p2m_pfn << PAGE_SHIFT)
    if image.init_p2m is not None:
        p2m_virt = image.init_p2m
        p2m_pfn = free.take(p2m_frames, "the p2m list")
        _check_apart(image, p2m_frames)
        tables.map(Mapping(p2m_virt, p2m_pfn, p2m_frames), free.next)
        more = tables.count - first_tables
        free.take(more, "the page tables of the p2m list")
        p2m_frames += more
    layout = Layout(
        ramdisk_pfn=ramdisk_pfn,
        p2m_pfn=p2m_pfn,
        p2m_frames=p2m_frames,
        p2m_virt=p2m_virt,
        start_info_pfn=start_info_pfn,
        store_pfn=store_pfn,
        console_pfn=console_pfn,
        tables_pfn=tables.root_pfn,
        tables=first_tables,
        stack_pfn=stack_pfn,
        region_pages=region_pages,
        end_pfn=free.next,
    )
    return StartOfDay(image, pages, command_line, ramdisk_bytes, layout, tables)


class _Free:
    """The domain's pages, taken from the front."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.next = 0

    def take(self, count: int, what: str) -> int:
        """The first of `count` pages. Raises TooLittleMemory, which says what they were for."""
        first, end = self.next, self.next + count
        if end > self.pages:
            raise TooLittleMemory(what, end, self.pages)
        self.next = end
        return first


def _frames(size: int) -> int:
    return size + PAGE_SIZE - 1 >> PAGE_SHIFT


def _region(image: KernelImage, used: int, tables: InitialTables) -> int:
    """How many pages the first region has, so that its own page tables, the stack and the padding fit into it;
    `tables` are those of it then.
    """
    base = image.virt_base >> PAGE_SHIFT
    needed = used + 1 + PADDING_PAGES
    while True:
        end = -(-(base + needed + tables.count) // REGION_PAGES) * REGION_PAGES
        if not outside_of_xen(image.virt_base, end << PAGE_SHIFT):
            found = f"a first mapping from {image.virt_base:#x} to {end << PAGE_SHIFT:#x}"
            raise BadImage(image.file, 0, found, "addresses that are the guest's to map")
        tables.clear()
        tables.map(Mapping(image.virt_base, 0, end - base), tables.first_pfn)
        if base + needed + tables.count <= end:
            return end - base


def _check_apart(image: KernelImage, p2m_frames: int) -> None:
    """The kernel's p2m list lies below the first region, which is known to be the guest's."""
    start = image.init_p2m or 0
    end = start + (p2m_frames << PAGE_SHIFT)
    if end > image.virt_base or not outside_of_xen(start, end):
        raise BadImage(
            image.file, 0, f"a p2m list from {start:#x} to {end:#x}", "addresses that are free for it"
        )
