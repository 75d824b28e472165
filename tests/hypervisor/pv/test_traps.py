"""Exceptions, software interrupts, system calls and upcalls: whose they are, and how the kernel hears of them."""

import pytest

from hypervisor.pv import traps
from hypervisor.pv.cpu import Segment
from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.vcpu import CR2_WORD, UPCALL_MASK, UPCALL_PENDING
from tests.hypervisor.pv.cpu_guest import (
    CODE,
    EVENT,
    HOLE,
    SELECTOR_CODE_32,
    SELECTOR_CODE_64,
    SELECTOR_DATA,
    STACK_TOP,
    SYSCALL,
    SYSCALL32,
    SYSENTER,
    USER_SP,
    CpuGuest,
    booted,
    handler,
)
from tests.hypervisor.pv.paging import va


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def at(guest: CpuGuest, vector: int) -> bool:
    return guest.cpu.rip == handler(vector) and guest.vcpu.in_kernel


# Exceptions


@pytest.mark.parametrize("vector", [0, 1, 4, 5, 9, 16, 19])
def test_an_exception_without_error_code(guest: CpuGuest, vector: int) -> None:
    guest.user()
    traps.exception(guest.vcpu, vector, 0xDEAD, 0xBEEF)
    assert at(guest, vector)
    assert guest.cpu.rsp == STACK_TOP - 56
    assert guest.frame()["rip"] == va(CODE)


@pytest.mark.parametrize("vector", [10, 11, 12, 17])
def test_an_exception_with_error_code(guest: CpuGuest, vector: int) -> None:
    guest.user()
    traps.exception(guest.vcpu, vector, 0x18, 0xBEEF)
    assert at(guest, vector)
    assert guest.frame("error_code")["error_code"] == 0x18


def test_a_trap_table_entry_may_mask_upcalls() -> None:
    guest = booted(masks=4)
    traps.exception(guest.vcpu, 0, 0, 0)
    assert guest.vcpu.info[UPCALL_MASK]
    guest = booted()
    traps.exception(guest.vcpu, 0, 0, 0)
    assert not guest.vcpu.info[UPCALL_MASK]


def test_what_the_kernel_does_not_handle_ends_the_domain(guest: CpuGuest) -> None:
    assert guest.call("set_trap_table", 0) == 0
    with pytest.raises(DomainCrash, match=r"no exception 14 with error code 0x4 at 0x123"):
        traps.exception(guest.user().vcpu, 14, 0, 0x123)


@pytest.mark.parametrize(("user", "found"), [(True, 0x6), (False, 0x2)])
def test_the_error_code_of_a_page_fault_says_which_mode_of_the_guest_it_was(
    guest: CpuGuest, user: bool, found: int
) -> None:
    """For the processor it was always user mode."""
    if user:
        guest.user()
    traps.exception(guest.vcpu, 14, 6, 0x1234)
    assert at(guest, 14)
    assert guest.frame("error_code")["error_code"] == found
    assert guest.vcpu.cr2 == guest.vcpu.info_words[CR2_WORD] == 0x1234


def test_device_not_available_clears_task_switched(guest: CpuGuest) -> None:
    assert guest.call("fpu_taskswitch", 1) == 0
    assert guest.cpu.task_switched
    traps.exception(guest.vcpu, 7, 0, 0)
    assert at(guest, 7)
    assert not guest.cpu.task_switched


def test_debug_and_breakpoint(guest: CpuGuest) -> None:
    traps.debug(guest.user().vcpu)
    assert at(guest, 1)
    traps.breakpoint_trap(guest.user().vcpu)
    assert at(guest, 3)


# General protection


def test_a_fault_that_is_nothing_to_emulate_is_the_guests(guest: CpuGuest) -> None:
    guest.user(b"\xf4")
    traps.exception(guest.vcpu, 13, 0, 0)
    assert at(guest, 13)
    assert guest.frame("error_code")["error_code"] == 0
    assert guest.frame("error_code")["rip"] == va(CODE)


