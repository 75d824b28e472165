"""Selectors and descriptor tables of a native guest: set_gdt, update_descriptor, set_segment_base, and what a selector
names.

Follows xen/arch/x86/pv/descriptor-tables.c and misc-hypercalls.c of Xen 4.17. Descriptors are read by limit: what lies
behind the end of a table is never looked at (XSA-298).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import (
    FIRST_RESERVED_GDT_ENTRY,
    SEGBASE_FS,
    SEGBASE_GS_KERNEL,
    SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
)
from hypervisor.errors import BadFrame, InvalidArgument, XenError
from hypervisor.pv import descriptors
from hypervisor.pv.canonical import is_canonical
from hypervisor.pv.cpu import Segment
from hypervisor.pv.descriptors import CODE, CONFORMING, FLAT, PRESENT, RPL, SEGMENT, TABLE_INDICATOR, WRITABLE
from hypervisor.pv.frames import OWN_SEGDESC
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

DESCRIPTOR_BYTES: Final = 8
DESCRIPTORS_A_PAGE: Final = PAGE_SIZE // DESCRIPTOR_BYTES
NULL_SELECTORS: Final = 4


def descriptor_of(vcpu: PvVcpu, selector: int) -> int:
    """The descriptor that `selector` names; 0 for none: a null selector, one beyond its table, a page of the LDT
    that is no descriptor table.
    """
    index = selector >> 3
    if selector & TABLE_INDICATOR:
        if index >= vcpu.ldt_entries:
            return 0
        mfn = vcpu.ldt_frames[index >> 9]
    elif index >= vcpu.gdt_entries or index == 0:
        return FLAT.get(selector & ~RPL, 0)
    else:
        mfn = vcpu.gdt_frames[index >> 9]
    return vcpu.domain.memory.quads[mfn << 9 | index & 511] if mfn else 0


def load_data_segment(vcpu: PvVcpu, register: Segment, selector: int) -> bool:
    """Load DS, ES, FS or GS as a MOV at CPL 3 does. False, and nothing has changed, where that would fault."""
    cpu = vcpu.domain.cpu
    if selector < NULL_SELECTORS:
        cpu.load_segment(register, selector, 0)
        return True
    descriptor = descriptor_of(vcpu, selector)
    readable = not descriptor & CODE or descriptor & WRITABLE
    if not (descriptor & PRESENT and descriptor & SEGMENT and readable):
        return False
    cpu.load_segment(register, selector | RPL, descriptor)
    return True


def is_code_for_user(descriptor: int) -> bool:
    """Whether IRET may load it into CS for CPL 3."""
    wanted = PRESENT | SEGMENT | CODE
    if descriptor & wanted != wanted:
        return False
    if not descriptor & CONFORMING and descriptor & descriptors.DPL3 != descriptors.DPL3:
        return False
    return not (descriptor & descriptors.LONG and descriptor & descriptors.DEFAULT_32)


def is_stack_for_user(descriptor: int) -> bool:
    """Whether IRET may load it into SS for CPL 3."""
    wanted = PRESENT | SEGMENT | WRITABLE | descriptors.DPL3
    return descriptor & (wanted | CODE) == wanted


# Hypercalls


def set_gdt(vcpu: PvVcpu, frame_list: int, entries: int) -> int:
    """The hypercall. `frame_list` is the guest address of u64 MFNs, one for each 512 descriptors."""
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise InvalidArgument("entries", entries, f"at most {FIRST_RESERVED_GDT_ENTRY}")
    count = -(-entries // DESCRIPTORS_A_PAGE)
    data = (
        vcpu.domain.page_tables.read(vcpu.kernel_root, frame_list, count * DESCRIPTOR_BYTES) if count else b""
    )
    install_gdt(vcpu, list(memoryview(data).cast("Q")), entries)
    vcpu.domain.cpu.flush()
    return 0


def install_gdt(vcpu: PvVcpu, frames: list[int], entries: int) -> None:
    """Check and take the frames, then let go of those of the old table. All or nothing."""
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise InvalidArgument("entries", entries, f"at most {FIRST_RESERVED_GDT_ENTRY}")
    page_tables = vcpu.domain.page_tables
    taken: list[int] = []
    try:
        for mfn in frames:
            page_tables.take_descriptor_page(mfn)
            taken.append(mfn)
    except XenError as error:
        for mfn in taken:
            page_tables.put_descriptor_page(mfn)
        raise InvalidArgument("GDT frame", frames[len(taken)], "a valid descriptor table") from error
    release_gdt(vcpu)
    vcpu.gdt_frames[: len(frames)] = frames
    vcpu.gdt_entries = entries
    vcpu.domain.monitor.set_gdt(vcpu.id, frames, entries)


def release_gdt(vcpu: PvVcpu) -> None:
    """The vCPU has no descriptors of its own any more."""
    for index, mfn in enumerate(vcpu.gdt_frames):
        if mfn:
            vcpu.domain.page_tables.put_descriptor_page(mfn)
            vcpu.gdt_frames[index] = 0
    vcpu.gdt_entries = 0
    vcpu.domain.monitor.set_gdt(vcpu.id, [], 0)


def update_descriptor(vcpu: PvVcpu, address: int, descriptor: int) -> int:
    """The hypercall: write one descriptor at machine address `address`, in a descriptor table or in other memory."""
    mfn = address >> PAGE_SHIFT
    fixed = descriptors.fix(descriptor)
    if fixed is None:
        raise InvalidArgument("descriptor", hex(descriptor), "a code or data segment, or a call gate")
    if address % DESCRIPTOR_BYTES:
        raise InvalidArgument("descriptor's address", hex(address), "aligned to 8")
    if mfn >= MFN_END:
        raise BadFrame(mfn, "not the domain's")
    domain = vcpu.domain
    page_tables = domain.page_tables
    if domain.frames.uses[mfn] == OWN_SEGDESC:
        page_tables.take_descriptor_page(mfn)
        put = page_tables.put_descriptor_page
    else:
        page_tables.take_writable(mfn)
        put = page_tables.put_writable
    domain.memory.quads[address >> 3] = fixed
    put(mfn)
    return 0


def set_segment_base(vcpu: PvVcpu, which: int, base: int) -> int:
    """The hypercall. The guest is in kernel mode, so that GS of user mode is not in the processor."""
    if which == SEGBASE_GS_USER_SEL:
        _select_user_gs(vcpu, base & 0xFFFF)
        return 0
    if not is_canonical(base):
        raise InvalidArgument("base", hex(base), "canonical")
    if which == SEGBASE_FS:
        vcpu.domain.cpu.fs_base = base
    elif which == SEGBASE_GS_USER:
        vcpu.gs_base_user = base
    elif which == SEGBASE_GS_KERNEL:
        vcpu.domain.cpu.gs_base = base
    else:
        raise InvalidArgument("segment base", which, "SEGBASE_*")
    return 0


def _select_user_gs(vcpu: PvVcpu, selector: int) -> None:
    """GS gets the selector, and user mode its base; the base of kernel mode stays. A selector that cannot be loaded
    becomes null, and no error, since Linux would not survive one. A null selector has base 0.
    """
    cpu = vcpu.domain.cpu
    kernel_base = cpu.gs_base
    if selector >= NULL_SELECTORS and load_data_segment(vcpu, Segment.GS, selector):
        vcpu.gs_base_user = cpu.gs_base
    else:
        cpu.load_segment(Segment.GS, selector if selector < NULL_SELECTORS else 0, 0)
        vcpu.gs_base_user = 0
    cpu.gs_base = kernel_base
