"""Domains whose programs are coroutines: upcalls, pausing, death, crashes, and that one harms no other."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from hypervisor.abi.event_channel import EVTCHNOP_reset, EVTCHNOP_send, evtchn_reset, evtchn_send
from hypervisor.abi.sched import (
    SCHEDOP_poll,
    SCHEDOP_shutdown,
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    sched_poll,
    sched_shutdown,
)
from hypervisor.abi.vcpu import RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_running
from hypervisor.abi.xen import (
    DOMID_SELF,
    VIRQ_CONSOLE,
    VIRQ_TIMER,
    shared_info,
    vcpu_info,
)
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.abi.xen import __HYPERVISOR_sched_op as SCHED_OP
from hypervisor.abi.xen import __HYPERVISOR_set_timer_op as SET_TIMER_OP
from hypervisor.continuation import SLICE_STEPS
from hypervisor.domain import Domain
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine import CoroutineVcpu, PageNotPresent, Program
from hypervisor.vcpu.coroutine_host import CoroutineHost, HostMisuse
from kernel.platform import Platform
from tests.hypervisor.fakes import Guest

pytestmark = pytest.mark.anyio

LATER_NS = 3_000_000


class World:
    """A machine in real time and what its domains wrote to the emergency console."""

    def __init__(self) -> None:
        self.console: list[tuple[int, bytes]] = []
        self.host = CoroutineHost(lambda domain, data: self.console.append((domain.domid, data)))
        self.machine = Machine(self.host, 64 << 20)

    def start(self, program: Program, *, paused: bool = False) -> tuple[Guest, CoroutineVcpu]:
        guest = Guest(self.machine)
        if paused:
            guest.domain.pause()
        return guest, self.host.start(guest.domain, program)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    here = World()
    with anyio.fail_after(20):
        async with here.host.running(here.machine):
            yield here


def shut_down(platform: Platform, reason: int) -> None:
    platform.memory.page(0)[0x200:0x204] = sched_shutdown(reason=reason).pack()
    assert platform.hypercall(SCHED_OP, SCHEDOP_shutdown, 0x200) == 0


def take_upcall(guest: Guest) -> None:
    guest.vcpu.info[0] = 0
    guest.vcpu.info_words[1] = 0


def forever(log: list[str], guest: Callable[[], Guest]) -> Program:
    """A program that notes each upcall."""

    async def program(platform: Platform) -> None:
        while True:
            await platform.wait_upcall()
            log.append("upcall")
            take_upcall(guest())

    return program


async def test_a_program_has_what_the_kernel_is_promised() -> None:
    seen: dict[str, object] = {}

    async def program(platform: Platform) -> None:
        seen["pages"] = platform.nr_pages
        seen["size"] = len(platform.memory.page(7))
        seen["span"] = len(platform.memory.span(2, 3))
        for ask in (lambda: platform.memory.page(8), lambda: platform.memory.span(6, 3)):
            with pytest.raises(LookupError) as error:
                ask()
            assert isinstance(error.value, PageNotPresent)
        before = platform.now_ns()
        seen["clock"] = platform.now_ns() - before

    async with world() as here:
        guest, execution = here.start(program)
        await execution.finished.wait()
        assert (seen["pages"], seen["size"], seen["span"]) == (8, 4096, 3 * 4096)
        assert seen["clock"] >= 0
        assert guest.domain.shutdown_reason == SHUTDOWN_poweroff
        await wait_all_tasks_blocked()
        assert not here.host._executions
        info = vcpu_info.unpack(guest.vcpu.info)
        assert info.time.version == 2
        assert shared_info.unpack(guest.domain.shared_info).wc_sec > 1_500_000_000
        assert not here.host.crashes


async def test_a_program_starts_with_the_first_unpause() -> None:
    log: list[str] = []

    async def program(platform: Platform) -> None:
        log.append("boot")

    async with world() as here:
        guest, execution = here.start(program, paused=True)
        await wait_all_tasks_blocked()
        assert log == []
        guest.domain.unpause()
        await execution.finished.wait()
        assert log == ["boot"]


async def test_two_domains_play_ping_pong() -> None:
    rounds = 200
    ports: dict[int, int] = {}

    def player(index: int, guests: list[Guest], serve: bool) -> Program:
        async def program(platform: Platform) -> None:
            page = platform.memory.page(0)
            page[0:4] = evtchn_send(port=ports[index]).pack()
            if serve:
                assert platform.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_send, 0) == 0
            for _ in range(rounds):
                await platform.wait_upcall()
                take_upcall(guests[index])
                guests[index].domain.events.bits.clear_pending(
                    guests[index].domain.events.lookup(ports[index])
                )
                assert platform.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_send, 0) == 0

        return program

    async with world() as here:
        guests = [Guest(here.machine), Guest(here.machine)]
        ports[1] = guests[1].domain.events.alloc_unbound(guests[0].domid)
        ports[0] = guests[0].domain.events.bind_interdomain(guests[1].domain.events, ports[1])
        guests[0].domain.events.bits.clear_pending(guests[0].domain.events.lookup(ports[0]))
        take_upcall(guests[0])
        executions = [
            here.host.start(guest.domain, player(index, guests, serve=index == 0))
            for index, guest in enumerate(guests)
        ]
        for execution in executions:
            await execution.finished.wait()
        assert [guest.domain.shutdown_reason for guest in guests] == [SHUTDOWN_poweroff] * 2
        assert guests[0].domain.counters.events_sent == rounds + 1


async def test_an_upcall_that_is_pending_is_not_waited_for_but_others_get_their_turn() -> None:
    log: list[str] = []

    async def program(platform: Platform) -> None:
        for _ in range(5):
            await platform.wait_upcall()
            log.append("upcall")

    async def bystander() -> None:
        for _ in range(3):
            log.append("bystander")
            await checkpoint()

    async with world() as here:
        guest, execution = here.start(program, paused=True)
        guest.vcpu.info[0] = 1
        async with anyio.create_task_group() as tasks:
            guest.domain.unpause()
            tasks.start_soon(bystander)
            await execution.finished.wait()
        assert log.count("upcall") == 5
        assert "bystander" in log[: len(log) - log[::-1].index("upcall") - 1]
        assert guest.domain.counters.hypercalls["sched_op"] == 0


async def test_a_poll_ends_at_its_port_and_leaves_no_upcall() -> None:
    log: list[str] = []

    async with world() as here:
        guest = Guest(here.machine)
        port = guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        guest.domain.shared_info[2560:2568].cast("Q")[0] = 2**64 - 1

        async def program(platform: Platform) -> None:
            memory = guest.domain.memory
            memory.write_u32(0x300, port)
            memory.write_struct(0x100, sched_poll(ports=0x300, nr_ports=1))
            assert platform.hypercall(SCHED_OP, SCHEDOP_poll, 0x100) == 0
            log.append("polling")
            await platform.wait_upcall()
            log.append("polled")

        execution = here.host.start(guest.domain, program)
        await wait_all_tasks_blocked()
        assert log == ["polling"]
        guest.domain.events.raise_virq(VIRQ_CONSOLE)
        await execution.finished.wait()
        assert log == ["polling", "polled"]
        assert not guest.vcpu.upcall_pending


async def test_a_hypercall_goes_on_until_its_work_is_done() -> None:
    async with world() as here:
        guest = Guest(here.machine)
        for _ in range(2 * SLICE_STEPS + 1):
            guest.domain.events.bind_ipi(0)

        async def program(platform: Platform) -> None:
            platform.memory.page(0)[0x100:0x102] = evtchn_reset(dom=DOMID_SELF).pack()
            assert platform.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_reset, 0x100) == 0

        execution = here.host.start(guest.domain, program)
        await execution.finished.wait()
        assert execution.failure is None
        assert guest.domain.events.active == 0


# ---- pausing


async def test_a_paused_domain_does_not_come_back_from_wait_upcall() -> None:
    log: list[str] = []
    async with world() as here:
        guest, _ = here.start(forever(log, lambda: guest))
        guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        await wait_all_tasks_blocked()
        assert guest.vcpu.runstate == RUNSTATE_blocked
        guest.domain.pause()
        guest.domain.events.raise_virq(VIRQ_CONSOLE)
        await wait_all_tasks_blocked()
        assert log == []
        guest.domain.unpause()
        await wait_all_tasks_blocked()
        assert log == ["upcall"]


async def test_a_domain_paused_between_its_wake_up_and_its_turn_stays_paused() -> None:
    log: list[str] = []
    async with world() as here:
        guest, _ = here.start(forever(log, lambda: guest))
        guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        await wait_all_tasks_blocked()
        guest.domain.events.raise_virq(VIRQ_CONSOLE)
        guest.domain.pause()
        await wait_all_tasks_blocked()
        assert log == []
        guest.domain.unpause()
        await wait_all_tasks_blocked()
        assert log == ["upcall"]


async def test_a_domain_paused_while_an_upcall_is_pending_waits_too() -> None:
    log: list[str] = []
    async with world() as here:
        guest = Guest(here.machine)

        async def program(platform: Platform) -> None:
            guest.vcpu.info[0] = 1
            guest.domain.pause()
            await platform.wait_upcall()
            log.append("upcall")

        execution = here.host.start(guest.domain, program)
        await wait_all_tasks_blocked()
        assert log == []
        assert guest.vcpu.runstate == RUNSTATE_offline
        guest.domain.unpause()
        await execution.finished.wait()
        assert log == ["upcall"]


# ---- ending


async def test_a_shutdown_ends_the_program_at_its_next_await() -> None:
    log: list[str] = []

    async def program(platform: Platform) -> None:
        shut_down(platform, SHUTDOWN_reboot)
        log.append("still here")
        await platform.wait_upcall()
        log.append("never")

    async with world() as here:
        guest, execution = here.start(program)
        await execution.finished.wait()
        assert log == ["still here"]
        assert guest.domain.shutdown_reason == SHUTDOWN_reboot
        assert guest.domain.events.active == 0
        assert guest.vcpu.runstate == RUNSTATE_offline


@pytest.mark.parametrize("paused", [False, True])
async def test_a_killed_domain_is_cancelled_wherever_it_waits(paused: bool) -> None:
    log: list[str] = []

    async def program(platform: Platform) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                await platform.wait_upcall()
        finally:
            log.append("unwound")
            assert platform.hypercall(SCHED_OP, SCHEDOP_poll, 0x100) < 0

    async with world() as here:
        bystander_log: list[str] = []
        bystander, _ = here.start(forever(bystander_log, lambda: bystander))
        bystander.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        guest, execution = here.start(program)
        await wait_all_tasks_blocked()
        if paused:
            guest.domain.pause()
        guest.destroy()
        await execution.finished.wait()
        assert log == ["unwound"]
        here.machine.bury()
        assert guest.domid not in here.machine.domains
        bystander.domain.events.raise_virq(VIRQ_CONSOLE)
        await wait_all_tasks_blocked()
        assert bystander_log == ["upcall"]
        assert not here.host.crashes


async def test_a_domain_killed_before_it_ever_ran() -> None:
    async def program(platform: Platform) -> None:
        raise AssertionError("it never runs")

    async with world() as here:
        guest, execution = here.start(program, paused=True)
        guest.destroy()
        await execution.finished.wait()
        other = Guest(here.machine)
        other.destroy()
        late = here.host.start(other.domain, program)
        await late.finished.wait()
        assert not here.host.crashes


def raises(error: BaseException) -> Program:
    async def program(platform: Platform) -> None:
        await checkpoint()
        raise error

    return program


async def raises_in_a_task(platform: Platform) -> None:
    async def child() -> None:
        raise ZeroDivisionError("in a task")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)
        await platform.wait_upcall()


async def exits_in_a_task(platform: Platform) -> None:
    async def child() -> None:
        sys.exit(3)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)
        await platform.wait_upcall()


async def exits_in_a_task_of_a_task(platform: Platform) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exits_in_a_task, platform)


async def raises_before_any_await(platform: Platform) -> None:
    raise RuntimeError("at once")


@pytest.mark.parametrize(
    "program",
    [
        raises(ValueError("bad guest")),
        raises(SystemExit(3)),
        raises(RecursionError()),
        raises_in_a_task,
        exits_in_a_task,
        exits_in_a_task_of_a_task,
        raises_before_any_await,
    ],
    ids=["exception", "exit", "recursion", "task", "exit in a task", "exit further down", "at once"],
)
async def test_a_program_that_raises_crashes_its_domain_alone(program: Program) -> None:
    async with world() as here:
        log: list[str] = []
        bystander, _ = here.start(forever(log, lambda: bystander))
        bystander.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        guest, execution = here.start(program)
        await execution.finished.wait()
        assert guest.domain.shutdown_reason == SHUTDOWN_crash
        (crash,) = here.host.crashes
        assert crash.domid == guest.domid
        assert crash.traceback == execution.failure
        assert "Traceback" in crash.traceback
        assert here.console == [(guest.domid, crash.traceback.encode())]
        bystander.domain.events.raise_virq(VIRQ_CONSOLE)
        await wait_all_tasks_blocked()
        assert log == ["upcall"]
        assert bystander.domain.shutdown_reason is None


async def test_what_goes_wrong_in_the_clean_up_of_a_dead_domain_is_no_crash() -> None:
    async def program(platform: Platform) -> None:
        try:
            await platform.wait_upcall()
        finally:
            raise RuntimeError("nobody answers any more")

    async with world() as here:
        guest, execution = here.start(program)
        await wait_all_tasks_blocked()
        guest.destroy()
        await execution.finished.wait()
        assert not here.host.crashes
        assert execution.failure is None


# ---- the host


async def shielded(platform: Platform) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()


async def shielded_in_a_task(platform: Platform) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shielded, platform)


async def shielded_and_its_tasks_too(platform: Platform) -> None:
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded_in_a_task, platform)
            tasks.start_soon(shielded, platform)
            await shielded(platform)


async def shielded_again_and_again(platform: Platform) -> None:
    for _ in range(3):
        with suppress(anyio.get_cancelled_exc_class()):
            await shielded(platform)
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    "program", [shielded, shielded_in_a_task, shielded_and_its_tasks_too, shielded_again_and_again]
)
async def test_no_shield_outlasts_the_machine(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisor.vcpu.coroutine_host.ENDING_SECONDS", 0.05)
    async with world() as here:
        patient, _ = here.start(forever([], lambda: patient))
        guest, execution = here.start(program)
        await wait_all_tasks_blocked()
    assert execution.finished.is_set()
    ((domid, text),) = here.console
    assert domid == guest.domid
    assert text.startswith(b"domain %d () has not ended" % domid)
    assert not here.host.crashes


async def test_the_shield_around_a_machine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisor.vcpu.coroutine_host.ENDING_SECONDS", 0.05)
    ended = False
    with anyio.CancelScope() as outer:
        with anyio.CancelScope(shield=True):
            async with world() as here:
                here.start(shielded_in_a_task)
                await wait_all_tasks_blocked()
                outer.cancel()
            await checkpoint()
            ended = True
        await checkpoint()
    assert ended
    assert outer.cancelled_caught


async def test_a_program_may_take_its_time_to_end() -> None:
    log: list[str] = []

    async def program(platform: Platform) -> None:
        try:
            await platform.wait_upcall()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
                log.append("in order")

    async with world() as here:
        here.start(program)
        await wait_all_tasks_blocked()
    assert log == ["in order"]
    assert not here.console


def sleeper(log: list[int], delays_ns: list[int]) -> Program:
    """A program that sets its timer, waits for it and notes that its time has come."""

    async def program(platform: Platform) -> None:
        for delay_ns in delays_ns:
            deadline = platform.now_ns() + delay_ns
            assert platform.hypercall(SET_TIMER_OP, deadline) == 0
        await platform.wait_upcall()
        assert platform.now_ns() >= deadline
        log.append(delay_ns)

    return program


async def test_timers_fire_in_real_time() -> None:
    log: list[int] = []
    delays = [3 * LATER_NS, LATER_NS, 2 * LATER_NS]
    async with world() as here:
        executions = []
        for delay in delays:
            guest = Guest(here.machine)
            guest.domain.events.bind_virq(VIRQ_TIMER, 0)
            executions.append(here.host.start(guest.domain, sleeper(log, [delay])))
            await wait_all_tasks_blocked()
        for execution in executions:
            await execution.finished.wait()
    assert sorted(log) == sorted(delays)


async def test_a_deadline_in_the_far_future_does_not_hide_a_near_one() -> None:
    log: list[int] = []
    async with world() as here:
        far, guest = Guest(here.machine), Guest(here.machine)
        far.vcpu.timers.set_singleshot(2**63 - 1)
        await wait_all_tasks_blocked()
        guest.domain.events.bind_virq(VIRQ_TIMER, 0)
        execution = here.host.start(guest.domain, sleeper(log, [1 << 49, LATER_NS]))
        await execution.finished.wait()
    assert log == [LATER_NS]


async def test_clocks_agree() -> None:
    host = CoroutineHost(lambda domain, data: None)
    first, wall, second = host.now_ns(), host.wall_clock_ns(), host.now_ns()
    assert first <= wall - host._boot_wall_clock_ns <= second


async def test_a_host_runs_one_machine_and_a_vcpu_one_program() -> None:
    here = World()
    guest = Guest(here.machine)
    with pytest.raises(HostMisuse):
        here.host.start(guest.domain, raises_in_a_task)
    async with here.host.running(here.machine):
        here.host.start(guest.domain, forever([], lambda: guest))
        with pytest.raises(HostMisuse):
            here.host.start(guest.domain, forever([], lambda: guest))
        with pytest.raises(HostMisuse):
            async with here.host.running(here.machine):
                pass


async def test_leaving_the_host_ends_all_programs() -> None:
    ended: list[str] = []

    async def program(platform: Platform) -> None:
        try:
            await platform.wait_upcall()
        finally:
            ended.append("program")

    async with world() as here:
        _, execution = here.start(program)
        await wait_all_tasks_blocked()
    assert ended == ["program"]
    assert execution.failure is None


async def test_a_kernel_may_cancel_its_wait_and_go_on() -> None:
    states: list[int] = []

    async with world() as here:
        guest = Guest(here.machine)
        guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)

        async def program(platform: Platform) -> None:
            for _ in range(2):
                with anyio.move_on_after(0):
                    await platform.wait_upcall()
                states.append(guest.vcpu.runstate)
            await platform.wait_upcall()
            assert guest.vcpu.upcall_pending

        execution = here.host.start(guest.domain, program)
        await wait_all_tasks_blocked()
        guest.domain.events.raise_virq(VIRQ_CONSOLE)
        await execution.finished.wait()
        assert execution.failure is None
    assert states == [RUNSTATE_running] * 2


async def test_runstate_is_accounted() -> None:
    async with world() as here:
        guest, _ = here.start(forever([], lambda: guest))
        guest.domain.events.bind_virq(VIRQ_CONSOLE, 0)
        await wait_all_tasks_blocked()
        await anyio.sleep(LATER_NS / 1e9)
        guest.domain.events.raise_virq(VIRQ_CONSOLE)
        await wait_all_tasks_blocked()
        assert guest.vcpu.runstate_ns[RUNSTATE_blocked] >= LATER_NS
        assert 0 < guest.vcpu.running_ns(here.host.now_ns()) < here.host.now_ns()
        assert guest.vcpu.runstate_ns[RUNSTATE_running] > 0


def platform_is_what_the_kernel_wants(execution: CoroutineVcpu) -> Platform:
    """Checked by mypy: the two packages meet by structure only."""
    return execution


def program_takes_a_platform(program: Callable[[Platform], Awaitable[object]], domain: Domain) -> Program:
    """The same the other way round."""
    return program
