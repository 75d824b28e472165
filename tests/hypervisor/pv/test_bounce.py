"""Frames on the kernel's stack: what lies where, which state the kernel is entered in, and when there is none."""

import pytest

from hypervisor.pv.bounce import enter_kernel, toggle_mode
from hypervisor.pv.cpu import Segment
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.descriptors import FLAT_CODE_64, FLAT_DATA
from hypervisor.pv.layout import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from hypervisor.pv.vcpu import UPCALL_MASK
from tests.hypervisor.pv.cpu_guest import (
    HOLE,
    SELECTOR_CODE_64,
    SELECTOR_DATA,
    STACK,
    STACK_TOP,
    USER_SP,
    CpuGuest,
    booted,
)
from tests.hypervisor.pv.paging import L1, mfn, va

ADDRESS = 0xFFFF_FFFF_8123_4560


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def test_from_user_mode_the_frame_lies_at_the_top_of_the_registered_stack(guest: CpuGuest) -> None:
    guest.user(r11=0x1111, rcx=0x2222, rflags=0x246)
    enter_kernel(guest.vcpu, ADDRESS, False)
    cpu = guest.cpu
    assert cpu.rsp == STACK_TOP - 56
    assert guest.frame() == {
        "rcx": 0x2222,
        "r11": 0x1111,
        "rip": va(10),
        "cs": SELECTOR_CODE_64,
        "rflags": 0x246,
        "rsp": USER_SP,
        "ss": SELECTOR_DATA,
    }
    assert (cpu.rip, guest.vcpu.in_kernel, cpu.root) == (ADDRESS, True, mfn(0))
    assert (cpu.selectors[Segment.CS], cpu.loaded[Segment.CS]) == (0xE033, FLAT_CODE_64)
    assert (cpu.selectors[Segment.SS], cpu.loaded[Segment.SS]) == (0xE02B, FLAT_DATA)


def test_from_kernel_mode_it_lies_below_the_stack_pointer_and_says_ring_0(guest: CpuGuest) -> None:
    guest.cpu.rsp = va(STACK + 1) + 0x7B
    enter_kernel(guest.vcpu, ADDRESS, False)
    assert guest.cpu.rsp == va(STACK + 1) + 0x70 - 56
    assert guest.frame()["cs"] == 0xE030
    assert guest.frame()["rsp"] == va(STACK + 1) + 0x7B


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("masks", [False, True])
def test_the_upcall_mask_is_saved_and_set_if_asked_for(guest: CpuGuest, masked: int, masks: bool) -> None:
    guest.vcpu.info[UPCALL_MASK] = masked
    guest.cpu.rflags = 0x246
    enter_kernel(guest.vcpu, ADDRESS, masks)
    assert guest.vcpu.info[UPCALL_MASK] == (masked or masks)
    frame = guest.frame()
    assert frame["cs"] == 0xE030 | masked << 32
    assert frame["rflags"] == (0x46 if masked else 0x246)
    assert guest.cpu.rflags & 0x200


def test_an_error_code_lies_below_rip(guest: CpuGuest) -> None:
    enter_kernel(guest.vcpu, ADDRESS, False, 0x1234)
    assert guest.frame("error_code")["error_code"] == 0x1234
    assert guest.cpu.rsp % 16 == 0


def test_a_failsafe_frame_has_the_data_segments(guest: CpuGuest) -> None:
    for number, register in enumerate((Segment.DS, Segment.ES, Segment.FS, Segment.GS)):
        guest.cpu.selectors[register] = 0x23 + 8 * number
    enter_kernel(guest.vcpu, ADDRESS, False, failsafe=True)
    frame = guest.frame("ds", "es", "fs", "gs")
    assert [frame[name] for name in ("ds", "es", "fs", "gs")] == [0x23, 0x2B, 0x33, 0x3B]


def test_flags_that_would_disturb_the_kernel_are_cleared_but_pushed(guest: CpuGuest) -> None:
    guest.user(rflags=0x254FD7)
    assert guest.cpu.rflags == 0x254FD7
    enter_kernel(guest.vcpu, ADDRESS, False)
    assert guest.frame()["rflags"] == 0x254FD7
    assert guest.cpu.rflags == 0x254FD7 & ~0x54100


def test_the_iopl_is_pushed_where_the_guest_asked_for_it(guest: CpuGuest) -> None:
    guest.vcpu.iopl = 0x1000
    guest.domain.vm_assist = 1 << 4
    enter_kernel(guest.vcpu, ADDRESS, False)
    assert guest.frame()["rflags"] & 0x3000 == 0x1000


def test_modes_have_gs_bases_of_their_own(guest: CpuGuest) -> None:
    guest.vcpu.gs_base_user = 0x7000
    toggle_mode(guest.vcpu)
    assert (guest.cpu.gs_base, guest.vcpu.in_kernel) == (0x7000, False)
    guest.cpu.gs_base = 0x8000
    toggle_mode(guest.vcpu)
    assert (guest.cpu.gs_base, guest.vcpu.gs_base_user) == (0xFFFF_FFFF_9000_0000, 0x8000)


def test_a_frame_may_cross_pages(guest: CpuGuest) -> None:
    guest.cpu.rsp = va(STACK + 1) + 16
    enter_kernel(guest.vcpu, ADDRESS, False)
    assert guest.frame()["rsp"] == va(STACK + 1) + 16


@pytest.mark.parametrize(
    "stack",
    [
        HYPERVISOR_VIRT_START + 0x1000,
        HYPERVISOR_VIRT_END - 16,
        HYPERVISOR_VIRT_END,
        HYPERVISOR_VIRT_END + 32,
        HYPERVISOR_VIRT_START + 16,
        HYPERVISOR_VIRT_START,
        1 << 47,
        0,
        16,
        va(HOLE + 1),
        va(HOLE + 1) + 32,
        va(L1 + 1),
        (1 << 64) - 16,
    ],
)
@pytest.mark.parametrize("failsafe", [False, True])
@pytest.mark.parametrize("user", [False, True])
def test_a_stack_that_cannot_take_it_ends_the_domain(
    guest: CpuGuest, stack: int, failsafe: bool, user: bool
) -> None:
    if user:
        guest.user()
        assert guest.call("stack_switch", 0xE02B, stack) == 0
    else:
        guest.cpu.rsp = stack
    before = guest.contents()
    with pytest.raises(DomainCrash, match="cannot take a frame"):
        enter_kernel(guest.vcpu, ADDRESS, False, failsafe=failsafe)
    after = guest.contents()
    changed = [page for page in range(guest.pages) if before[page] != after[page]]
    assert set(changed) <= {L1}, "accessed bits alone"
    guest.check()


def test_no_address_ends_the_domain(guest: CpuGuest) -> None:
    with pytest.raises(DomainCrash, match="no handler"):
        enter_kernel(guest.vcpu, 0, False)
