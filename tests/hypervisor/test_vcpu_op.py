"""vcpu_op: timers of a vCPU, up and down, and the areas of memory that are kept up to date for it."""

import pytest

from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOENT, XEN_ENOSYS, XEN_ENXIO
from hypervisor.abi.sched import SHUTDOWN_poweroff
from hypervisor.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_running,
    VCPUOP_down,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_register_runstate_memory_area,
    vcpu_register_runstate_memory_area_addr,
    vcpu_register_time_memory_area,
    vcpu_register_time_memory_area_addr,
    vcpu_register_vcpu_info,
    vcpu_runstate_info,
    vcpu_set_periodic_timer,
    vcpu_set_singleshot_timer,
)
from hypervisor.abi.xen import VIRQ_TIMER, vcpu_info, vcpu_time_info
from hypervisor.abi.xen import __HYPERVISOR_vcpu_op as VCPU_OP
from hypervisor.extent import PAGE_SIZE
from hypervisor.vcpu.clock import enter_running
from tests.hypervisor.fakes import FakeHost, Guest, new_machine

MS = 1_000_000
NOWHERE = 0x7000_0000


class TimedGuest(Guest):
    """Two vCPUs, each with VIRQ_TIMER bound."""

    @classmethod
    def on_new_machine(cls) -> tuple["TimedGuest", FakeHost]:
        machine, host = new_machine()
        guest = cls(machine, vcpus=2)
        guest.ports = [guest.domain.events.bind_virq(VIRQ_TIMER, vcpu) for vcpu in (0, 1)]
        return guest, host

    def op(self, operation: int, vcpu_id: int, argument=None, *, caller: int = 0) -> int:
        if argument is None:
            return self.hypercall(VCPU_OP, operation, vcpu_id, 0, vcpu=caller)
        return self.operate(VCPU_OP, operation, argument, vcpu_id, vcpu=caller)[0]

    def ticked(self, vcpu: int = 0) -> bool:
        pending = self.domain.events.poll(self.ports[vcpu])
        self.domain.events.bits.clear_pending(self.domain.events.lookup(self.ports[vcpu]))
        return pending

    def advance(self, host: FakeHost, nanoseconds: int) -> None:
        host.advance(nanoseconds, self.machine.expire_timers)


def test_a_vcpu_that_does_not_exist() -> None:
    guest, _ = TimedGuest.on_new_machine()
    for vcpu in (2, 31, 2**32 - 1):
        assert guest.op(VCPUOP_is_up, vcpu) == -XEN_ENOENT


@pytest.mark.parametrize("operation", [VCPUOP_initialise, VCPUOP_send_nmi, 14, 2**32 - 1])
def test_what_is_not_offered(operation: int) -> None:
    guest, _ = TimedGuest.on_new_machine()
    assert guest.op(operation, 0) == -XEN_ENOSYS


# ---- timers


