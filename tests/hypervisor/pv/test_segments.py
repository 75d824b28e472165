"""set_gdt, update_descriptor, set_segment_base, and what selectors name."""

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.arch_x86_64 import (
    FIRST_RESERVED_GDT_ENTRY,
    SEGBASE_FS,
    SEGBASE_GS_KERNEL,
    SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
)
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL
from hypervisor.abi.mmu import MMUEXT_SET_LDT
from hypervisor.pv.cpu import Segment
from hypervisor.pv.frames import TypeOfFrame
from hypervisor.pv.layout import HYPERVISOR_VIRT_START, SHARED_INFO_MFN
from hypervisor.pv.segments import descriptor_of, load_data_segment
from tests.hypervisor.pv.cpu_guest import (
    BASED,
    BASED_AT,
    DATA,
    DESCRIPTORS,
    GDT,
    GDT_ENTRIES,
    HOLE,
    NOT_PRESENT,
    SELECTOR_CODE_64,
    USER_DATA,
    CpuGuest,
    booted,
)
from tests.hypervisor.pv.paging import L1, machine_address, mfn, va

NEW = 20
"""a page that is free"""
TSS = 0x0000_8900_0000_0067


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def set_gdt(guest: CpuGuest, frames: list[int], entries: int) -> int:
    guest.put(DATA, pack(f"<{len(frames)}Q", *frames))
    result = guest.call("set_gdt", va(DATA), entries)
    guest.check()
    return result


# The GDT


def test_the_pages_of_a_gdt_are_descriptor_tables_as_long_as_they_are_used(guest: CpuGuest) -> None:
    guest.protect(NEW)
    guest.cpu.flushes = 0
    assert set_gdt(guest, [mfn(NEW), mfn(GDT)], 1024) == 0
    assert guest.cpu.flushes
    assert guest.monitor.gdts[0] == ([mfn(NEW), mfn(GDT)], 1024)
    assert guest.type_of(mfn(NEW)) is TypeOfFrame.SEGDESC
    assert guest.map(va(NEW), mfn(NEW) << 12 | 3) < 0
    assert set_gdt(guest, [], 0) == 0
    assert guest.monitor.gdts[0] == ([], 0)
    guest.unprotect(NEW)


def test_descriptors_are_adjusted_when_a_page_becomes_a_table(guest: CpuGuest) -> None:
    assert guest.get(GDT, 1) == DESCRIPTORS[1] | 3 << 45


@pytest.mark.parametrize(
    "frames",
    [
        [mfn(DATA)],
        [mfn(L1)],
        [mfn(GDT), mfn(DATA)],
        [SHARED_INFO_MFN],
        [0],
        [1 << 40],
        [(1 << 64) - 1],
        [0xFFFFF],
    ],
)
def test_a_frame_that_is_none_leaves_the_old_gdt(guest: CpuGuest, frames: list[int]) -> None:
    counted = guest.counted(GDT)
    assert set_gdt(guest, frames, 512 * len(frames)) == -XEN_EINVAL
    assert (guest.vcpu.gdt_frames[0], guest.vcpu.gdt_entries) == (mfn(GDT), GDT_ENTRIES)
    assert guest.counted(GDT) == counted
    assert guest.monitor.gdts[0] == ([mfn(GDT)], GDT_ENTRIES)


def test_a_bad_descriptor_anywhere_in_the_page_refuses_it(guest: CpuGuest) -> None:
    guest.protect(NEW)
    guest.set(NEW, 511, TSS)
    assert set_gdt(guest, [mfn(NEW)], 1) == -XEN_EINVAL


def test_bad_arguments_of_set_gdt(guest: CpuGuest) -> None:
    assert guest.call("set_gdt", va(DATA), FIRST_RESERVED_GDT_ENTRY + 1) == -XEN_EINVAL
    assert guest.call("set_gdt", va(DATA), 0xFFFF_FFFF) == -XEN_EINVAL
    for address in (va(HOLE), HYPERVISOR_VIRT_START, 1 << 47, (1 << 64) - 4):
        assert guest.call("set_gdt", address, 512) == -XEN_EFAULT


# update_descriptor


def test_a_descriptor_is_checked_and_written(guest: CpuGuest) -> None:
    assert guest.call("update_descriptor", machine_address(GDT, 8), DESCRIPTORS[1]) == 0
    assert guest.get(GDT, 8) == DESCRIPTORS[1] | 3 << 45
    assert guest.call("update_descriptor", machine_address(GDT, 8), TSS) == -XEN_EINVAL
    assert guest.call("update_descriptor", machine_address(GDT, 8) + 4, 0) == -XEN_EINVAL
    assert guest.call("update_descriptor", machine_address(NEW, 8), DESCRIPTORS[1]) == 0
    assert guest.get(NEW, 8) == DESCRIPTORS[1] | 3 << 45
    guest.check()


