"""The domain builder for paravirtualized kernels: makes a domain by hypercalls, as Xen's libxenguest does.

Files are read and everything is planned before there is a domain. Its pages are then filled through mappings of a few
hundred at a time. Its page tables are validated where it is executed.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct as Codec
from typing import Final

from dom0.images.load import read_image, read_kernel
from dom0.images.ramdisk import unpacked_ramdisk
from dom0.toolstack.build_steps import (
    BuiltDomain,
    foreign_page,
    open_ports,
    populate,
    step,
    write_grants,
)
from dom0.toolstack.errors import BadMemorySize, BuildError, NoGrantTable
from dom0.toolstack.first_memory import Rings, first_context, first_memory
from dom0.toolstack.foreign_memory import write_pages
from dom0.toolstack.start_of_day import StartOfDay, plan
from hypervisor.abi.arch_x86_64 import XEN_LEGACY_MAX_VCPUS
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GNTST_okay
from hypervisor.abi.xen import vcpu_info
from hypervisor.pv.layout import MFN_END, RAM_FIRST
from kernel.kernel import Kernel
from kernel.platform import PAGE_SHIFT

MAX_PAGES: Final = MFN_END - RAM_FIRST
SLACK_KIB: Final = 1024
"""What Xen's toolstack lets any domain have beyond its memory (LIBXL_MAXMEM_CONSTANT)."""

_NATIVE: Final = 0
"""flags of a domain that is neither HVM nor PVH"""
_E820_ENTRY: Final = Codec("<QQI")
_E820_RAM: Final = 1


@dataclass(frozen=True, slots=True)
class PvConfig:
    """A paravirtualized domain's kernel and what goes with it. shuffled: no two neighbouring pages of the domain
    need be neighbours in the machine, as on a real one; otherwise PFN i is MFN RAM_FIRST + i.
    """

    kernel: Path
    ramdisk: Path | None = None
    command_line: str = ""
    vcpus: int = 1
    shuffled: bool = False


def build_pv_domain(
    kernel: Kernel, name: str, uuid: bytes, memory_bytes: int, config: PvConfig
) -> BuiltDomain:
    """Makes a paused domain that will begin at its kernel's entry point.

    Raises:
        BuildError: the files are bad or a step was refused; nothing of the domain is left.
    """
    hypercalls = kernel.hypercalls
    pages = memory_bytes >> PAGE_SHIFT
    if not 0 < pages <= MAX_PAGES:
        raise BuildError(name, "choose its size", BadMemorySize(memory_bytes, MAX_PAGES << PAGE_SHIFT))
    with step(name, "read its kernel"):
        image = read_kernel(config.kernel)
    ramdisk = b""
    if config.ramdisk is not None:
        with step(name, "read its ramdisk"):
            ramdisk = unpacked_ramdisk(read_image(config.ramdisk, memory_bytes), memory_bytes)
    with step(name, "plan its memory"):
        start = plan(image, pages, config.command_line.encode(), len(ramdisk))
    p2m = _frames(pages, shuffled=config.shuffled)
    with step(name, "create"):
        domid = hypercalls.createdomain(uuid, flags=_NATIVE, max_vcpus=config.vcpus)
    try:
        with step(name, f"give it {pages} pages"):
            hypercalls.max_vcpus(domid, config.vcpus)
            hypercalls.max_mem(domid, (memory_bytes >> 10) + SLACK_KIB)
            hypercalls.set_memory_map(domid, _E820_ENTRY.pack(0, pages << PAGE_SHIFT, _E820_RAM))
            populate(hypercalls, domid, RAM_FIRST, pages)
        with step(name, "open its rings"):
            rings = Rings(*open_ports(hypercalls, domid))
        with step(name, "fill its memory"):
            shared_info_mfn = hypercalls.getdomaininfo(domid).shared_info_frame
            write_pages(kernel, domid, p2m, first_memory(start, p2m, rings, shared_info_mfn, ramdisk))
            _mask_upcalls(kernel, domid, shared_info_mfn)
            if image.hypercall_page is not None:
                pfn = (image.hypercall_page - image.virt_base) >> PAGE_SHIFT
                hypercalls.hypercall_init(domid, p2m[pfn])
        with step(name, "grant its rings"):
            _grant_rings(kernel, domid, start, p2m)
        with step(name, "give its first vCPU its registers"):
            hypercalls.setvcpucontext(domid, 0, first_context(start, p2m))
    except BaseException:
        hypercalls.destroydomain(domid)
        raise
    return BuiltDomain(
        domid,
        pages,
        rings.store_port,
        p2m[start.layout.store_pfn],
        rings.console_port,
        p2m[start.layout.console_pfn],
        p2m=array("Q", p2m).tobytes() if config.shuffled else b"",
    )


def _frames(pages: int, *, shuffled: bool) -> Sequence[int]:
    """The machine frame of each page, as this domain sees machine frames: its own RAM."""
    if not shuffled:
        return range(RAM_FIRST, RAM_FIRST + pages)
    mfns = array("Q", range(RAM_FIRST, RAM_FIRST + pages))
    random.shuffle(mfns)
    return mfns


def _mask_upcalls(kernel: Kernel, domid: int, shared_info_mfn: int) -> None:
    """A kernel begins with upcalls masked on all vCPUs."""
    with foreign_page(kernel, domid, shared_info_mfn) as shared_info:
        for vcpu_id in range(XEN_LEGACY_MAX_VCPUS):
            shared_info[vcpu_id * vcpu_info.size + vcpu_info.offsets["evtchn_upcall_mask"]] = 1


def _grant_rings(kernel: Kernel, domid: int, start: StartOfDay, p2m: Sequence[int]) -> None:
    status, (table_mfn,) = kernel.hypercalls.grant_setup_table(1, domid)
    if status != GNTST_okay:
        raise NoGrantTable(domid, status)
    rings = {
        GNTTAB_RESERVED_XENSTORE: p2m[start.layout.store_pfn],
        GNTTAB_RESERVED_CONSOLE: p2m[start.layout.console_pfn],
    }
    with foreign_page(kernel, domid, table_mfn) as frame:
        write_grants(frame, rings)
