"""Which descriptors may stand in a guest's tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.arch_x86_64 import FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64
from hypervisor.pv import descriptors
from hypervisor.pv.descriptors import DPL3, FLAT, PRESENT, RPL, SEGMENT, base, check, fix, limit

DESCRIPTORS = st.integers(0, (1 << 64) - 1)
GATE_TO_KERNEL = 0x0000_8C00_0010_1000
CALL_GATE = 0xC


def kind(descriptor: int) -> int:
    return descriptor >> 40 & 0xF


@given(DESCRIPTORS)
def test_nothing_present_leads_out_of_cpl_3(descriptor: int) -> None:
    fixed = fix(descriptor)
    if fixed is None:
        assert descriptor & PRESENT
        assert not descriptor & SEGMENT
        assert kind(descriptor)
    elif fixed & PRESENT:
        if fixed & SEGMENT or not kind(fixed):
            assert fixed == descriptor | DPL3
        else:
            assert kind(fixed) == CALL_GATE
            assert not fixed & DPL3, "each use is a fault"
            assert not fixed >> 32 & 0xFF
    else:
        assert fixed == descriptor


@given(DESCRIPTORS)
def test_what_was_adjusted_stays_so(descriptor: int) -> None:
    fixed = fix(descriptor)
    if fixed is not None:
        assert fix(fixed) == fixed
        assert check(fixed)
    assert check(descriptor) is (fixed == descriptor)


@pytest.mark.parametrize("system", [kind for kind in range(1, 16) if kind != CALL_GATE])
def test_system_segments_and_other_gates_are_refused(system: int) -> None:
    assert fix(PRESENT | system << 40) is None


def test_a_call_gate_leads_into_the_guests_or_the_flat_segments() -> None:
    assert fix(GATE_TO_KERNEL) == GATE_TO_KERNEL | RPL << 16
    assert fix(GATE_TO_KERNEL & ~0xFFFF_0000 | 0xE033 << 16) is not None
    assert fix(GATE_TO_KERNEL & ~0xFFFF_0000 | 0xE008 << 16) is None
    assert fix(GATE_TO_KERNEL & ~0xFFFF_0000 | 0xFFFC << 16) is not None, "in the LDT"
    assert fix(GATE_TO_KERNEL | 1 << 32) is None, "reserved"


def test_the_hypervisors_own_are_flat_and_for_cpl_3() -> None:
    for selector, descriptor in FLAT.items():
        assert not selector & RPL
        assert fix(descriptor) == descriptor
        assert (base(descriptor), limit(descriptor)) == (0, 0xFFFF_FFFF)
    assert {selector | RPL for selector in FLAT} == {FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64}


def test_base_and_limit() -> None:
    descriptor = 0x12CF_F334_5678_FFFF
    assert base(descriptor) == 0x1234_5678
    assert limit(descriptor) == 0xFFFF_FFFF
    assert limit(descriptor & ~descriptors.GRANULARITY) == 0xF_FFFF
