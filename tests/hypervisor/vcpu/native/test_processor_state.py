"""A vCPU's registers by their names, and back."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hypervisor.pv.cpu import Segment
from hypervisor.vcpu.native.monitor_pages import FLAT_CODE32, FLAT_DATA
from hypervisor.vcpu.native.processor_state import ProcessorState, dump_processor, load_processor
from tests.hypervisor.vcpu.native.guest_rig import CODE, DATA, SYSCALL, Rig

FILL = bytes.fromhex(
    "d9e8 d9eb d9ee"  # fld1; fldpi; fldz
    "66480f6ec0 660f70c000 440f28f8"  # movq xmm0, rax; pshufd xmm0, xmm0, 0; movaps xmm15, xmm0
    "4829d8 fd"  # sub rax, rbx; std
)
EMPTY = bytes.fromhex(
    "df3c2500005000 db3c2508005000 db3c2518005000"  # fistp [DATA]; fstp [DATA + 8]; fstp [DATA + 24]
    "440f293c2530005000 9c 5b"  # movaps [DATA + 48], xmm15; pushf; pop rbx
)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


def test_a_vcpu_goes_on_from_its_named_registers(rig: Rig) -> None:
    found = []
    for through_names in (False, True):
        rig.start_over()
        engine = rig.engine
        data = rig.data()
        engine.rax, engine.rbx = 0x1234_5678, 0x2345_6789
        engine.set_floating_point_modes(0x27F, 0x9FC0)
        engine.fs_base, engine.gs_base = 0x7000_0000_0000, 0xFFFF_8888_0000_0000
        rig.run(FILL + SYSCALL + EMPTY + SYSCALL)
        if through_names:
            state = ProcessorState.model_validate_json(dump_processor(engine).model_dump_json())
            engine.reset()
            load_processor(engine, state)
            assert dump_processor(engine) == state
            engine.load_root(rig.root)
        hidden = engine.hflags
        rig.run()
        found.append((bytes(rig.memory.frame(data)[:64]), engine.rbx, hidden, engine.fs_base, engine.gs_base))
    assert found[0] == found[1]
    assert found[0][0][8:18].hex() == "35c26821a2da0fc90040", "pi"
    assert found[0][1] & 0x400, "the direction flag"


def test_a_32_bit_process_of_the_guest_goes_on(rig: Rig) -> None:
    rig.start_over()
    rig.code(bytes.fromhex("4889c8") + b"\xcd\x80")  # dec eax; mov eax, ecx
    engine = rig.engine
    engine.load_segment(Segment.CS, 0xE023, FLAT_CODE32)
    engine.load_segment(Segment.DS, 0x2B, FLAT_DATA | DATA << 16)
    engine.rcx = 5 << 32 | 7
    state = dump_processor(engine)
    engine.reset()
    load_processor(engine, state)
    engine.load_root(rig.root)
    assert rig.run() == [("int", 0x80, CODE + 3, CODE + 5)]
    assert engine.rax == 7
    assert engine.segments[Segment.DS].base == DATA


def test_what_else_is_kept(rig: Rig) -> None:
    rig.start_over()
    engine = rig.engine
    engine.task_switched = True
    engine.cr2 = 0x1234
    engine.set_debug_register(3, 0x5678)
    engine.set_debug_register(7, 0x440)
    state = dump_processor(engine)
    engine.reset()
    load_processor(engine, state)
    assert (engine.task_switched, engine.cr2) == (True, 0x1234)
    assert (engine.debug_register(3), engine.debug_register(7)) == (0x5678, 0x440)
    engine.reset()
    assert not engine.task_switched


def test_privilege_cannot_be_had_by_a_state(rig: Rig) -> None:
    rig.start_over()
    state = dump_processor(rig.engine)
    lower = [segment.model_copy(update={"flags": segment.flags & ~0x6000}) for segment in state.segments]
    load_processor(rig.engine, state.model_copy(update={"segments": lower}))
    rig.engine.load_root(rig.root)
    assert rig.run(b"\xf4") == [("exception", 13, 0, CODE)]


def test_a_state_that_lacks_a_register_is_refused(rig: Rig) -> None:
    fields = dump_processor(rig.engine).model_dump()
    fields["xmm"] = fields["xmm"][1:]
    with pytest.raises(ValidationError, match="xmm"):
        ProcessorState.model_validate(fields)