@pytest.mark.parametrize("period", [0, 1, MS - 1, 1 << 62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_period_out_of_range_is_refused_and_changes_nothing(period: int) -> None:
    guest, host = TimedGuest.on_new_machine()
    assert guest.op(VCPUOP_set_periodic_timer, 0, vcpu_set_periodic_timer(period_ns=5 * MS)) == 0
    deadline = host.deadline_ns
    assert guest.op(VCPUOP_set_periodic_timer, 0, vcpu_set_periodic_timer(period_ns=period)) == -XEN_EINVAL
    assert host.deadline_ns == deadline


def test_the_periodic_timer_ticks_until_it_is_stopped() -> None:
    guest, host = TimedGuest.on_new_machine()
    assert guest.op(VCPUOP_set_periodic_timer, 1, vcpu_set_periodic_timer(period_ns=10 * MS)) == 0
    for _ in range(3):
        guest.advance(host, 10 * MS - 1)
        assert not guest.ticked(1)
        guest.advance(host, 1)
        assert guest.ticked(1)
        assert not guest.ticked(0)
    assert guest.op(VCPUOP_stop_periodic_timer, 1) == 0
    assert host.deadline_ns is None


def test_ticks_that_were_missed_come_as_one() -> None:
    guest, host = TimedGuest.on_new_machine()
    guest.op(VCPUOP_set_periodic_timer, 0, vcpu_set_periodic_timer(period_ns=10 * MS))
    host.time_ns = 1000 * MS
    assert guest.machine.expire_timers() == 1
    assert guest.ticked()
    assert host.deadline_ns == 1010 * MS


def test_the_longest_period() -> None:
    guest, host = TimedGuest.on_new_machine()
    assert guest.op(VCPUOP_set_periodic_timer, 0, vcpu_set_periodic_timer(period_ns=(1 << 62) - 1)) == 0
    assert host.deadline_ns == (1 << 62) - 1


@pytest.mark.parametrize(
    ("timeout", "deadline"),
    [
        (0, None),
        (1, None),
        (100 * MS, None),
        (2**63, None),
        (2**64 - 1, None),
        (100 * MS + 1, 100 * MS + 1),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_single_shot_deadlines(timeout: int, deadline: int | None) -> None:
    guest, host = TimedGuest.on_new_machine()
    host.time_ns = 100 * MS
    argument = vcpu_set_singleshot_timer(timeout_abs_ns=timeout)
    assert guest.op(VCPUOP_set_singleshot_timer, 0, argument) == 0
    assert host.deadline_ns == deadline
    assert guest.ticked() == (deadline is None)


def test_the_single_shot_timer_is_the_callers_own() -> None:
    guest, host = TimedGuest.on_new_machine()
    argument = vcpu_set_singleshot_timer(timeout_abs_ns=MS)
    assert guest.op(VCPUOP_set_singleshot_timer, 1, argument) == -XEN_EINVAL
    assert guest.op(VCPUOP_stop_singleshot_timer, 1) == -XEN_EINVAL
    assert guest.op(VCPUOP_set_singleshot_timer, 1, argument, caller=1) == 0
    assert guest.op(VCPUOP_stop_singleshot_timer, 1, caller=1) == 0
    assert host.deadline_ns is None


@pytest.mark.parametrize(
    "operation",
    [
        VCPUOP_set_periodic_timer,
        VCPUOP_set_singleshot_timer,
        VCPUOP_get_runstate_info,
        VCPUOP_register_vcpu_info,
        VCPUOP_register_runstate_memory_area,
        VCPUOP_register_vcpu_time_memory_area,
    ],
)
def test_an_argument_that_is_not_there(operation: int) -> None:
    guest, _ = TimedGuest.on_new_machine()
    for address in (NOWHERE, 8 * PAGE_SIZE - 4, 2**64 - 4):
        assert guest.hypercall(VCPU_OP, operation, 0, address) == -XEN_EFAULT


# ---- up and down


def test_up_and_down() -> None:
    guest, host = TimedGuest.on_new_machine()
    assert guest.op(VCPUOP_is_up, 0) == 1
    assert guest.op(VCPUOP_is_up, 1) == 0
    assert guest.op(VCPUOP_up, 0) == 0
    assert guest.op(VCPUOP_up, 1) == -XEN_EINVAL
    other = guest.domain.vcpus[1]
    other.initialised = True
    host.take_kicks()
    assert guest.op(VCPUOP_up, 1) == 0
    assert host.take_kicks() == [other]
    assert guest.op(VCPUOP_down, 1) == 0
    assert guest.op(VCPUOP_is_up, 1) == 0
    assert not other.runnable


def test_the_last_vcpu_to_go_down_powers_the_domain_off() -> None:
    guest, _ = TimedGuest.on_new_machine()
    assert guest.op(VCPUOP_down, 0) == 0
    assert guest.domain.shutdown_reason == SHUTDOWN_poweroff


# ---- vcpu_info elsewhere


def test_vcpu_info_moves_with_its_content_and_everything_pending() -> None:
    guest, host = TimedGuest.on_new_machine()
    guest.vcpu.info[1] = 1
    guest.vcpu.blocked = True
    argument = vcpu_register_vcpu_info(mfn=3, offset=128)
    assert guest.op(VCPUOP_register_vcpu_info, 0, argument) == 0
    moved = guest.domain.memory.read_struct(vcpu_info, 3 * PAGE_SIZE + 128)
    assert moved.evtchn_upcall_pending == 1
    assert moved.evtchn_upcall_mask == 1
    assert moved.evtchn_pending_sel == 2**64 - 1
    assert moved.time.version % 2 == 0
    assert moved.time.version > 0
    assert not guest.vcpu.blocked
    assert guest.vcpu in host.take_kicks()
    guest.domain.events.raise_virq(VIRQ_TIMER, 0)
    assert guest.domain.shared_info[8:16] == bytes(8)


@pytest.mark.parametrize("offset", [*range(1, 8), 12, 63, 4033, 4036, 4040, 4096, 2**32 - 64, 2**32 - 8])
def test_vcpu_info_at_a_bad_offset(offset: int) -> None:
    guest, _ = TimedGuest.on_new_machine()
    argument = vcpu_register_vcpu_info(mfn=3, offset=offset)
    assert guest.op(VCPUOP_register_vcpu_info, 0, argument) == -XEN_ENXIO
    assert guest.vcpu.info_frame is None


@pytest.mark.parametrize("gpfn", [8, 2**32, 2**52, 2**64 - 1])
def test_vcpu_info_where_there_is_no_memory(gpfn: int) -> None:
    guest, _ = TimedGuest.on_new_machine()
    argument = vcpu_register_vcpu_info(mfn=gpfn, offset=0)
    assert guest.op(VCPUOP_register_vcpu_info, 0, argument) == -XEN_EINVAL


def test_vcpu_info_only_in_pages_of_its_own() -> None:
    guest, _ = TimedGuest.on_new_machine()
    other = Guest(guest.machine)
    frame = other.domain.memory.mfn(0)
    guest.domain.memory.map_foreign(100, frame, True)
    guest.domain.memory.map_foreign(101, guest.domain.shared_info_mfn, True)
    for gpfn in (100, 101):
        argument = vcpu_register_vcpu_info(mfn=gpfn, offset=0)
        assert guest.op(VCPUOP_register_vcpu_info, 0, argument) == -XEN_EINVAL


def test_vcpu_info_moves_once_and_only_for_oneself_or_a_vcpu_that_is_down() -> None:
    guest, _ = TimedGuest.on_new_machine()
    guest.domain.vcpus[1].online = True
    argument = vcpu_register_vcpu_info(mfn=3, offset=64)
    assert guest.op(VCPUOP_register_vcpu_info, 1, argument) == -XEN_EINVAL
    guest.domain.vcpus[1].online = False
    assert guest.op(VCPUOP_register_vcpu_info, 1, argument) == 0
    assert guest.op(VCPUOP_register_vcpu_info, 1, argument) == -XEN_EINVAL


def test_a_dying_domain_lets_go_of_the_page_with_vcpu_info() -> None:
    machine, _ = new_machine()
    Guest(machine)
    guest = Guest(machine)
    used = machine.frames.used
    victim = Guest(machine)
    argument = vcpu_register_vcpu_info(mfn=3, offset=64)
    assert victim.operate(VCPU_OP, VCPUOP_register_vcpu_info, argument, 0)[0] == 0
    victim.destroy()
    machine.bury()
    assert machine.frames.used == used
    assert victim.domid not in machine.domains
    assert guest.domid in machine.domains


# ---- runstate and time


def test_runstate_times_add_up() -> None:
    guest, host = TimedGuest.on_new_machine()
    vcpu = guest.vcpu
    enter_running(vcpu)
    host.time_ns += 7 * MS
    vcpu.enter_runstate(RUNSTATE_blocked, host.time_ns)
    host.time_ns += 5 * MS
    result, info = guest.operate(VCPU_OP, VCPUOP_get_runstate_info, vcpu_runstate_info(), 0)
    assert result == 0
    assert info.state == RUNSTATE_blocked
    assert info.state_entry_time == 7 * MS
    assert info.time[RUNSTATE_running] == 7 * MS
    assert info.time[RUNSTATE_blocked] == 5 * MS
    assert sum(info.time) == host.time_ns


def test_the_registered_runstate_area_follows() -> None:
    guest, host = TimedGuest.on_new_machine()
    area = 5 * PAGE_SIZE
    addr = vcpu_register_runstate_memory_area_addr(h=area)
    argument = vcpu_register_runstate_memory_area(addr=addr)
    assert guest.op(VCPUOP_register_runstate_memory_area, 0, argument) == 0
    host.time_ns = 9 * MS
    enter_running(guest.vcpu)
    info = guest.domain.memory.read_struct(vcpu_runstate_info, area)
    assert (info.state, info.state_entry_time) == (RUNSTATE_running, 9 * MS)
    guest.domain.memory.remove_ram(5, 1)
    enter_running(guest.vcpu)


@pytest.mark.parametrize("address", [NOWHERE, 8 * PAGE_SIZE - 8, 2**64 - 8])
def test_areas_that_are_not_writable_are_refused(address: int) -> None:
    guest, _ = TimedGuest.on_new_machine()
    runstate = vcpu_register_runstate_memory_area(addr=vcpu_register_runstate_memory_area_addr(h=address))
    assert guest.op(VCPUOP_register_runstate_memory_area, 0, runstate) == -XEN_EFAULT
    time = vcpu_register_time_memory_area(addr=vcpu_register_time_memory_area_addr(h=address))
    assert guest.op(VCPUOP_register_vcpu_time_memory_area, 0, time) == -XEN_EFAULT
    assert (guest.vcpu.runstate_area, guest.vcpu.time_area) == (0, 0)


def test_the_second_copy_of_the_time() -> None:
    guest, host = TimedGuest.on_new_machine()
    host.time_ns = 3 * MS
    area = 6 * PAGE_SIZE
    argument = vcpu_register_time_memory_area(addr=vcpu_register_time_memory_area_addr(h=area))
    assert guest.op(VCPUOP_register_vcpu_time_memory_area, 0, argument) == 0
    copy = guest.domain.memory.read_struct(vcpu_time_info, area)
    assert copy == vcpu_info.unpack(guest.vcpu.info).time
    assert copy.system_time == 3 * MS
    assert copy.version % 2 == 0
