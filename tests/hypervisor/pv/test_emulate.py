"""Privileged instructions of a guest's kernel, by their bytes."""

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pv import traps
from hypervisor.pv.cpu import Segment
from hypervisor.pv.cpuid import execute
from hypervisor.pv.vcpu import CR2_WORD
from tests.hypervisor.pv.cpu_guest import (
    CODE,
    DATA,
    HOLE,
    SELECTOR_CODE_32,
    U64,
    USER_L4,
    CpuGuest,
    booted,
    handler,
)
from tests.hypervisor.pv.fake_cpu import NAMES
from tests.hypervisor.pv.paging import mfn, va


@pytest.fixture
def guest() -> CpuGuest:
    guest = booted()
    guest.put(DATA, pack("<I", 1))
    assert guest.call("physdev_op", 6, va(DATA)) == 0
    return guest


def execute_faulting(guest: CpuGuest, code: bytes) -> bool:
    """Whether it was emulated, with RIP behind it; else the guest has its fault, and nothing else has happened."""
    if guest.vcpu.in_kernel:
        guest.kernel(code)
    else:
        guest.put(CODE, code)
        guest.cpu.rip = va(CODE)
    before = guest.cpu.general()
    traps.general_protection(guest.vcpu, 0)
    if guest.cpu.rip == va(CODE) + len(code):
        return True
    assert guest.cpu.rip == handler(13)
    assert guest.frame("error_code")["rip"] == va(CODE)
    assert guest.cpu.general() | {"rsp": 0} == before | {"rsp": 0}
    return False


@pytest.mark.parametrize("code", [b"\xfa", b"\xfb"])
def test_cli_and_sti_do_nothing_but_need_the_privilege(guest: CpuGuest, code: bytes) -> None:
    before = bytes(guest.vcpu.info)
    assert execute_faulting(guest, code)
    assert bytes(guest.vcpu.info) == before
    guest.user()
    assert not execute_faulting(guest, code)
    guest.vcpu.iopl = 0x3000
    guest.user()
    assert execute_faulting(guest, code)
    guest.vcpu.iopl = 0
    traps.deliver_exception(guest.vcpu, 0)
    assert not execute_faulting(guest, code)
    assert guest.call("vm_assist", 0, 4) == 0
    assert execute_faulting(guest, code)


# Control registers


def test_reading_control_registers(guest: CpuGuest) -> None:
    guest.vcpu.cr2 = 0x1234
    for code, value in (
        (b"\x0f\x20\xc3", 0x8005_0033),
        (b"\x0f\x20\xd3", 0x1234),
        (b"\x0f\x20\xdb", mfn(0) << 12),
        (b"\x0f\x20\xe3", guest.vcpu.cr4),
    ):
        assert execute_faulting(guest, code)
        assert guest.cpu.rbx == value
    guest.cpu.task_switched = True
    assert execute_faulting(guest, b"\x0f\x20\xc3")
    assert guest.cpu.rbx == 0x8005_003B
    assert execute_faulting(guest, b"\x41\x0f\x20\xc7"), "with REX, into r15"
    assert guest.cpu.r15 == 0x8005_003B
    assert not execute_faulting(guest, b"\x0f\x20\xcb"), "CR1"
    assert not execute_faulting(guest, b"\x44\x0f\x20\xc3"), "CR8"


def test_writing_cr0_changes_task_switched_alone(guest: CpuGuest) -> None:
    guest.cpu.rax = 0x8005_003B
    assert execute_faulting(guest, b"\x0f\x22\xc0")
    assert guest.cpu.task_switched
    assert execute_faulting(guest, b"\x0f\x06")
    assert not guest.cpu.task_switched
    guest.cpu.rax = 0x0005_0033
    assert not execute_faulting(guest, b"\x0f\x22\xc0")


def test_writing_cr2(guest: CpuGuest) -> None:
    guest.cpu.rax = 0xABCD
    assert execute_faulting(guest, b"\x0f\x22\xd0")
    assert guest.vcpu.cr2 == guest.vcpu.info_words[CR2_WORD] == 0xABCD


def test_writing_cr3_is_a_new_root(guest: CpuGuest) -> None:
    guest.cpu.rax = mfn(USER_L4) << 12
    assert execute_faulting(guest, b"\x0f\x22\xd8")
    assert guest.vcpu.kernel_root == guest.cpu.root == mfn(USER_L4)
    for root in (mfn(DATA), mfn(1), 0, 1 << 40, U64 >> 12):
        guest.cpu.rax = root << 12
        assert not execute_faulting(guest, b"\x0f\x22\xd8")
        assert guest.vcpu.kernel_root == mfn(USER_L4)
    guest.check()