@pytest.mark.parametrize("error_code", [0x10, 0x14, 0x81, 0x403])
def test_a_fault_with_an_error_code_is_the_guests(guest: CpuGuest, error_code: int) -> None:
    traps.exception(guest.kernel(b"\xfa").vcpu, 13, error_code, 0)
    assert at(guest, 13)
    assert guest.frame("error_code")["error_code"] == error_code


def test_an_instruction_that_is_not_there_is_a_page_fault(guest: CpuGuest) -> None:
    guest.cpu.rip = va(HOLE)
    traps.general_protection(guest.vcpu, 0)
    assert at(guest, 14)
    assert guest.vcpu.cr2 == va(HOLE)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("vector", "allowed"), [(0x80, True), (0x81, False), (14, False), (13, False)])
def test_an_interrupt_instruction_needs_the_privilege(
    guest: CpuGuest, vector: int, allowed: bool, direct: bool
) -> None:
    guest.user(bytes([0xCD, vector]))
    if direct:
        traps.software_interrupt(guest.vcpu, vector, va(CODE) + 2)
    else:
        traps.exception(guest.vcpu, 13, vector << 3 | 2, 0)
    if allowed:
        assert at(guest, vector)
        assert guest.cpu.rsp == STACK_TOP - 56
        assert guest.frame()["rip"] == va(CODE) + 2
    else:
        assert at(guest, 13)
        assert guest.frame("error_code")["error_code"] == vector << 3 | 2
        assert guest.frame("error_code")["rip"] == va(CODE)


@pytest.mark.parametrize(("dpl", "allowed"), [(0, False), (1, True), (2, True), (3, True)])
def test_the_kernel_counts_as_ring_1(guest: CpuGuest, dpl: int, allowed: bool) -> None:
    guest.set_trap(0x90, dpl, handler(0x90))
    traps.software_interrupt(guest.kernel(b"\xcd\x90").vcpu, 0x90, va(CODE) + 2)
    assert at(guest, 0x90 if allowed else 13)


@pytest.mark.parametrize("vector", [3, 4])
def test_breakpoint_and_overflow_need_none(guest: CpuGuest, vector: int) -> None:
    traps.software_interrupt(guest.user().vcpu, vector, va(CODE) + 1)
    assert at(guest, vector)
    assert guest.frame()["rip"] == va(CODE) + 1


@pytest.mark.parametrize("vector", range(0, 256, 5))
def test_interrupts_without_a_handler_are_a_fault(guest: CpuGuest, vector: int) -> None:
    """XSA-259: of user mode's."""
    guest.set_trap(vector, 0, 0)
    guest.call("set_trap_table", 0)
    guest.set_trap(13, 0, handler(13))
    if vector == 13:
        return
    traps.software_interrupt(guest.user().vcpu, vector, va(CODE) + 2)
    assert at(guest, 13)


# System calls


@pytest.mark.parametrize("masks", [0, 1])
def test_a_system_call_of_a_64_bit_process(guest: CpuGuest, masks: int) -> None:
    assert guest.register(2, SYSCALL, masks) == 0
    guest.user(rflags=0x646)
    guest.cpu.rip += 2
    traps.syscall(guest.vcpu)
    frame = guest.frame()
    assert frame["rcx"] == frame["rip"] == va(CODE) + 2
    assert frame["r11"] == frame["rflags"] == 0x646
    assert (frame["cs"], frame["ss"], frame["rsp"]) == (0xE033, 0xE02B, USER_SP)
    assert guest.cpu.rip == SYSCALL
    assert guest.cpu.rflags == 0x246, "the direction flag is clear"
    assert guest.vcpu.info[UPCALL_MASK] == masks


def test_a_system_call_of_a_32_bit_process(guest: CpuGuest) -> None:
    guest.user(cs=SELECTOR_CODE_32, rip=0x1000)
    guest.cpu.rip += 2
    traps.syscall(guest.vcpu)
    assert guest.cpu.rip == SYSCALL32
    assert guest.frame()["cs"] == 0xE023
    assert guest.frame()["rip"] == 0x1002
    assert guest.cpu.selectors[Segment.CS] == 0xE033


