"""What the guest does, as it arrives at the hypervisor, and what the hypervisor does to its registers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pv.cpu import Segment
from hypervisor.pv.layout import MACH2PHYS_VIRT_START, PAGE_SIZE, RAM_FIRST
from hypervisor.vcpu.native.monitor_pages import FLAT_CODE32, FLAT_CODE64, FLAT_DATA, gdt_address
from tests.hypervisor.vcpu.native.guest_rig import (
    CODE,
    DATA,
    READ_EXECUTE,
    READ_WRITE,
    READ_WRITE_EXECUTE,
    SYSCALL,
    Rig,
)

PRESENT_READ_ONLY = 5 | 1 << 63
LOAD_DATA = bytes.fromhex("488b042500005000")  # mov rax, [DATA]
STORE_DATA = bytes.fromhex("4889042500005000")  # mov [DATA], rax


@pytest.fixture(scope="module")
def shared() -> Rig:
    return Rig()


@pytest.fixture
def rig(shared: Rig) -> Rig:
    """The same engine for all, with a new vCPU in it."""
    shared.start_over()
    return shared


# ---- entering the hypervisor


def test_a_syscall_says_what_comes_after_it_and_goes_on_where_it_is_told(rig: Rig) -> None:
    def go_on() -> None:
        if rig.engine.rax == 7:
            rig.engine.stop()
        else:
            rig.engine.rip += 2

    rig.on_syscall = go_on
    code = SYSCALL + b"\x0f\x0b" + bytes.fromhex("48c7c007000000") + SYSCALL  # ud2 is skipped; mov rax, 7
    assert rig.run(code) == [("syscall", CODE + 2), ("syscall", CODE + 13)]
    assert rig.engine.rip == CODE + 13


def test_a_missing_page_is_a_page_fault_with_its_address(rig: Rig) -> None:
    assert rig.run(LOAD_DATA) == [("exception", 14, 4, CODE)]
    assert rig.engine.cr2 == DATA


@pytest.mark.parametrize(
    ("flags", "code", "error_code"),
    [
        (PRESENT_READ_ONLY, STORE_DATA, 7),
        (PRESENT_READ_ONLY & ~4, LOAD_DATA, 5),
        (READ_WRITE, bytes.fromhex("ff2425") + (DATA + 8).to_bytes(4, "little"), 0x15),  # jmp [DATA + 8]
    ],
)
def test_what_an_entry_does_not_allow_is_a_page_fault_that_says_so(
    rig: Rig, flags: int, code: bytes, error_code: int
) -> None:
    mfn = rig.data(flags=flags)
    rig.memory.table(mfn)[1] = DATA
    (event,) = rig.run(code)
    assert event[:3] == ("exception", 14, error_code)
    assert rig.engine.cr2 == DATA


def test_two_faults_in_a_row_are_two_faults(rig: Rig) -> None:
    seen: list[int] = []

    def skip(vector: int, _error_code: int) -> None:
        seen.append(vector)
        rig.engine.rip += 8

    rig.on_exception = skip
    rig.run(LOAD_DATA * 3 + SYSCALL)
    assert seen == [14, 14, 14]


@pytest.mark.parametrize(
    ("code", "event"),
    [
        (b"\xcd\x80", ("int", 0x80, CODE, CODE + 2)),
        (b"\xcc", ("int", 3, CODE, CODE + 1)),
        (b"\x0f\x0b", ("invalid", CODE)),
        (b"\xf1", ("invalid", CODE)),  # ICEBP: the engine does not have it
        (b"\x0f\x01\xd9", ("invalid", CODE)),  # VMMCALL
        (b"\xfa", ("exception", 13, 0, CODE)),  # CLI
        (b"\xf4", ("exception", 13, 0, CODE)),  # HLT
        (b"\x0f\x30", ("exception", 13, 0, CODE)),  # WRMSR
        (b"\x0f\x22\xd8", ("exception", 13, 0, CODE)),  # MOV CR3, RAX
        (b"\x0f\x01\xf8", ("exception", 13, 0, CODE)),  # SWAPGS
        (b"\x48\x0f\x07", ("exception", 13, 0, CODE)),  # SYSRET
        (b"\xe4\x60", ("exception", 13, 0, CODE)),  # IN AL, 0x60
        (b"\xef", ("exception", 13, 0, CODE)),  # OUT DX, EAX
        (b"\xf3\x6c", ("exception", 14, 6, CODE)),  # REP INSB, to address 0
        (b"\x31\xc9\xf7\xf1", ("exception", 0, 0, CODE + 2)),  # division by zero
        (b"\x0f\x34", ("sysenter", CODE + 2)),
        (b"\x0f\x01\xd0", ("invalid", CODE)),  # XGETBV: CR4.OSXSAVE is off
        (b"\xf3\x48\x0f\xae\xd0", ("invalid", CODE)),  # WRFSBASE: CR4.FSGSBASE is off
    ],
)
def test_every_way_into_the_hypervisor(rig: Rig, code: bytes, event: tuple[object, ...]) -> None:
    rig.engine.rcx = 1 if code[:1] == b"\xf3" else 0
    assert rig.run(code) == [event]


def test_cpuid_is_answered_by_the_handler(rig: Rig) -> None:
    def answer() -> None:
        rig.engine.rbx = 0x1234

    rig.engine.rax, rig.engine.rcx = 4, 2
    rig.on_cpuid = answer
    assert rig.run(b"\x0f\xa2" + SYSCALL) == [("cpuid", 4, 2), ("syscall", CODE + 4)]
    assert (rig.engine.rax, rig.engine.rbx) == (4, 0x1234)


def test_what_a_handler_raises_is_raised_by_run_and_the_engine_stands_there(rig: Rig) -> None:
    def fail() -> None:
        raise LookupError("as the handler says")

    rig.on_syscall = fail
    with pytest.raises(LookupError, match="as the handler says"):
        rig.run(SYSCALL + b"\x0f\x0b")
    assert rig.engine.rip == CODE + 2
    assert rig.events == [("syscall", CODE + 2)]


# ---- registers


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 15))
def test_general_registers_by_number(shared: Rig, value: int, number: int) -> None:
    shared.engine.set_gpr(number, value)
    assert shared.engine.gpr(number) == value
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
    assert getattr(shared.engine, names[number] if number < 8 else f"r{number}") == value


@given(st.integers(0, (1 << 22) - 1))
def test_all_flags_that_are_written_are_read(shared: Rig, value: int) -> None:
    shared.engine.rflags = value
    assert shared.engine.rflags == value & 0x3F7FD7 | 2


@pytest.mark.parametrize("flags", [0x2, 0x8D7, 0x402, 0x246, 0x10_0202])
def test_the_guest_has_the_flags_that_it_was_given_and_gives_them_back(rig: Rig, flags: int) -> None:
    rig.data()
    code = b"\x9c\x58" + SYSCALL  # pushf; pop rax
    rig.code(code)
    rig.engine.rflags = flags
    rig.run()
    assert rig.engine.rax & ~(1 << 16) == flags
    assert rig.engine.rflags == flags


def test_flags_of_the_last_operation_are_read_within_a_hook(rig: Rig) -> None:
    found: list[int] = []

    def look() -> None:
        found.append(rig.engine.rflags)
        rig.engine.stop()

    rig.on_syscall = look
    rig.run(bytes.fromhex("31c0 83e801") + SYSCALL)  # xor eax, eax; sub eax, 1
    assert found[0] & 0x8D5 == 0x95  # CF, PF, AF, SF


def test_segments_are_loaded_with_what_their_descriptors_say(rig: Rig) -> None:
    descriptor = 0x12CF_F334_5678_FFFF
    rig.engine.load_segment(Segment.DS, 0xB, descriptor)
    assert rig.engine.selector(Segment.DS) == 0xB
    assert rig.engine.segments[Segment.DS].base == 0x1234_5678
    assert rig.engine.segments[Segment.DS].limit == 0xFFFF_FFFF


def test_a_null_selector_leaves_the_bases_of_fs_and_gs(rig: Rig) -> None:
    rig.engine.fs_base, rig.engine.gs_base = 0x1111_0000_0000, 0x2222_0000_0000
    rig.engine.load_segment(Segment.FS, 0, 0)
    rig.engine.load_segment(Segment.GS, 3, 0)
    assert (rig.engine.fs_base, rig.engine.gs_base) == (0x1111_0000_0000, 0x2222_0000_0000)
    mfn = rig.data()
    rig.memory.table(mfn)[0] = 0x77
    rig.engine.gs_base = DATA
    rig.run(bytes.fromhex("65488b042500000000") + SYSCALL)  # mov rax, gs:[0]
    assert rig.engine.rax == 0x77


def test_compatibility_mode_and_back(rig: Rig) -> None:
    """What is MOV with a REX prefix in 64 bits is DEC and MOV in 32."""
    rig.code(bytes.fromhex("4889c8") + b"\xcd\x80")
    rig.engine.load_segment(Segment.CS, 0xE023, FLAT_CODE32)
    rig.engine.rax, rig.engine.rcx = 5, 9
    assert rig.run() == [("int", 0x80, CODE + 3, CODE + 5)]
    assert rig.engine.rax == 9
    rig.code(bytes.fromhex("4889c8") + b"\xcd\x80")
    rig.engine.rax, rig.engine.rcx = 5, 1 << 40
    rig.run()
    assert rig.engine.rax == 0
    rig.code(bytes.fromhex("4889c8") + b"\xcd\x80")
    rig.engine.load_segment(Segment.CS, 0xE033, FLAT_CODE64)
    rig.run()
    assert rig.engine.rax == 1 << 40


def test_a_32_bit_data_segment_has_its_base(rig: Rig) -> None:
    mfn = rig.data()
    rig.memory.table(mfn)[0] = 0x55
    rig.code(bytes.fromhex("a108000000") + b"\xcd\x80")  # mov eax, [8]
    rig.engine.load_segment(Segment.CS, 0xE023, FLAT_CODE32)
    base = DATA - 8
    rig.engine.load_segment(Segment.DS, 0x2B, FLAT_DATA | (base & 0xFF_FFFF) << 16 | base >> 24 << 56)
    rig.run()
    assert rig.engine.rax == 0x55


def test_the_fpu_is_not_there_while_the_task_switched(rig: Rig) -> None:
    rig.engine.task_switched = True
    assert rig.run(b"\xd9\xe8" + SYSCALL) == [("exception", 7, 0, CODE)]  # fld1
    assert rig.engine.task_switched
    rig.engine.task_switched = False
    assert rig.run(b"\xd9\xe8" + SYSCALL) == [("syscall", CODE + 4)]


def test_single_step_and_breakpoints_are_debug_exceptions(rig: Rig) -> None:
    rig.code(b"\x90\x90" + SYSCALL)
    rig.engine.rflags = 0x102
    assert rig.run() == [("exception", 1, 0, CODE + 1)]
    rig.code(b"\x90\x90" + SYSCALL)
    rig.engine.rflags = 2
    rig.engine.set_debug_register(0, CODE + 1)
    rig.engine.set_debug_register(7, 0x401)
    assert rig.run() == [("exception", 1, 0, CODE + 1)]
    rig.engine.set_debug_register(7, 0x400)
    assert rig.run() == [("syscall", CODE + 4)]


# ---- memory


def test_translations_last_until_they_are_flushed(rig: Rig) -> None:
    first, second = rig.data(), rig.frame()
    rig.memory.table(first)[0], rig.memory.table(second)[0] = 1, 2
    entry = rig.map(DATA, first, READ_WRITE)
    rig.run(LOAD_DATA + SYSCALL)
    rig.memory.quads[entry >> 3] = second << 12 | READ_WRITE
    rig.engine.flush_page(DATA)
    rig.run(LOAD_DATA + SYSCALL)
    assert rig.engine.rax == 2


def test_another_root_is_another_address_space(rig: Rig) -> None:
    first = rig.data()
    rig.memory.table(first)[0] = 1
    code = rig.code(LOAD_DATA + SYSCALL)
    rig.run()
    assert rig.engine.rax == 1
    other = rig.new_root()
    second = rig.frame()
    rig.memory.table(second)[0] = 2
    rig.map(CODE, code, READ_EXECUTE, other)
    rig.map(DATA, second, READ_WRITE, other)
    rig.engine.load_root(other)
    rig.engine.rip = CODE
    rig.run()
    assert rig.engine.rax == 2


def test_the_guest_reads_the_m2p_and_does_not_write_it(rig: Rig) -> None:
    rig.engine.monitor.m2p[RAM_FIRST + 3] = 0x4711
    rig.engine.rbx = address = MACH2PHYS_VIRT_START + (RAM_FIRST + 3) * 8
    rig.run(bytes.fromhex("488b03") + SYSCALL)  # mov rax, [rbx]
    assert rig.engine.rax == 0x4711
    assert rig.run(bytes.fromhex("488903")) == [("exception", 14, 7, CODE)]  # mov [rbx], rax
    assert rig.engine.cr2 == address
    assert rig.engine.monitor.m2p[RAM_FIRST + 3] == 0x4711


def test_descriptor_tables_are_for_the_processor_only(rig: Rig) -> None:
    for code in ("488b03", "488903"):
        rig.engine.rbx = gdt_address(0) + 14 * PAGE_SIZE
        (event,) = rig.run(bytes.fromhex(code))
        assert event[:2] == ("exception", 14)


def test_segments_come_from_the_guests_gdt_and_ldt_and_xens_page(rig: Rig) -> None:
    gdt, ldt = rig.frame(), rig.frame()
    rig.memory.table(gdt)[2] = FLAT_DATA | 1 << 16
    rig.memory.table(ldt)[1] = FLAT_DATA | 2 << 16
    rig.engine.monitor.set_gdt(0, [gdt], 512)
    rig.engine.monitor.set_ldt(0, [ldt], 2)
    load_ds = bytes.fromhex("8ed8") + SYSCALL  # mov ds, eax
    for selector, base in ((0x13, 1), (0x0F, 2), (0xE02B, 0)):
        rig.engine.rax = selector
        assert rig.run(load_ds) == [("syscall", CODE + 4)]
        assert (rig.engine.selector(Segment.DS), rig.engine.segments[Segment.DS].base) == (selector, base)
    for selector in (0x1B, 0x17, 0xF003, 0xD003):
        rig.engine.rax = selector
        assert rig.run(load_ds) == [("exception", 13, selector & ~3, CODE)]
    rig.engine.monitor.set_gdt(0, [], 0)
    rig.engine.monitor.set_ldt(0, [], 0)
    rig.engine.rax = 0x0F
    assert rig.run(load_ds) == [("exception", 13, 0xC, CODE)]


def test_the_accessed_bit_of_a_descriptor_is_set(rig: Rig) -> None:
    gdt = rig.frame()
    rig.memory.table(gdt)[2] = FLAT_DATA & ~(1 << 40)
    rig.engine.monitor.set_gdt(0, [gdt], 512)
    rig.engine.rax = 0x13
    assert rig.run(bytes.fromhex("8ed8") + SYSCALL) == [("syscall", CODE + 4)]
    assert rig.memory.table(gdt)[2] == FLAT_DATA


def test_each_vcpu_has_its_own_descriptor_tables(rig: Rig) -> None:
    first, second = rig.frame(), rig.frame()
    rig.memory.table(first)[2] = FLAT_DATA | 1 << 16
    rig.memory.table(second)[2] = FLAT_DATA | 2 << 16
    rig.engine.monitor.set_gdt(0, [first], 512)
    rig.engine.monitor.set_gdt(1, [second], 512)
    for vcpu in (0, 1):
        rig.engine.activate(vcpu)
        rig.engine.rax = 0x13
        rig.run(bytes.fromhex("8ed8") + SYSCALL)
        assert rig.engine.segments[Segment.DS].base == vcpu + 1


# ---- code that changes


def test_code_that_the_guest_writes_is_executed(rig: Rig) -> None:
    code = bytes.fromhex("c6042509004000 90 90") + b"\xf4" + SYSCALL  # mov byte [CODE + 9], 0x90; nop; hlt
    rig.code(code, flags=READ_WRITE_EXECUTE)
    assert rig.run() == [("syscall", CODE + 12)]


BLOCKS = 5
BLOCK_BYTES = 256
WRITER = CODE + PAGE_SIZE


@pytest.mark.parametrize("flags", [READ_WRITE, READ_WRITE_EXECUTE])
def test_code_that_the_guest_writes_by_another_address_is_executed(rig: Rig, flags: int) -> None:
    """Also its second block, and the next, though the first store there has dropped code of that page already; and
    though the engine has written to that address before it has found code there.
    """
    block = (b"\x90" * (BLOCK_BYTES - 2) + b"\xeb\x00") * BLOCKS + SYSCALL  # nops, and a jump to what follows
    mfn = rig.code(block)
    rig.map(DATA, mfn, flags)
    store = bytes.fromhex("88042500005000")  # mov [DATA + …], al
    writer = b"".join(
        store[:3] + (DATA + number * BLOCK_BYTES).to_bytes(4, "little") + SYSCALL for number in range(BLOCKS)
    )
    rig.code(writer, WRITER)
    written = [0x90] * BLOCKS
    for octet in (0x90, 0xF4, 0x90, 0xF4):  # nop, hlt
        for number in range(BLOCKS):
            written[number] = rig.engine.rax = octet
            rig.engine.rip = WRITER + number * (len(store) + len(SYSCALL))
            assert rig.run()[0][0] == "syscall"
            for first in range(BLOCKS):
                rig.engine.rip = CODE + first * BLOCK_BYTES
                (event,) = rig.run()
                if 0xF4 in written[first:]:
                    where = CODE + written.index(0xF4, first) * BLOCK_BYTES
                    assert event == ("exception", 13, 0, where)
                else:
                    assert event[0] == "syscall"


def test_code_that_somebody_else_wrote_is_executed_once_the_engine_is_told(rig: Rig) -> None:
    mfn = rig.code(b"\x90" * 64 + SYSCALL)
    rig.run()
    rig.memory.frame(mfn)[40] = 0xF4
    rig.engine.rip = CODE
    assert rig.run() == [("syscall", CODE + 66)], "nothing to test"
    rig.engine.forget_code(mfn)
    rig.engine.rip = CODE
    assert rig.run() == [("exception", 13, 0, CODE + 40)]


# ---- vCPUs


def test_a_vcpu_goes_on_where_it_was_after_another_had_the_engine(rig: Rig) -> None:
    engine = rig.engine
    rig.run(bytes.fromhex("d9e8 d9eb 660fefc0 4831c0 4883e801") + SYSCALL)  # fld1; fldpi; pxor; xor; sub
    engine.r15, engine.gs_base = 0x1515, 0x7000_0000_0000
    engine.load_segment(Segment.DS, 0xE02B, FLAT_DATA)
    engine.set_debug_register(2, 0x1234)
    before = (engine.rflags, engine.rip, engine.fpu_top, bytes(engine.fpu), engine.hflags)
    state = engine.save()
    engine.reset()
    assert (engine.r15, engine.gs_base, engine.debug_register(2)) == (0, 0, 0)
    assert engine.selector(Segment.CS) == 0xE033
    engine.load_root(rig.root)
    rig.run(bytes.fromhex("d9ee 31c0") + SYSCALL)
    engine.load(state)
    assert (engine.rflags, engine.rip, engine.fpu_top, bytes(engine.fpu), engine.hflags) == before
    assert (engine.r15, engine.gs_base, engine.debug_register(2)) == (0x1515, 0x7000_0000_0000, 0x1234)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=60))
def test_no_instructions_of_a_guest_break_the_engine(shared: Rig, octets: list[int]) -> None:
    """Whatever it executes, it ends with an event or its slice."""
    shared.start_over()
    shared.data()
    shared.code(bytes(octets) + SYSCALL)
    shared.engine.run(2_000_000)
    shared.engine.load_root(shared.root)


def test_the_time_stamp_counter_has_an_offset(rig: Rig) -> None:
    rig.engine.tsc_offset = 0
    before = rig.engine.read_tsc()
    rig.run(bytes.fromhex("0f31") + SYSCALL)
    after = rig.engine.read_tsc()
    assert before < (rig.engine.rdx << 32 | rig.engine.rax) < after
    rig.engine.tsc_offset = -before & 0xFFFF_FFFF_FFFF_FFFF
    assert 0 < rig.engine.read_tsc() < 1 << 50
    rig.run(bytes.fromhex("0f31") + SYSCALL)
    assert rig.engine.rdx < 1 << 18
    rig.engine.tsc_offset = 0
