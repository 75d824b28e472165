"""set_trap_table, set_callbacks, callback_op, nmi_op."""

from struct import pack

import pytest

from hypervisor.abi.arch_x86_64 import trap_info
from hypervisor.abi.callback import CALLBACKOP_unregister
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSYS
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.pv.callbacks import set_trap_table
from tests.hypervisor.pv.cpu_guest import CODE, DATA, HOLE, STACK, CpuGuest, booted, handler
from tests.hypervisor.pv.paging import va

NOT_CANONICAL = 1 << 47


@pytest.fixture
def guest() -> CpuGuest:
    return booted()


def table(*entries: tuple[int, int, int]) -> bytes:
    return b"".join(trap_info(vector, flags, 0x10, address).pack() for vector, flags, address in entries)


def test_a_trap_table_changes_what_it_names(guest: CpuGuest) -> None:
    guest.put(DATA, table((3, 7, 0x3000), (255, 4, 0x4000), (0, 0, 0), (5, 0, 0x5000)))
    assert guest.call("set_trap_table", va(DATA)) == 0
    addresses = guest.vcpu.trap_addresses
    assert (addresses[3], addresses[255], addresses[5]) == (0x3000, 0x4000, handler(5))
    assert (guest.vcpu.trap_flags[3], guest.vcpu.trap_selectors[3]) == (7, 0x13)
    assert guest.call("set_trap_table", 0) == 0
    assert not any(guest.vcpu.trap_addresses)


def test_a_bad_entry_ends_the_table(guest: CpuGuest) -> None:
    guest.put(DATA, table((3, 0, 0x3000), (4, 0, NOT_CANONICAL), (5, 0, 0x5000)))
    assert guest.call("set_trap_table", va(DATA)) == -XEN_EINVAL
    assert guest.vcpu.trap_addresses[3:6] == [0x3000, handler(4), handler(5)]


def test_a_table_without_an_end_is_a_fault_and_takes_no_long_time(guest: CpuGuest) -> None:
    guest.put(CODE, table((1, 0, 0x1000)) * 512)
    result = set_trap_table(guest.vcpu, va(CODE))
    assert result == Continuation(0, (va(CODE) + SLICE_STEPS * trap_info.size,))
    assert guest.call("set_trap_table", va(HOLE) - 32) == -XEN_EFAULT
    assert guest.call("set_trap_table", NOT_CANONICAL) == -XEN_EFAULT


def test_set_callbacks(guest: CpuGuest) -> None:
    assert guest.call("set_callbacks", 0x1000, NOT_CANONICAL, 0x3000) == 0
    vcpu = guest.vcpu
    assert (vcpu.event.address, vcpu.syscall.address) == (0x1000, 0x3000)
    assert vcpu.failsafe.address == 0xFFFF_FFFF_8100_0100


@pytest.mark.parametrize(
    ("kind", "name"), [(0, "event"), (1, "failsafe"), (2, "syscall"), (5, "sysenter"), (7, "syscall32")]
)
def test_callback_op_registers(guest: CpuGuest, kind: int, name: str) -> None:
    assert guest.register(kind, 0x1000, 1) == 0
    callback = getattr(guest.vcpu, name)
    assert (callback.address, callback.masks_events) == (0x1000, True)
    assert guest.register(kind, 0x2000, 0) == 0
    assert (callback.address, callback.masks_events) == (0x2000, False)
    assert guest.register(kind, NOT_CANONICAL, 1) == -XEN_EINVAL
    assert (callback.address, callback.masks_events) == (0x2000, False)
    guest.put(DATA, pack("<HH", kind, 0))
    assert guest.call("callback_op", CALLBACKOP_unregister, va(DATA)) == -XEN_EINVAL


def test_the_nmi_callback_is_a_trap(guest: CpuGuest) -> None:
    assert guest.register(4, 0x1000) == 0
    assert (guest.vcpu.trap_addresses[2], guest.vcpu.trap_flags[2]) == (0x1000, 4)
    guest.put(DATA, pack("<HH", 4, 0))
    assert guest.call("callback_op", CALLBACKOP_unregister, va(DATA)) == 0
    assert guest.vcpu.trap_addresses[2] == 0
    guest.put(DATA, pack("<QQ", 0x2000, 0))
    assert guest.call("nmi_op", 0, va(DATA)) == 0
    assert guest.vcpu.trap_addresses[2] == 0x2000
    guest.put(DATA, pack("<QQ", NOT_CANONICAL, 0))
    assert guest.call("nmi_op", 0, va(DATA)) == -XEN_EINVAL
    assert guest.call("nmi_op", 1, 0) == 0
    assert guest.vcpu.trap_addresses[2] == 0


def test_what_there_is_not(guest: CpuGuest) -> None:
    for kind in (3, 6, 8, 0xFFFF):
        assert guest.register(kind, 0x1000) == -XEN_ENOSYS
    assert guest.call("callback_op", 2, va(DATA)) == -XEN_ENOSYS
    assert guest.call("callback_op", 0, va(HOLE)) == -XEN_EFAULT
    assert guest.call("callback_op", 1, va(HOLE)) == -XEN_EFAULT
    assert guest.call("nmi_op", 2, 0) == -XEN_ENOSYS
    assert guest.call("nmi_op", 0, va(HOLE)) == -XEN_EFAULT


def test_stack_switch_is_looked_at_when_it_is_used(guest: CpuGuest) -> None:
    assert guest.call("stack_switch", 0xE028, va(STACK)) == 0
    assert (guest.vcpu.kernel_ss, guest.vcpu.kernel_sp) == (0xE02B, va(STACK))
    assert guest.call("stack_switch", 0, 1 << 47) == 0
