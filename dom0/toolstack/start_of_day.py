"""What a PV kernel finds when it begins: the start-of-day memory layout of public/xen.h.

From virt_base on, one region maps the domain's first pages one to one: the kernel, the ramdisk (if it must be
mapped), the p2m list (unless the kernel wants it elsewhere), start_info, the XenStore ring, the console ring,
the page tables, a stack, and at least 512 KiB of padding up to a border of 4 MiB. A ramdisk that need not be
mapped follows, then a p2m list that is mapped elsewhere, with the page tables that map it.

All of it is a pure function of the image and the sizes: no domain is needed. `plan` says what is where,
`StartOfDay` makes the bytes once it is known which machine frame each page is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dom0.images.kernel_image import KernelImage
from hypervisor.abi.arch_x86_64 import vcpu_guest_context


@dataclass(frozen=True, slots=True)
class Rings:
    """The domain's ports for the two rings that dom0 serves."""

    store_port: int
    console_port: int


@dataclass(frozen=True, slots=True)
class StartOfDay:
    """Where everything is, in pseudo-physical frame numbers (PFNs) and virtual addresses.

    p2m everywhere below: the machine frame number of each PFN, `pages` of them.
    """

    image: KernelImage
    pages: int
    command_line: bytes
    ramdisk_bytes: int
    start_info_pfn: int
    store_pfn: int
    console_pfn: int
    stack_pfn: int
    page_tables_pfn: int
    """the first of the page tables, which is the root"""
    page_tables: int
    """how many of them map the first region"""
    p2m_pfn: int
    p2m_frames: int
    """frames of the p2m list, and of the page tables that map it where it is not in the first region"""
    p2m_virt: int
    ramdisk_pfn: int

    def writes(
        self, p2m: Sequence[int], rings: Rings, ramdisk: bytes | memoryview, shared_info_mfn: int
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """All that is not zero in the new domain's memory: each time the PFN of a page, and bytes that go
        there and on into the pages that follow.
        """
        raise NotImplementedError

    def context(self, p2m: Sequence[int]) -> vcpu_guest_context:
        """The registers of the first vCPU."""
        raise NotImplementedError


def plan(image: KernelImage, pages: int, command_line: bytes, ramdisk_bytes: int) -> StartOfDay:
    """Where everything goes in a domain of so many pages.

    Raises:
        BadImage: the kernel asks for what cannot be.
        CommandLineTooLong, TooLittleMemory.
    """
    raise NotImplementedError
