"""The registers of a vCPU by their names, to be saved and to go on elsewhere: nothing of it depends on the engine."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from hypervisor.pv.cpu import Segment

if TYPE_CHECKING:
    from hypervisor.vcpu.native.engine import Engine

U16 = Annotated[int, Field(ge=0, lt=1 << 16)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
GENERAL: Final = 16
FPU_REGISTERS: Final = 8
FPU_BYTES: Final = 10
FPU_STRIDE: Final = 16
FPU_TOP_SHIFT: Final = 11
FPU_TOP: Final = 7 << FPU_TOP_SHIFT
XMM_REGISTERS: Final = 16
XMM_BYTES: Final = 16
XMM_STRIDE: Final = 64
DESCRIPTOR_FLAGS: Final = 0xF0_FF00
PRIVILEGE: Final = 3 << 13
DEBUG_REGISTERS: Final = (0, 1, 2, 3, 6, 7)
Octets = Annotated[str, Field(pattern="^([0-9a-f]{2})*$")]


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SegmentState(_State):
    """A segment register; flags are the high half of its descriptor, without base and limit."""

    selector: U16
    base: U64
    limit: U32
    flags: U32


class ProcessorState(_State):
    """general: by number in the instruction set. segments: by number. fpu_registers and fpu_empty: physical ones, not
    counted from the top; 10 octets each. debug: DR0 to DR3, DR6, DR7.
    """

    general: Annotated[list[U64], Field(min_length=GENERAL, max_length=GENERAL)]
    rip: U64
    rflags: U32
    segments: Annotated[list[SegmentState], Field(min_length=len(Segment), max_length=len(Segment))]
    cr2: U64
    task_switched: bool
    fpu_control: U16
    fpu_status: U16
    fpu_empty: Annotated[list[bool], Field(min_length=FPU_REGISTERS, max_length=FPU_REGISTERS)]
    fpu_registers: Annotated[
        list[Annotated[Octets, Field(min_length=2 * FPU_BYTES, max_length=2 * FPU_BYTES)]],
        Field(min_length=FPU_REGISTERS, max_length=FPU_REGISTERS),
    ]
    mxcsr: U32
    xmm: Annotated[
        list[Annotated[Octets, Field(min_length=2 * XMM_BYTES, max_length=2 * XMM_BYTES)]],
        Field(min_length=XMM_REGISTERS, max_length=XMM_REGISTERS),
    ]
    debug: Annotated[list[U64], Field(min_length=len(DEBUG_REGISTERS), max_length=len(DEBUG_REGISTERS))]


def dump_processor(engine: Engine) -> ProcessorState:
    """Of the vCPU that the engine holds, between two runs."""
    fpu, xmm = bytes(engine.fpu), bytes(engine.xmm)
    return ProcessorState(
        general=[engine.gpr(number) for number in range(GENERAL)],
        rip=engine.rip,
        rflags=engine.rflags,
        segments=[_segment(engine, register) for register in Segment],
        cr2=engine.cr2,
        task_switched=engine.task_switched,
        fpu_control=engine.fpu_control,
        fpu_status=engine.fpu_status & ~FPU_TOP | (engine.fpu_top & 7) << FPU_TOP_SHIFT,
        fpu_empty=[bool(tag) for tag in engine.fpu_tags],
        fpu_registers=[
            fpu[start : start + FPU_BYTES].hex() for start in range(0, FPU_REGISTERS * FPU_STRIDE, FPU_STRIDE)
        ],
        mxcsr=engine.mxcsr,
        xmm=[
            xmm[start : start + XMM_BYTES].hex() for start in range(0, XMM_REGISTERS * XMM_STRIDE, XMM_STRIDE)
        ],
        debug=[engine.debug_register(number) for number in DEBUG_REGISTERS],
    )


def _segment(engine: Engine, register: Segment) -> SegmentState:
    cache = engine.segments[register]
    return SegmentState(selector=cache.selector, base=cache.base, limit=cache.limit, flags=cache.flags)


def load_processor(engine: Engine, state: ProcessorState) -> None:
    """Let the engine hold that vCPU. Privilege levels other than 3 are not believed."""
    engine.reset()
    for number, value in enumerate(state.general):
        engine.set_gpr(number, value)
    engine.rip, engine.rflags, engine.cr2 = state.rip, state.rflags, state.cr2
    engine.task_switched = state.task_switched
    for register, segment in zip(Segment, state.segments, strict=True):
        engine.load_segment(register, segment.selector, 0)
        cache = engine.segments[register]
        cache.base, cache.limit = segment.base, segment.limit
        cache.flags = segment.flags & DESCRIPTOR_FLAGS | PRIVILEGE
    engine.refresh_hidden_flags()
    engine.fpu_top = (state.fpu_status & FPU_TOP) >> FPU_TOP_SHIFT
    engine.fpu_status = state.fpu_status & ~FPU_TOP
    engine.fpu_tags[:] = [int(empty) for empty in state.fpu_empty]
    for number, octets in enumerate(state.fpu_registers):
        ctypes.memmove(ctypes.addressof(engine.fpu) + number * FPU_STRIDE, bytes.fromhex(octets), FPU_BYTES)
    for number, octets in enumerate(state.xmm):
        ctypes.memmove(ctypes.addressof(engine.xmm) + number * XMM_STRIDE, bytes.fromhex(octets), XMM_BYTES)
    engine.set_floating_point_modes(state.fpu_control, state.mxcsr)
    for number, value in zip(DEBUG_REGISTERS, state.debug, strict=True):
        engine.set_debug_register(number, value)
