"""The iret hypercall: what is taken from the frame, and what the processor would not have taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.arch_x86_64 import VGCF_in_syscall
from hypervisor.abi.mmu import MMUEXT_NEW_USER_BASEPTR
from hypervisor.pv.cpu import Segment
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.vcpu import UPCALL_MASK
from tests.hypervisor.pv.cpu_guest import (
    BASED,
    CODE,
    DESCRIPTORS,
    FAILSAFE,
    GDT_ENTRIES,
    HOLE,
    KERNEL_DATA,
    NOT_PRESENT,
    SELECTOR_CODE_32,
    SELECTOR_CODE_64,
    SELECTOR_DATA,
    STACK,
    USER_CODE_64,
    USER_L4,
    USER_SP,
    CpuGuest,
    booted,
)
from tests.hypervisor.pv.paging import mfn, va

ALWAYS = 0x202


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def test_to_user_mode(guest: CpuGuest) -> None:
    guest.vcpu.gs_base_user = 0x7000
    assert guest.leave() == 0xAA
    cpu = guest.cpu
    assert (cpu.rip, cpu.rsp, cpu.rflags, cpu.rcx, cpu.r11) == (va(CODE), USER_SP, 0x246, 0xCC, 0x11)
    assert cpu.selectors[Segment.CS] == SELECTOR_CODE_64
    assert cpu.loaded[Segment.CS] == DESCRIPTORS[USER_CODE_64]
    assert cpu.selectors[Segment.SS] == SELECTOR_DATA
    assert (guest.vcpu.in_kernel, cpu.root, cpu.gs_base) == (False, mfn(USER_L4), 0x7000)


def test_to_kernel_mode(guest: CpuGuest) -> None:
    """RPL 0 in CS says so; it becomes 3, as it always is."""
    assert guest.leave(cs=0xE030, ss=0xE028, rsp=va(STACK)) == 0xAA
    assert (guest.vcpu.in_kernel, guest.cpu.root) == (True, mfn(0))
    assert guest.cpu.selectors[Segment.CS] == 0xE033
    assert guest.cpu.selectors[Segment.SS] == 0xE02B


def test_to_compatibility_mode(guest: CpuGuest) -> None:
    guest.leave(cs=SELECTOR_CODE_32, rip=0xFFFF_FFFF)
    assert guest.cpu.selectors[Segment.CS] == SELECTOR_CODE_32
    assert guest.cpu.rip == 0xFFFF_FFFF


@pytest.mark.parametrize(("interrupts", "masked"), [(0x200, 0), (0, 1)])
def test_the_interrupt_flag_is_the_upcall_mask(guest: CpuGuest, interrupts: int, masked: int) -> None:
    guest.vcpu.info[UPCALL_MASK] = 1 - masked
    guest.leave(rflags=interrupts)
    assert guest.vcpu.info[UPCALL_MASK] == masked
    assert guest.cpu.rflags & ALWAYS == ALWAYS


@given(rflags=st.integers(0, (1 << 64) - 1), assist=st.booleans())
@settings(max_examples=60, deadline=None)
def test_flags_that_are_the_hypervisors_are_never_taken(rflags: int, assist: bool) -> None:
    guest = booted()
    guest.domain.vm_assist = 16 if assist else 0
    guest.leave(rflags=rflags)
    assert guest.cpu.rflags & ~0x254FD7 == 0
    assert guest.cpu.rflags & ALWAYS == ALWAYS
    assert guest.cpu.rflags & 0xFD5 & ~0x200 == rflags & 0xFD5 & ~0x200
    assert guest.vcpu.iopl == (rflags & 0x3000 if assist else 0)


@pytest.mark.parametrize(("cs", "loaded"), [(SELECTOR_CODE_64, 0xE033), (0xE023, 0xE023)])
def test_out_of_a_system_call_as_sysret_does_it(guest: CpuGuest, cs: int, loaded: int) -> None:
    guest.leave(flags=VGCF_in_syscall, cs=cs)
    cpu = guest.cpu
    assert (cpu.rcx, cpu.r11) == (va(CODE) if loaded == 0xE033 else cpu.rcx, 0x246)
    if loaded == 0xE033:
        assert cpu.selectors[Segment.CS] == loaded
        assert cpu.selectors[Segment.SS] == 0xE02B
    else:
        assert cpu.rip == FAILSAFE, "RIP is none of compatibility mode"


BAD = {
    "rip not canonical": {"rip": 1 << 47},
    "rip not canonical, of the upper half": {"rip": (1 << 64) - (1 << 47) - 1},
    "rip not canonical, by sysret": {"rip": 1 << 47, "flags": VGCF_in_syscall},
    "rip beyond 4 GiB in compatibility mode": {"cs": SELECTOR_CODE_32, "rip": 1 << 32},
    "null cs": {"cs": 3},
    "data in cs": {"cs": SELECTOR_DATA},
    "cs beyond the GDT": {"cs": GDT_ENTRIES << 3 | 3},
    "cs in an LDT that is not there": {"cs": 7},
    "empty descriptor": {"cs": 8 << 3 | 3},
    "hypervisor's ring-0 code": {"cs": 0xE00B},
    "beyond the hypervisor's own": {"cs": 0xFFFB},
    "null ss": {"ss": 0},
    "code in ss": {"ss": SELECTOR_CODE_64},
    "ss not present": {"ss": NOT_PRESENT << 3 | 3},
}


@pytest.mark.parametrize("frame", BAD.values(), ids=BAD)
def test_what_the_processor_would_refuse_goes_to_the_failsafe_callback(
    guest: CpuGuest, frame: dict[str, int]
) -> None:
    assert guest.leave(**frame) == 0xAA
    assert (guest.cpu.rip, guest.vcpu.in_kernel, guest.cpu.root) == (FAILSAFE, True, mfn(0))
    failed = guest.frame("ds", "es", "fs", "gs")
    assert failed["rip"] == frame.get("rip", va(CODE))
    assert failed["rsp"] == USER_SP
    if "flags" not in frame:
        assert failed["cs"] & 0xFFFF == frame.get("cs", SELECTOR_CODE_64) | 3
        assert failed["ss"] == frame.get("ss", SELECTOR_DATA) | 3
    guest.check()


def test_failing_in_kernel_mode_it_stays_there(guest: CpuGuest) -> None:
    guest.leave(cs=0xE030, ss=0xE02B, rip=1 << 47, rsp=va(STACK) + 0x800)
    assert guest.cpu.rip == FAILSAFE
    assert guest.frame("ds", "es", "fs", "gs")["cs"] == 0xE030
    assert va(STACK) < guest.cpu.rsp < va(STACK) + 0x800


def test_without_a_failsafe_callback_the_domain_ends(guest: CpuGuest) -> None:
    guest.vcpu.failsafe.address = 0
    with pytest.raises(DomainCrash, match="no handler"):
        guest.leave(cs=3)


def test_without_a_page_table_for_user_mode_the_domain_ends(guest: CpuGuest) -> None:
    assert guest.extended((MMUEXT_NEW_USER_BASEPTR, 0)) == 0
    with pytest.raises(DomainCrash, match="without a page table"):
        guest.leave()


@pytest.mark.parametrize("stack", [0, va(HOLE), 1 << 47, 0xFFFF_8000_0000_0000, va(HOLE) - 8])
def test_without_a_frame_the_domain_ends(guest: CpuGuest, stack: int) -> None:
    guest.cpu.rsp = stack
    with pytest.raises(DomainCrash, match="holds no frame"):
        guest.call("iret")


def test_a_frame_may_cross_pages(guest: CpuGuest) -> None:
    assert guest.leave(va(STACK + 1) - 24) == 0xAA
    assert guest.cpu.rsp == USER_SP


def test_an_nmi_may_come_again(guest: CpuGuest) -> None:
    guest.vcpu.nmi_masked = True
    guest.leave()
    assert not guest.vcpu.nmi_masked


def test_descriptors_with_dpl_0_were_adjusted(guest: CpuGuest) -> None:
    """Linux's kernel segments have DPL 0 in its GDT, and it loads them."""
    guest.leave(ss=KERNEL_DATA << 3)
    assert guest.cpu.loaded[Segment.SS] == DESCRIPTORS[KERNEL_DATA] | 3 << 45
    assert guest.get(6, BASED) == DESCRIPTORS[BASED]
