"""Writes to level-1 tables by instruction: what each leaves in the table, in registers and flags."""

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pv import traps
from tests.hypervisor.pv.cpu_guest import CODE, DATA, HOLE, STACK, U64, CpuGuest, booted, handler
from tests.hypervisor.pv.paging import L1, L2, RW, P, entry, mfn, va

SLOT = 40
"""of the first L1 table: nothing else is there"""
TABLE = va(L1)
TARGET = TABLE + 8 * SLOT
WRITE_FAULT = 7
OLD = 0x1234_5678_9ABC_DEF0
"""not present, so that it may hold anything"""


@pytest.fixture
def guest() -> CpuGuest:
    guest = booted()
    assert guest.call("vm_assist", 0, 2) == 0
    guest.map(va(SLOT), 0)
    guest.set(L1, SLOT, OLD)
    guest.cpu.rdi = TARGET
    return guest


def write(guest: CpuGuest, code: bytes, fault: int = TARGET, error_code: int = WRITE_FAULT) -> bool:
    """Whether the instruction was emulated; else the guest has its fault, and nothing else has happened."""
    guest.kernel(code)
    before = guest.cpu.general(), guest.cpu.rflags, guest.get(L1, SLOT)
    traps.page_fault(guest.vcpu, error_code, fault)
    guest.check()
    if guest.cpu.rip == va(CODE) + len(code):
        return True
    assert guest.cpu.rip == handler(14)
    assert guest.vcpu.cr2 == fault
    after = guest.cpu.general() | {"rsp": before[0]["rsp"]}, guest.frame("error_code")["rflags"]
    assert (*after, guest.get(L1, SLOT)) == before
    return False


def found(guest: CpuGuest) -> int:
    return guest.get(L1, SLOT)


