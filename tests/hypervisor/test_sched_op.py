"""sched_op in virtual time: who blocks, what wakes, how a domain shuts down."""

import pytest

from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSPC, XEN_ENOSYS, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_watchdog,
    sched_poll,
    sched_remote_shutdown,
    sched_shutdown,
    sched_watchdog,
)
from hypervisor.abi.xen import DOMID_SELF, VIRQ_CONSOLE, VIRQ_DOM_EXC
from hypervisor.abi.xen import __HYPERVISOR_sched_op as SCHED_OP
from hypervisor.event_2l import POLL_ANY_PORT
from tests.hypervisor.fakes import FakeHost, Guest, new_machine

SECOND = 1_000_000_000
ARRAY = 0x800
NOWHERE = 0x7000_0000


class Scheduled(Guest):
    """A guest with three ports that it can notify itself by."""

    @classmethod
    def on_new_machine(cls) -> tuple["Scheduled", FakeHost]:
        machine, host = new_machine()
        guest = cls(machine, vcpus=2)
        guest.ports = [guest.domain.events.bind_ipi(1) for _ in range(3)]
        return guest, host

    def block(self) -> int:
        return self.hypercall(SCHED_OP, SCHEDOP_block, 0)

    def poll(self, *ports: int, timeout: int = 0, nr_ports: int | None = None) -> int:
        for index, port in enumerate(ports):
            self.domain.memory.write_u32(ARRAY + 4 * index, port)
        count = len(ports) if nr_ports is None else nr_ports
        argument = sched_poll(ports=ARRAY, nr_ports=count, timeout=timeout)
        return self.operate(SCHED_OP, SCHEDOP_poll, argument)[0]

    def notify(self, index: int) -> None:
        self.domain.events.send(self.ports[index])

    def op(self, operation: int, argument) -> int:
        return self.operate(SCHED_OP, operation, argument)[0]


@pytest.mark.parametrize("operation", [SCHEDOP_pin_override, 8, 2**32 - 1])
def test_what_is_not_offered(operation: int) -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.hypercall(SCHED_OP, operation, 0) == -XEN_ENOSYS


@pytest.mark.parametrize(
    "operation", [SCHEDOP_shutdown, SCHEDOP_shutdown_code, SCHEDOP_poll, SCHEDOP_watchdog]
)
def test_an_argument_that_is_not_there(operation: int) -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.hypercall(SCHED_OP, operation, NOWHERE) == -XEN_EFAULT
    assert not guest.vcpu.blocked
    assert guest.domain.shutdown_reason is None


def test_yield_does_nothing() -> None:
    guest, host = Scheduled.on_new_machine()
    host.take_kicks()
    assert guest.hypercall(SCHED_OP, SCHEDOP_yield, 0) == 0
    assert guest.vcpu.runnable
    assert host.take_kicks() == []


# ---- block


def test_block_unmasks_upcalls_and_waits_for_one() -> None:
    guest, host = Scheduled.on_new_machine()
    port = guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
    guest.vcpu.info[1] = 1
    assert guest.block() == 0
    assert guest.vcpu.info[1] == 0
    assert guest.vcpu.blocked
    host.take_kicks()
    guest.domain.events.raise_virq(VIRQ_CONSOLE)
    assert not guest.vcpu.blocked
    assert host.take_kicks() == [guest.vcpu]
    assert guest.domain.events.poll(port)


def test_block_returns_at_once_when_an_upcall_is_pending_even_a_masked_one() -> None:
    guest, _ = Scheduled.on_new_machine()
    guest.vcpu.info[0] = guest.vcpu.info[1] = 1
    assert guest.block() == 0
    assert not guest.vcpu.blocked


def test_a_masked_port_does_not_end_a_block() -> None:
    guest, _ = Scheduled.on_new_machine()
    port = guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
    guest.domain.shared_info[2560:2568].cast("Q")[0] = 1 << port
    guest.block()
    guest.domain.events.raise_virq(VIRQ_CONSOLE)
    assert guest.vcpu.blocked


def test_a_paused_domain_is_not_kicked_until_it_is_unpaused() -> None:
    guest, host = Scheduled.on_new_machine()
    guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
    guest.block()
    guest.domain.pause()
    host.take_kicks()
    guest.domain.events.raise_virq(VIRQ_CONSOLE)
    assert host.take_kicks() == []
    assert not guest.vcpu.runnable
    guest.domain.unpause()
    assert host.take_kicks() == [guest.vcpu]