@given(value=st.integers(0, U64))
@settings(max_examples=50, deadline=None)
def test_cr4_shows_what_cpuid_offers_and_nothing_of_the_hosts(value: int) -> None:
    """XSA-293."""
    guest = booted()
    guest.cpu.rax = value
    assert execute_faulting(guest, b"\x0f\x22\xe0")
    assert execute_faulting(guest, b"\x0f\x20\xe3")
    assert guest.cpu.rbx == value & 0xC | 0x660


USER_MAY_NOT = (
    *(
        b"\x0f\x20\xc0",
        b"\x0f\x22\xe0",
        b"\x0f\x06",
        b"\x0f\x09",
        b"\x0f\x21\xc0",
        b"\x0f\x23\xf8",
        b"\x0f\x30",
    ),
    *(b"\x0f\x32", b"\x0f\x31", b"\xfa", b"\xec", b"\xee", b"\x6c", b"\xf4", b"\x0f\x01\xd1"),
)


@pytest.mark.parametrize("code", USER_MAY_NOT)
def test_user_mode_may_do_none_of_it(guest: CpuGuest, code: bytes) -> None:
    guest.user()
    assert not execute_faulting(guest, code)


def test_a_kernel_may_keep_the_counter_from_its_user_mode(guest: CpuGuest) -> None:
    guest.cpu.rax = 4
    assert execute_faulting(guest, b"\x0f\x22\xe0")
    assert guest.cpu.time_stamps_disabled
    assert execute_faulting(guest, b"\x0f\x31"), "its own reads trap, and are emulated"
    assert guest.cpu.rdx << 32 | guest.cpu.rax == 2 * guest.time_ns
    guest.cpu.time_stamps_disabled = False
    traps.switch_in(guest.vcpu)
    assert guest.cpu.time_stamps_disabled
    assert not execute_faulting(guest.user(), b"\x0f\x31")
    guest.cpu.rax = 0
    traps.deliver_exception(guest.vcpu, 0)
    assert execute_faulting(guest, b"\x0f\x22\xe0")
    assert not guest.cpu.time_stamps_disabled


# MSRs


def read_msr(guest: CpuGuest, index: int) -> int | None:
    guest.cpu.rcx = index
    if not execute_faulting(guest, b"\x0f\x32"):
        return None
    return guest.cpu.rdx << 32 | guest.cpu.rax


def write_msr(guest: CpuGuest, index: int, value: int) -> bool:
    guest.cpu.rcx, guest.cpu.rdx, guest.cpu.rax = index, value >> 32, value & 0xFFFF_FFFF
    return execute_faulting(guest, b"\x0f\x30")


@pytest.mark.parametrize("index", [0xC000_0100, 0xC000_0101, 0xC000_0102])
def test_segment_bases_are_canonical(guest: CpuGuest, index: int) -> None:
    """XSA-193."""
    for value in (0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, U64, 0):
        assert write_msr(guest, index, value)
        assert read_msr(guest, index) == value
    for value in (1 << 47, 1 << 63, 0xFFFF_7FFF_FFFF_FFFF):
        assert not write_msr(guest, index, value)
        assert read_msr(guest, index) == 0


def test_the_gs_base_of_user_mode_is_the_shadow_one(guest: CpuGuest) -> None:
    assert write_msr(guest, 0xC000_0102, 0x7000)
    guest.user()
    assert guest.cpu.gs_base == 0x7000


def test_known_registers(guest: CpuGuest) -> None:
    assert read_msr(guest, 0xC000_0080) == 0xD01
    assert read_msr(guest, 0x277) == 0x0000_0501_0007_0406
    assert read_msr(guest, 0x10) == 2 * guest.time_ns


@given(
    index=st.one_of(
        st.integers(0, 0x2000), st.integers(0xC000_0000, 0xC001_2000), st.integers(0, 1 << 32 - 1)
    )
)
@settings(max_examples=50, deadline=None)
def test_every_other_one_is_a_fault_or_harmless(index: int) -> None:
    """XSA-333."""
    guest = booted()
    value = read_msr(guest, index)
    assert value is None or 0 <= value <= U64
    write_msr(guest, index, 0x1234_5678)
    assert guest.cpu.root == mfn(0)
    guest.check()


# CPUID


