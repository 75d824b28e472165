"""Debug registers: what a guest may have in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.errno import XEN_EINVAL, XEN_ENODEV, XEN_EPERM
from hypervisor.pv.layout import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from tests.hypervisor.pv.cpu_guest import U64, CpuGuest, booted


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


@pytest.mark.parametrize("register", range(4))
def test_breakpoints_lie_where_the_guest_may_have_pages(guest: CpuGuest, register: int) -> None:
    """XSA-444."""
    for address in (0, 0x1234, (1 << 47) - 1, HYPERVISOR_VIRT_END, U64):
        assert guest.call("set_debugreg", register, address) == 0
        assert guest.call("get_debugreg", register) == guest.cpu.dr[register] == address
    for address in (1 << 47, 1 << 63, HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END - 1):
        assert guest.call("set_debugreg", register, address) == -XEN_EPERM
        assert guest.cpu.dr[register] == U64


def test_reserved_bits_are_the_processors(guest: CpuGuest) -> None:
    """XSA-12, XSA-265."""
    assert guest.call("set_debugreg", 6, 0xFFFF_FFFF) == 0
    assert guest.call("get_debugreg", 6) == 0xFFFF_EFFF
    assert guest.call("set_debugreg", 6, 0) == 0
    assert guest.call("get_debugreg", 6) == 0xFFFF_0FF0
    assert guest.call("set_debugreg", 6, 1 << 32) == -XEN_EINVAL
    assert guest.call("set_debugreg", 7, 1 << 32) == -XEN_EINVAL
    assert guest.call("set_debugreg", 7, 0xD800) == 0
    assert guest.call("get_debugreg", 7) == 0x400


def test_general_detect_is_refused(guest: CpuGuest) -> None:
    assert guest.call("set_debugreg", 7, 0x2000) == -XEN_EPERM


def test_breakpoints_on_ports_are_kept_from_the_processor(guest: CpuGuest) -> None:
    on_ports = 2 << 20 | 0b1100 | 1
    assert guest.call("set_debugreg", 7, on_ports) == -XEN_EPERM
    guest.vcpu.cr4 |= 8
    assert guest.call("set_debugreg", 7, on_ports) == 0
    assert guest.cpu.dr[7] == (on_ports & ~0b1100) | 0x400
    assert guest.call("get_debugreg", 7) == on_ports | 0x400
    assert guest.call("set_debugreg", 7, 0) == 0
    assert guest.call("get_debugreg", 7) == 0x400


def test_four_and_five_are_other_names(guest: CpuGuest) -> None:
    assert guest.call("set_debugreg", 5, 0x3) == 0
    assert guest.call("get_debugreg", 7) == 0x403
    assert guest.call("set_debugreg", 4, 1) == 0
    assert guest.call("get_debugreg", 4) == 0xFFFF_0FF1
    guest.vcpu.cr4 |= 8
    assert guest.call("set_debugreg", 4, 0) == -XEN_ENODEV
    assert guest.call("get_debugreg", 5) == -XEN_ENODEV
    assert guest.call("get_debugreg", 8) == -XEN_ENODEV
    assert guest.call("set_debugreg", 0xFFFF_FFFF, 0) == -XEN_ENODEV


@given(register=st.integers(0, 8), value=st.integers(0, U64), extended=st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_value_reaches_further(register: int, value: int, extended: bool) -> None:
    guest = booted()
    guest.vcpu.cr4 |= 8 if extended else 0
    guest.call("set_debugreg", register, value)
    for address in guest.cpu.dr[:4]:
        assert not HYPERVISOR_VIRT_START <= address < HYPERVISOR_VIRT_END
    dr7 = guest.cpu.dr[7]
    assert dr7 & 0x400
    assert not dr7 & ~0xFFFF_27FF
    assert not dr7 & 0x2000
    for number in range(4):
        on_port = dr7 >> 16 + 4 * number & 3 == 2
        assert not (on_port and dr7 >> 2 * number & 3)