@pytest.mark.parametrize(
    "address",
    [machine_address(L1), machine_address(0, 256), 0, 1 << 32, 1 << 63, (1 << 64) - 8, SHARED_INFO_MFN << 12],
)
def test_only_own_memory_and_descriptor_tables_are_written(guest: CpuGuest, address: int) -> None:
    before = guest.contents()
    assert guest.call("update_descriptor", address, DESCRIPTORS[1]) == -XEN_EINVAL
    assert guest.contents() == before
    guest.check()


@given(address=st.integers(0, (1 << 33)), descriptor=st.integers(0, (1 << 64) - 1))
@settings(max_examples=50, deadline=None)
def test_no_descriptor_breaks_anything(address: int, descriptor: int) -> None:
    guest = booted()
    guest.call("update_descriptor", address, descriptor)
    guest.call("update_descriptor", machine_address(GDT, address % 512), descriptor)
    guest.check()


# Selectors


def test_selectors_beyond_their_table_name_nothing(guest: CpuGuest) -> None:
    """XSA-298."""
    vcpu = guest.vcpu
    guest.set(GDT, GDT_ENTRIES, DESCRIPTORS[USER_DATA])
    assert descriptor_of(vcpu, USER_DATA << 3 | 3) == DESCRIPTORS[USER_DATA]
    assert descriptor_of(vcpu, GDT_ENTRIES << 3 | 3) == 0
    assert descriptor_of(vcpu, 0) == 0
    assert descriptor_of(vcpu, 7) == 0, "there is no LDT"
    assert descriptor_of(vcpu, 0xE033) == 0x00AF_FA00_0000_FFFF
    assert descriptor_of(vcpu, 0xE008) == 0
    assert descriptor_of(vcpu, 0xFFFF) == 0


def test_selectors_of_the_ldt(guest: CpuGuest) -> None:
    guest.protect(NEW)
    guest.set(NEW, 1, DESCRIPTORS[BASED])
    guest.set(NEW, 2, DESCRIPTORS[USER_DATA])
    assert guest.extended((MMUEXT_SET_LDT, va(NEW), 2)) == 0
    assert descriptor_of(guest.vcpu, 1 << 3 | 4) == DESCRIPTORS[BASED]
    assert descriptor_of(guest.vcpu, 2 << 3 | 4) == 0
    assert guest.extended((MMUEXT_SET_LDT, va(HOLE), 2)) == 0
    assert descriptor_of(guest.vcpu, 1 << 3 | 4) == 0


@pytest.mark.parametrize("selector", [NOT_PRESENT << 3 | 3, 8 << 3, GDT_ENTRIES << 3, 0xFFFF, 7])
def test_a_data_segment_that_would_fault_is_not_loaded(guest: CpuGuest, selector: int) -> None:
    before = dict(guest.cpu.selectors)
    assert not load_data_segment(guest.vcpu, Segment.DS, selector)
    assert guest.cpu.selectors == before
    assert load_data_segment(guest.vcpu, Segment.DS, SELECTOR_CODE_64), "readable code"


# Segment bases


def test_set_segment_base(guest: CpuGuest) -> None:
    assert guest.call("set_segment_base", SEGBASE_FS, 0x1000) == 0
    assert guest.call("set_segment_base", SEGBASE_GS_USER, 0x2000) == 0
    assert guest.call("set_segment_base", SEGBASE_GS_KERNEL, 0x3000) == 0
    assert (guest.cpu.fs_base, guest.vcpu.gs_base_user, guest.cpu.gs_base) == (0x1000, 0x2000, 0x3000)
    assert guest.call("set_segment_base", 4, 0) == -XEN_EINVAL


@pytest.mark.parametrize("which", [SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL])
@pytest.mark.parametrize("base", [1 << 47, 1 << 63, 0xFFFF_7FFF_FFFF_FFFF])
def test_a_base_is_canonical(guest: CpuGuest, which: int, base: int) -> None:
    """XSA-193."""
    before = guest.cpu.fs_base, guest.vcpu.gs_base_user, guest.cpu.gs_base
    assert guest.call("set_segment_base", which, base) == -XEN_EINVAL
    assert (guest.cpu.fs_base, guest.vcpu.gs_base_user, guest.cpu.gs_base) == before


@pytest.mark.parametrize(
    ("selector", "loaded", "base"),
    [
        (0, 0, 0),
        (3, 3, 0),
        (BASED << 3, BASED << 3 | 3, BASED_AT),
        (BASED << 3 | 3, BASED << 3 | 3, BASED_AT),
        (NOT_PRESENT << 3 | 3, 0, 0),
        (GDT_ENTRIES << 3, 0, 0),
        (0xE02B, 0xE02B, 0),
    ],
)
def test_the_gs_of_user_mode_by_selector(guest: CpuGuest, selector: int, loaded: int, base: int) -> None:
    guest.vcpu.gs_base_user = 0x7777
    kernel_base = guest.cpu.gs_base
    assert guest.call("set_segment_base", SEGBASE_GS_USER_SEL, selector) == 0
    assert guest.cpu.selectors[Segment.GS] == loaded
    assert (guest.vcpu.gs_base_user, guest.cpu.gs_base) == (base, kernel_base)
