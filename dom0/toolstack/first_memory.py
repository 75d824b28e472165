"""The bytes of a new PV domain's memory, and the registers of its first vCPU, as start_of_day.py has planned it.

p2m is everywhere the machine frame number of each of the domain's pages, by PFN.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dom0.toolstack.start_of_day import StartOfDay
from hypervisor.abi.arch_x86_64 import (
    FLAT_KERNEL_CS,
    FLAT_KERNEL_DS,
    FLAT_KERNEL_SS,
    VGCF_in_kernel,
    VGCF_online,
    cpu_user_regs,
    vcpu_guest_context,
)
from hypervisor.abi.start_info import (
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    start_info,
    start_info_console,
    start_info_console_domU,
)
from kernel.platform import PAGE_SHIFT

GUEST_TYPE: Final = b"xen-3.0-x86_64"

_INTERRUPT_FLAG: Final = 1 << 9
_DR6_DEFAULT: Final = 0xFFFF0FF0
_DR7_DEFAULT: Final = 0x400


@dataclass(frozen=True, slots=True)
class Rings:
    """The domain's ports for the two rings that dom0 serves."""

    store_port: int
    console_port: int


def first_memory(
    start: StartOfDay,
    p2m: Sequence[int],
    rings: Rings,
    shared_info_mfn: int,
    ramdisk: bytes | memoryview = b"",
) -> Iterator[tuple[int, bytes | memoryview]]:
    """All that is not zero: each time a pseudo-physical address, and what begins there. `ramdisk` is as long as
    it was said to be when this start was planned.
    """
    layout = start.layout
    for segment in start.image.segments:
        yield segment.virt - start.image.virt_base, segment.data
    if start.ramdisk_bytes:
        yield layout.ramdisk_pfn << PAGE_SHIFT, ramdisk
    yield layout.p2m_pfn << PAGE_SHIFT, memoryview(array("Q", p2m)).cast("B")
    yield layout.start_info_pfn << PAGE_SHIFT, _start_info(start, p2m, rings, shared_info_mfn).pack()
    for pfn, entries in start.tables.contents(p2m):
        yield pfn << PAGE_SHIFT, memoryview(entries).cast("B")


def _start_info(start: StartOfDay, p2m: Sequence[int], rings: Rings, shared_info_mfn: int) -> start_info:
    layout, image = start.layout, start.image
    info = start_info(
        magic=GUEST_TYPE,
        nr_pages=start.pages,
        shared_info=shared_info_mfn << PAGE_SHIFT,
        flags=SIF_VIRT_P2M_4TOOLS,
        store_mfn=p2m[layout.store_pfn],
        store_evtchn=rings.store_port,
        console=start_info_console(
            domU=start_info_console_domU(mfn=p2m[layout.console_pfn], evtchn=rings.console_port)
        ),
        pt_base=start.virt(layout.tables_pfn),
        nr_pt_frames=layout.tables,
        mfn_list=layout.p2m_virt,
        cmd_line=start.command_line,
    )
    if image.init_p2m is not None:
        info.first_p2m_pfn, info.nr_p2m_frames = layout.p2m_pfn, layout.p2m_frames
    if start.ramdisk_bytes:
        info.mod_len = start.ramdisk_bytes
        info.mod_start = start.virt(layout.ramdisk_pfn)
        if image.unmapped_ramdisk:
            info.mod_start = layout.ramdisk_pfn
            info.flags |= SIF_MOD_START_PFN
    return info


def first_context(start: StartOfDay, p2m: Sequence[int]) -> vcpu_guest_context:
    """The registers: at the kernel's entry point, with start_info in RSI, the end of the stack in RSP."""
    layout = start.layout
    stack_end = start.virt(layout.stack_pfn + 1)
    control = [0] * 8
    control[3] = p2m[layout.tables_pfn] << PAGE_SHIFT
    debug = [0, 0, 0, 0, 0, 0, _DR6_DEFAULT, _DR7_DEFAULT]
    registers = cpu_user_regs(
        rip=start.image.entry,
        rsp=stack_end,
        rsi=start.virt(layout.start_info_pfn),
        rflags=_INTERRUPT_FLAG,
        cs=FLAT_KERNEL_CS,
        ss=FLAT_KERNEL_SS,
        ds=FLAT_KERNEL_DS,
        es=FLAT_KERNEL_DS,
        fs=FLAT_KERNEL_DS,
        gs=FLAT_KERNEL_DS,
    )
    return vcpu_guest_context(
        flags=VGCF_in_kernel | VGCF_online,
        user_regs=registers,
        kernel_ss=FLAT_KERNEL_SS,
        kernel_sp=stack_end,
        ctrlreg=tuple(control),
        debugreg=tuple(debug),
    )