def test_cpuid_behind_the_prefix(guest: CpuGuest) -> None:
    guest.kernel(b"\x0f\x0bxen\x0f\xa2")
    guest.cpu.rax = 0x4000_0000
    traps.invalid_opcode(guest.vcpu)
    cpu = guest.cpu
    assert cpu.rip == va(CODE) + 7
    assert pack("<3I", cpu.rbx, cpu.rcx, cpu.rdx) == b"XenVMMXenVMM"


@pytest.mark.parametrize(
    "code", [b"\x0f\x0bxen\x0f\xa3", b"\x0f\x0bxeN\x0f\xa2", b"\x0f\x0b\x0f\xa2", b"\x0f\xff"]
)
def test_any_other_invalid_opcode_is_the_guests(guest: CpuGuest, code: bytes) -> None:
    guest.user(code)
    traps.invalid_opcode(guest.vcpu)
    assert guest.cpu.rip == handler(6)
    assert guest.frame()["rip"] == va(CODE)


def test_a_prefix_at_the_end_of_memory_is_a_page_fault(guest: CpuGuest) -> None:
    guest.put(CODE + 1, b"\x0f\x0bxe", 4096 - 4)
    guest.cpu.rip = va(HOLE) - 4
    traps.invalid_opcode(guest.vcpu)
    assert guest.cpu.rip == handler(14)
    assert guest.vcpu.cr2 == va(HOLE)


def cpuid(guest: CpuGuest, leaf: int, subleaf: int = 0, vcpu: int = 0) -> tuple[int, int, int, int]:
    guest.cpu.rax, guest.cpu.rcx = leaf, subleaf
    execute(guest.vcpus[vcpu])
    return guest.cpu.rax, guest.cpu.rbx, guest.cpu.rcx, guest.cpu.rdx


def test_cpuid_has_what_the_engine_executes(guest: CpuGuest) -> None:
    assert cpuid(guest, 0)[0] == 13
    _, ebx, ecx, edx = cpuid(guest, 1, vcpu=1)
    assert ebx >> 24 == 1, "the APIC's id"
    assert ecx >> 31 == 1, "hypervisor"
    assert not ecx & (1 << 26 | 1 << 27), "XSAVE, OSXSAVE"
    assert edx & 1 << 26, "SSE2"
    assert cpuid(guest, 7) == (0, 0, 0, 0), "FSGSBASE among others"
    assert cpuid(guest, 4) == (0, 0, 0, 0)
    assert cpuid(guest, 0x8000_0001)[3] & 1 << 29, "long mode"
    assert cpuid(guest, 0x4000_0001)[0] == 4 << 16 | 17
    assert cpuid(guest, 0x4000_0003)[2] == 2_000_000
    assert cpuid(guest, 0x4000_0003, 1)[2:] == (0xFFFF_FFFF, 0) or cpuid(guest, 0x4000_0003, 1)[2] >> 31
    assert cpuid(guest, 0x4000_0005)[1] == 32


@given(leaf=st.integers(0, U64), subleaf=st.integers(0, U64))
@settings(max_examples=100, deadline=None)
def test_cpuid_always_answers_with_32_bits(leaf: int, subleaf: int) -> None:
    guest = booted()
    assert all(0 <= value < 1 << 32 for value in cpuid(guest, leaf, subleaf))


# Ports


def test_ports_have_nothing_behind_them(guest: CpuGuest) -> None:
    guest.cpu.rax = 0x1122_3344_5566_7788
    assert execute_faulting(guest, b"\xe4\x60")
    assert guest.cpu.rax == 0x1122_3344_5566_77FF
    guest.cpu.rdx = 0x3F8
    assert execute_faulting(guest, b"\x66\xed")
    assert guest.cpu.rax == 0x1122_3344_5566_FFFF
    assert execute_faulting(guest, b"\xed")
    assert guest.cpu.rax == 0xFFFF_FFFF
    assert execute_faulting(guest, b"\xe6\x80")
    assert execute_faulting(guest, b"\xef")


def test_the_timers_counter_stands_still(guest: CpuGuest) -> None:
    """Else Linux reads it 100,000 times before it gives up calibrating by it."""
    assert execute_faulting(guest, b"\xe4\x42")
    assert guest.cpu.rax & 0xFF == 0


@pytest.mark.parametrize("code", [b"\xe4\x60", b"\xe6\x60", b"\xec", b"\xef", b"\x6c", b"\x6f", b"\xf3\x6c"])
def test_without_privilege_they_are_a_fault(guest: CpuGuest, code: bytes) -> None:
    guest.vcpu.iopl = 0
    guest.cpu.rdi = guest.cpu.rsi = va(DATA)
    assert not execute_faulting(guest, code)