@pytest.mark.parametrize(
    ("code", "after"),
    [
        (b"\x48\x89\x07", 0x1111_2222_3333_4444),
        (b"\x89\x07", 0x1234_5678_3333_4444),
        (b"\x66\x89\x07", 0x1234_5678_9ABC_4444),
        (b"\x88\x07", 0x1234_5678_9ABC_DE44),
        (b"\x88\x27", 0x1234_5678_9ABC_DE44),
        (b"\x40\x88\x27", 0x1234_5678_9ABC_DE00 | (va(STACK + 1) & 0xFF)),
        (b"\x48\xc7\x07\xfe\xff\xff\xff", U64 - 1),
        (b"\xc7\x07\xfe\xff\xff\xff", 0x1234_5678_FFFF_FFFE),
        (b"\xc6\x07\x02", 0x1234_5678_9ABC_DE02),
        (b"\x48\x21\x07", OLD & 0x1111_2222_3333_4444),
        (b"\xf0\x48\x09\x07", OLD | 0x1111_2222_3333_4444),
        (b"\x48\x31\x07", OLD ^ 0x1111_2222_3333_4444),
        (b"\x48\x01\x07", OLD + 0x1111_2222_3333_4444),
        (b"\x48\x29\x07", OLD - 0x1111_2222_3333_4444),
        (b"\x48\x83\x27\xf0", OLD),
        (b"\xf0\x80\x27\xfd", OLD & ~2),
        (b"\x48\x81\x0f\x00\x10\x00\x00", OLD | 0x1000),
        (b"\xf0\x48\x0f\xba\x37\x05", OLD & ~0x20),
        (b"\x48\x0f\xba\x2f\x3f", OLD | 1 << 63),
        (b"\x48\x0f\xba\x3f\x04", OLD ^ 0x10),
        (b"\x48\x66\x89\x07", 0x1234_5678_9ABC_4444),
        (b"\x48\x89\x04\x24", None),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else "",
)
def test_one_write(guest: CpuGuest, code: bytes, after: int | None) -> None:
    guest.cpu.rax = 0x1111_2222_3333_4444
    assert write(guest, code) is (after is not None)
    assert found(guest) == (OLD if after is None else after)


def test_addresses_of_all_forms(guest: CpuGuest) -> None:
    cpu = guest.cpu
    for code, registers in (
        (b"\x48\x89\x47\x08", {"rdi": TARGET - 8}),
        (b"\x48\x89\x87\xf8\xff\xff\xff", {"rdi": TARGET + 8}),
        (b"\x49\x89\x04\x24", {"r12": TARGET}),
        (b"\x49\x89\x45\x00", {"r13": TARGET}),
        (b"\x48\x89\x04\xd7", {"rdi": TABLE, "rdx": SLOT}),
        (b"\x4a\x89\x44\xe7\x08", {"rdi": TABLE, "r12": SLOT - 1}),
        (b"\x48\x89\x04\xd5\x00\x00\x00\x00", {"rdx": TARGET >> 3}),
        (b"\x64\x48\x89\x07", {"rdi": 0x140, "fs_base": TABLE}),
        (b"\x65\x48\x89\x07", {"rdi": 0x140, "gs_base": TABLE}),
        (b"\x2e\x48\x89\x07", {"rdi": TARGET}),
    ):
        guest.set(L1, SLOT, OLD)
        cpu.rax = 0xABCD_0000
        for name, value in registers.items():
            setattr(cpu, name, value & U64)
        assert write(guest, code), code.hex()
        assert found(guest) == 0xABCD_0000


def test_an_address_relative_to_rip_counts_from_the_next_instruction(guest: CpuGuest) -> None:
    code = b"\x48\xc7\x05" + pack("<i", TARGET - (va(CODE) + 11)) + pack("<i", 0x2000)
    assert write(guest, code)
    assert found(guest) == 0x2000


def test_exchanges(guest: CpuGuest) -> None:
    guest.cpu.rbx = 0x2000
    assert write(guest, b"\x48\x87\x1f")
    assert (guest.cpu.rbx, found(guest)) == (OLD, 0x2000)
    guest.cpu.rbx = 0xFFFF_FFFF_0000_4000
    assert write(guest, b"\x87\x1f")
    assert (guest.cpu.rbx, found(guest)) == (0x2000, 0x4000)
    guest.cpu.rax = 0x1_0000
    assert write(guest, b"\xf0\x48\x0f\xc1\x07")
    assert (guest.cpu.rax, found(guest)) == (0x4000, 0x1_4000)


def test_compare_and_exchange(guest: CpuGuest) -> None:
    guest.cpu.rax, guest.cpu.rbx = OLD, 0x2000
    assert write(guest, b"\xf0\x48\x0f\xb1\x1f")
    assert found(guest) == 0x2000
    assert guest.cpu.rflags & 0x40
    guest.cpu.rax = OLD
    assert write(guest, b"\xf0\x48\x0f\xb1\x1f")
    assert (found(guest), guest.cpu.rax) == (0x2000, 0x2000)
    assert not guest.cpu.rflags & 0x40


@pytest.mark.parametrize(("bit", "slot"), [(1, SLOT), (64 * 3 + 1, SLOT + 3), (-64 * 3 + 1, SLOT - 3)])
def test_a_bit_number_reaches_into_other_entries(guest: CpuGuest, bit: int, slot: int) -> None:
    guest.map(va(slot), 0)
    guest.set(L1, slot, 0)
    guest.cpu.rcx = bit & U64
    assert write(guest, b"\x48\x0f\xab\x0f", TABLE + 8 * slot)
    assert guest.get(L1, slot) == 2
    assert not guest.cpu.rflags & 1
    assert write(guest, b"\x48\x0f\xb3\x0f", TABLE + 8 * slot)
    assert guest.get(L1, slot) == 0
    assert guest.cpu.rflags & 1


def test_strings_go_step_by_step(guest: CpuGuest) -> None:
    guest.map(va(SLOT + 1), 0)
    guest.cpu.rax, guest.cpu.rcx = 0x2000, 2
    guest.kernel(b"\xf3\x48\xab")
    traps.page_fault(guest.vcpu, WRITE_FAULT, TARGET)
    assert (guest.cpu.rip, guest.cpu.rcx, guest.cpu.rdi) == (va(CODE), 1, TARGET + 8)
    assert write(guest, b"\xf3\x48\xab", TARGET + 8)
    assert guest.get(L1, SLOT) == guest.get(L1, SLOT + 1) == 0x2000
    guest.put(DATA, pack("<Q", 0x4000))
    guest.cpu.rdi, guest.cpu.rsi, guest.cpu.rflags = TARGET, va(DATA), 0x602
    assert write(guest, b"\x48\xa5")
    assert (found(guest), guest.cpu.rdi, guest.cpu.rsi) == (0x4000, TARGET - 8, va(DATA) - 8)


def test_an_entry_is_checked(guest: CpuGuest) -> None:
    for refused in (entry(L1), entry(L2, P | RW), 0xFFFFF << 12 | P):
        guest.cpu.rax = refused
        assert not write(guest, b"\x48\x89\x07")
    guest.cpu.rax = entry(DATA)
    assert write(guest, b"\x48\x89\x07")
    assert found(guest) & 0xFFFF_FFFF_F003 == entry(DATA)


@pytest.mark.parametrize(
    "code",
    [
        b"\x48\x0f\xc7\x0f",  # cmpxchg16b
        b"\x0f\xc7\x0f",  # cmpxchg8b
        b"\x0f\x11\x07",  # movups
        b"\x48\x8f\x07",  # pop
        b"\x48\x39\x07",  # cmp writes nothing
        b"\x48\xff\x07",  # inc is not emulated
        b"\x48\x89\xc7",  # no memory
        b"\x48\xc7\x0f\x00\x00\x00\x00",  # no such opcode
        b"\x48\x89",  # cut off
        b"\x67\xf3\xab",
        b"\xf3\x48\xab",  # with rcx 0
        b"\x0f\x0b",
    ],
)
def test_nothing_else_is_emulated(guest: CpuGuest, code: bytes) -> None:
    guest.cpu.rax = 0x2000
    guest.cpu.rsi = va(DATA)
    assert not write(guest, code)


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
def test_an_operand_is_aligned(guest: CpuGuest, offset: int) -> None:
    guest.cpu.rdi = TARGET + offset
    assert not write(guest, b"\x48\x89\x07", TARGET + offset)


def test_the_instruction_writes_where_it_faulted(guest: CpuGuest) -> None:
    """XSA-202: it may have been changed meanwhile."""
    guest.cpu.rdi = va(DATA)
    assert not write(guest, b"\x48\x89\x07")
    guest.cpu.rdi = va(L2)
    assert not write(guest, b"\x48\x89\x07")


@pytest.mark.parametrize(
    ("fault", "error_code"),
    [
        (TARGET, 6),
        (TARGET, 15),
        (TARGET, 0x17),
        (TARGET, 5),
        (va(L2), 7),
        (va(HOLE), 7),
        (1 << 47, 7),
        (va(DATA), 7),
    ],
)
def test_other_faults_are_the_guests(guest: CpuGuest, fault: int, error_code: int) -> None:
    guest.cpu.rdi = fault
    assert not write(guest, b"\x48\x89\x07", fault, error_code)


def test_the_guest_asks_for_it(guest: CpuGuest) -> None:
    assert guest.call("vm_assist", 1, 2) == 0
    assert not write(guest, b"\x48\x89\x07")


def test_user_mode_does_not_get_it(guest: CpuGuest) -> None:
    guest.user(b"\x48\x89\x07")
    traps.page_fault(guest.vcpu, WRITE_FAULT, TARGET)
    assert guest.cpu.rip == handler(14)
    assert found(guest) == OLD


@given(code=st.binary(min_size=1, max_size=15), slot=st.integers(0, 511), registers=st.integers(0, U64))
@settings(max_examples=60, deadline=None)
def test_no_bytes_break_anything(code: bytes, slot: int, registers: int) -> None:
    guest = booted()
    assert guest.call("vm_assist", 0, 2) == 0
    target = TABLE + 8 * slot
    cpu = guest.cpu
    cpu.rax = cpu.rbx = cpu.rcx = registers
    cpu.rdi = cpu.rsi = cpu.rdx = target
    guest.put(CODE, code + bytes(16))
    cpu.rip = va(CODE)
    tables = [guest.take(page, 4096) for page in (0, 1, 2)]
    traps.page_fault(guest.vcpu, WRITE_FAULT, target)
    assert [guest.take(page, 4096) for page in (0, 1, 2)] == tables
    assert guest.frames.type(mfn(L1)).name == "L1"
    guest.check()