# ---- poll


@pytest.mark.parametrize("port", [0, 4, 63, 64, 1023, 4095, 4096, 2**31, 2**32 - 1])
def test_polling_a_port_that_is_not_in_use(port: int) -> None:
    """XSA-221."""
    guest, _ = Scheduled.on_new_machine()
    assert guest.poll(port) == -XEN_EINVAL
    assert guest.poll(guest.ports[0], port) == -XEN_EINVAL
    assert guest.poll(guest.ports[0], port, timeout=SECOND) == -XEN_EINVAL
    assert not guest.vcpu.blocked
    assert guest.vcpu.poll_port is None
    assert not guest.domain.events.bits.pollers
    assert len(guest.machine.timers) == 0


@pytest.mark.parametrize("count", [129, 2**31, 2**32 - 1])
def test_too_many_ports(count: int) -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.poll(*[guest.ports[0]] * 129, nr_ports=count) == -XEN_EINVAL
    assert not guest.vcpu.blocked


def test_128_ports_may_be_polled() -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.poll(*[guest.ports[0]] * 128) == 0
    assert guest.vcpu.poll_port == POLL_ANY_PORT


def test_an_array_that_is_not_there_leaves_the_vcpu_running() -> None:
    guest, _ = Scheduled.on_new_machine()
    for ports in (NOWHERE, 2**64 - 2):
        argument = sched_poll(ports=ports, nr_ports=1, timeout=SECOND)
        assert guest.op(SCHEDOP_poll, argument) == -XEN_EFAULT
        assert guest.vcpu.runnable


def test_a_pending_port_ends_the_poll_before_it_begins() -> None:
    guest, _ = Scheduled.on_new_machine()
    guest.notify(1)
    assert guest.poll(guest.ports[0], guest.ports[1], 4095) == 0
    assert not guest.vcpu.blocked


def test_an_upcall_ends_the_poll_before_it_begins_unless_it_is_masked() -> None:
    guest, _ = Scheduled.on_new_machine()
    guest.vcpu.info[0] = 1
    assert guest.poll(4095) == 0
    assert not guest.vcpu.blocked
    guest.vcpu.info[1] = 1
    assert guest.poll(4095) == -XEN_EINVAL
    assert guest.poll(guest.ports[0]) == 0
    assert guest.vcpu.blocked


def test_one_port_is_waited_for_even_masked_and_others_do_not_count() -> None:
    guest, host = Scheduled.on_new_machine()
    guest.domain.shared_info[2560:2568].cast("Q")[0] = 2**64 - 1
    assert guest.poll(guest.ports[1]) == 0
    assert guest.vcpu.blocked
    guest.notify(0)
    assert guest.vcpu.blocked
    host.take_kicks()
    guest.notify(1)
    assert not guest.vcpu.blocked
    assert guest.vcpu.poll_port is None
    assert host.take_kicks() == [guest.vcpu]
    assert not guest.domain.events.bits.pollers


@pytest.mark.parametrize("polled", [(), (0, 1)])
def test_several_ports_or_none_wake_at_any_event(polled: tuple[int, ...]) -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.poll(*[guest.ports[index] for index in polled]) == 0
    assert guest.vcpu.blocked
    guest.notify(2)
    assert not guest.vcpu.blocked


def test_the_timeout_ends_the_poll() -> None:
    guest, host = Scheduled.on_new_machine()
    guest.poll(guest.ports[0], timeout=SECOND)
    host.advance(SECOND - 1, guest.machine.expire_timers)
    assert guest.vcpu.blocked
    host.advance(1, guest.machine.expire_timers)
    assert not guest.vcpu.blocked
    assert not guest.vcpu.upcall_pending


@pytest.mark.parametrize("timeout", [1, SECOND, 2**63, 2**64 - 1])
def test_a_timeout_that_has_passed(timeout: int) -> None:
    guest, host = Scheduled.on_new_machine()
    host.time_ns = SECOND
    assert guest.poll(guest.ports[0], timeout=timeout) == 0
    assert not guest.vcpu.blocked
    assert len(guest.machine.timers) == 0


def test_the_timeout_of_a_poll_that_is_over_does_not_end_the_next_one() -> None:
    guest, host = Scheduled.on_new_machine()
    guest.poll(guest.ports[0], timeout=SECOND)
    guest.notify(0)
    assert not guest.vcpu.blocked
    guest.poll(guest.ports[1])
    host.advance(2 * SECOND, guest.machine.expire_timers)
    assert guest.vcpu.blocked
    guest.notify(1)
    guest.poll(guest.ports[2], timeout=5 * SECOND)
    guest.notify(2)
    guest.block()
    host.advance(9 * SECOND, guest.machine.expire_timers)
    assert guest.vcpu.blocked