def test_the_bitmap_permits_single_ports(guest: CpuGuest) -> None:
    guest.vcpu.iopl = 0
    guest.put(DATA, b"\xff" * 4096)
    guest.put(DATA, b"\xfc", 12)  # ports 0x60 and 0x61
    guest.put(CODE + 1, pack("<QI", va(DATA), 1024))
    assert guest.call("physdev_op", 7, va(CODE + 1)) == 0
    guest.user()
    for code, port, permitted in (
        (b"\xec", 0x60, True),
        (b"\xec", 0x61, True),
        (b"\xec", 0x62, False),
        (b"\x66\xed", 0x60, True),
        (b"\x66\xed", 0x61, False),
        (b"\xed", 0x60, False),
        (b"\xec", 0x3FF, False),
        (b"\xec", 0xFFFF, False),
    ):
        guest.cpu.rdx = port
        assert execute_faulting(guest, code) is permitted, hex(port)
        if not permitted:
            guest.user()
    guest.vcpu.iobmp = va(HOLE)
    guest.cpu.rdx = 0x60
    assert not execute_faulting(guest, b"\xec"), "a bitmap that cannot be read permits nothing"


def test_repeated_string_input_goes_step_by_step(guest: CpuGuest) -> None:
    guest.cpu.rdi, guest.cpu.rcx, guest.cpu.rdx = va(DATA), 2, 0x60
    guest.kernel(b"\xf3\x6c")
    traps.general_protection(guest.vcpu, 0)
    assert (guest.cpu.rip, guest.cpu.rcx, guest.cpu.rdi) == (va(CODE), 1, va(DATA) + 1)
    traps.general_protection(guest.vcpu, 0)
    assert (guest.cpu.rip, guest.cpu.rcx) == (va(CODE) + 2, 0)
    assert guest.take(DATA, 3) == b"\xff\xff\x00"


def test_string_input_where_there_is_no_memory_is_a_fault(guest: CpuGuest) -> None:
    guest.cpu.rdi = va(HOLE)
    assert not execute_faulting(guest, b"\x6c")


# Hostile


@given(code=st.binary(min_size=1, max_size=15), user=st.booleans(), registers=st.integers(0, U64))
@settings(max_examples=100, deadline=None)
def test_no_bytes_break_anything(code: bytes, user: bool, registers: int) -> None:
    guest = booted()
    if user:
        guest.user()
    for name in NAMES:
        if name != "rsp":
            setattr(guest.cpu, name, registers)
    guest.put(CODE, code + bytes(16))
    guest.cpu.rip = va(CODE)
    traps.general_protection(guest.vcpu, 0)
    assert va(CODE) <= guest.cpu.rip <= va(CODE) + 15 or guest.cpu.rip in (
        handler(13),
        handler(1),
        handler(14),
    )
    assert guest.cpu.rflags & ~0x254FD7 == 0
    assert guest.cpu.root in (mfn(0), mfn(USER_L4))
    guest.check()


def test_a_single_step_over_an_emulated_instruction_is_a_debug_exception(guest: CpuGuest) -> None:
    guest.cpu.rflags = 0x1_0302
    guest.kernel(b"\xfa")
    traps.general_protection(guest.vcpu, 0)
    assert guest.cpu.rip == handler(1)
    assert guest.frame()["rip"] == va(CODE) + 1
    assert guest.cpu.dr[6] & 0x4000
    assert not guest.frame()["rflags"] & 0x1_0000


def test_prefixes_are_not_an_instruction(guest: CpuGuest) -> None:
    assert not execute_faulting(guest, b"\xf3" * 15)
    assert not execute_faulting(guest, b"\xf0\xe4\x60"), "LOCK"


def test_compatibility_mode_is_fetched_through_its_segment(guest: CpuGuest) -> None:
    guest.set(6, 9, 0x12CF_FB34_5678_FFFF)
    guest.vcpu.iopl = 0x3000
    guest.leave(cs=9 << 3 | 3, rip=0x10)
    traps.general_protection(guest.vcpu, 0)
    assert guest.cpu.rip == handler(14)
    assert guest.vcpu.cr2 == 0x1234_5688
    guest.leave(cs=SELECTOR_CODE_32, rip=0xFFFF_FFFF)
    assert guest.cpu.selectors[Segment.CS] == SELECTOR_CODE_32
    traps.general_protection(guest.vcpu, 0)
    assert guest.vcpu.cr2 == 0xFFFF_FFFF