@pytest.mark.parametrize("cs", [SELECTOR_CODE_64, SELECTOR_CODE_32])
def test_a_system_call_without_a_callback_is_an_invalid_opcode(guest: CpuGuest, cs: int) -> None:
    """XSA-8: once, at the instruction."""
    guest.vcpu.syscall.address = guest.vcpu.syscall32.address = 0
    guest.user(cs=cs, rip=0x1000)
    guest.cpu.rip += 2
    traps.syscall(guest.vcpu)
    assert at(guest, 6)
    assert guest.frame()["rip"] == 0x1000
    assert guest.cpu.rsp == STACK_TOP - 56


@pytest.mark.parametrize("flags", [0x246, 0x4246])
def test_sysenter_leaves_nothing_to_return_to(guest: CpuGuest, flags: int) -> None:
    guest.user(cs=SELECTOR_CODE_32, rip=0x1000, rflags=flags)
    traps.sysenter(guest.vcpu)
    assert guest.cpu.rip == SYSENTER
    frame = guest.frame()
    assert (frame["rip"], frame["cs"], frame["rsp"], frame["ss"]) == (0, 3, 0, 0xE02B)
    assert frame["rflags"] == 0x246, "nested task is cleared (XSA-44)"


def test_sysenter_without_a_callback_is_one_fault(guest: CpuGuest) -> None:
    """XSA-8, XSA-339."""
    guest.vcpu.sysenter.address = 0
    guest.set_trap(13, 4, handler(13))
    guest.user(rflags=0x4246)
    traps.sysenter(guest.vcpu)
    assert at(guest, 13)
    assert guest.cpu.rsp == STACK_TOP - 64
    assert guest.frame("error_code")["error_code"] == 0
    assert guest.vcpu.info[UPCALL_MASK]


def test_a_kernel_that_executes_sysenter_ends(guest: CpuGuest) -> None:
    with pytest.raises(DomainCrash, match="SYSENTER"):
        traps.sysenter(guest.vcpu)


# Upcalls


def test_an_upcall_comes_if_it_is_pending_and_not_masked(guest: CpuGuest) -> None:
    guest.user(rflags=0)
    guest.vcpu.info[UPCALL_PENDING] = 1
    assert not guest.vcpu.upcall_due
    traps.deliver_upcall(guest.vcpu)
    assert guest.cpu.rip == va(CODE)
    guest.vcpu.info[UPCALL_MASK] = 0
    assert guest.vcpu.upcall_due
    traps.deliver_upcall(guest.vcpu)
    assert guest.cpu.rip == EVENT
    assert guest.vcpu.info[UPCALL_MASK]
    assert guest.frame()["rflags"] & 0x200
    traps.deliver_upcall(guest.vcpu)
    assert guest.cpu.rsp == STACK_TOP - 56, "not twice"


def test_an_nmi_comes_once_until_the_guest_returns(guest: CpuGuest) -> None:
    guest.user()
    assert guest.call("vcpu_op", 11, 0, 0) == 0
    traps.deliver_upcall(guest.vcpu)
    assert at(guest, 2)
    assert guest.call("vcpu_op", 11, 0, 0) == 0
    rsp = guest.cpu.rsp
    traps.deliver_upcall(guest.vcpu)
    assert guest.cpu.rsp == rsp
    guest.leave()
    traps.deliver_upcall(guest.vcpu)
    assert at(guest, 2)


def test_an_nmi_without_a_handler_is_lost(guest: CpuGuest) -> None:
    assert guest.call("nmi_op", 1, 0) == 0
    assert guest.call("vcpu_op", 11, 0, 0) == 0
    guest.cpu.rip = va(CODE)
    traps.deliver_upcall(guest.vcpu)
    assert guest.cpu.rip == va(CODE)
    assert not guest.vcpu.nmi_masked


def test_data_segments_stay(guest: CpuGuest) -> None:
    guest.user()
    guest.cpu.load_segment(Segment.DS, SELECTOR_DATA, 0)
    traps.exception(guest.vcpu, 0, 0, 0)
    assert guest.cpu.selectors[Segment.DS] == SELECTOR_DATA