# ---- shutdown


@pytest.mark.parametrize(
    ("reason", "kept"),
    [(SHUTDOWN_poweroff, 0), (SHUTDOWN_reboot, 1), (77, 77), (256 + 3, 3), (2**32 - 1, 255)],
)
def test_shutdown(reason: int, kept: int) -> None:
    guest, host = Scheduled.on_new_machine()
    port = guest.domain.events.bind_virq(VIRQ_DOM_EXC, 0)
    assert guest.op(SCHEDOP_shutdown, sched_shutdown(reason=reason)) == 0
    assert guest.domain.shutdown_reason == kept
    assert guest.domain in host.stopped
    assert guest.domain.events.poll(port)
    assert not guest.vcpu.runnable


def test_the_reason_may_be_said_beforehand_once() -> None:
    guest, _ = Scheduled.on_new_machine()
    assert guest.op(SCHEDOP_shutdown_code, sched_shutdown(reason=SHUTDOWN_crash)) == 0
    assert guest.op(SCHEDOP_shutdown_code, sched_shutdown(reason=SHUTDOWN_reboot)) == 0
    guest.op(SCHEDOP_shutdown, sched_shutdown(reason=SHUTDOWN_poweroff))
    assert guest.domain.shutdown_reason == SHUTDOWN_crash


def test_dom0_shuts_others_down_and_nobody_else_does() -> None:
    dom0, host = Scheduled.on_new_machine()
    guest, other = Guest(dom0.machine), Guest(dom0.machine)

    def remote_shutdown(caller: Guest, domid: int) -> int:
        argument = sched_remote_shutdown(domain_id=domid, reason=SHUTDOWN_reboot)
        return caller.operate(SCHED_OP, SCHEDOP_remote_shutdown, argument)[0]

    assert remote_shutdown(guest, other.domid) == -XEN_EPERM
    assert remote_shutdown(guest, guest.domid) == -XEN_EPERM
    assert remote_shutdown(dom0, DOMID_SELF) == -XEN_ESRCH
    assert remote_shutdown(dom0, 99) == -XEN_ESRCH
    assert host.stopped == []
    other.domain.pause()
    host.stopped.clear()
    assert remote_shutdown(dom0, other.domid) == 0
    assert other.domain.shutdown_reason == SHUTDOWN_reboot
    assert other.domain in host.stopped
    assert guest.domain.shutdown_reason is None


# ---- watchdogs


def watchdog(guest: Scheduled, number: int, timeout: int) -> int:
    return guest.op(SCHEDOP_watchdog, sched_watchdog(id=number, timeout=timeout))


def test_a_watchdog_that_is_wound_in_time_does_not_bite() -> None:
    guest, host = Scheduled.on_new_machine()
    assert watchdog(guest, 0, 10) == 1
    for _ in range(3):
        host.advance(9 * SECOND, guest.machine.expire_timers)
        assert watchdog(guest, 1, 10) == 0
    assert guest.domain.shutdown_reason is None
    host.advance(10 * SECOND, guest.machine.expire_timers)
    assert guest.domain.shutdown_reason == SHUTDOWN_watchdog
    assert host.deadline_ns is None


def test_there_are_two_and_they_can_be_given_back() -> None:
    guest, host = Scheduled.on_new_machine()
    assert [watchdog(guest, 0, 10), watchdog(guest, 0, 10)] == [1, 2]
    assert watchdog(guest, 0, 10) == -XEN_ENOSPC
    assert watchdog(guest, 1, 0) == 0
    assert watchdog(guest, 1, 0) == -XEN_EINVAL
    assert watchdog(guest, 3, 1) == watchdog(guest, 2**32 - 1, 1) == -XEN_EINVAL
    assert watchdog(guest, 0, 2**32 - 1) == 1
    assert watchdog(guest, 2, 0) == watchdog(guest, 1, 0) == 0
    assert host.deadline_ns is None


def test_a_dead_domain_has_no_watchdog() -> None:
    dom0, host = Scheduled.on_new_machine()
    guest = Scheduled(dom0.machine)
    assert watchdog(guest, 0, 10) == 1
    guest.destroy()
    assert host.deadline_ns is None
