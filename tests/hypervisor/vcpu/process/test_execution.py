"""A vCPU that is a process: its domain is paused, killed, suspended and shut down at every moment, and the process
does what no process does. It costs its own domain, and nobody else anything.
"""

import errno
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_suspend
from hypervisor.domain import Domain
from hypervisor.vcpu.process import execution as execution_module
from hypervisor.vcpu.process.wire import MAX_DESCRIPTORS, MAX_PFNS, REQUEST, send_packet
from tests.hypervisor.vcpu.process.hosted import Hosted, count, descriptors, destroy, state, until

pytestmark = pytest.mark.anyio

MOMENTS = (0, 1, 2, 3, 5, 8, 13, 30)
"""turns of the loop after which something happens"""


async def test_a_process_says_something_and_shuts_down() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("power_off", b"hello")
        assert await hosted.finish(execution) == "hello\n"
        domain = execution.vcpu.domain
        assert domain.shutdown_reason == SHUTDOWN_poweroff
        assert execution.failure is None
        assert not hosted.host.crashes
        destroy(domain)
        assert hosted.machine.audit() == []


# ---- how it ends by itself


@pytest.mark.parametrize(
    ("entry", "payload", "why"),
    [
        ("leave", b"0", "its process has ended: exit code 0"),
        ("leave", b"7", "its process has ended: exit code 7"),
        ("raise_something", b"what", "its process has ended: exit code 1"),
        ("touch_nothing", b"", "its process has ended: killed by SIGSEGV"),
        ("kill_itself", b"", "its process has ended: killed by SIGKILL"),
        ("have_no_descriptors", b"", "its process has ended: exit code 1"),
    ],
)
async def test_one_that_ends_has_crashed(entry: str, payload: bytes, why: str) -> None:
    async with Hosted.running() as hosted:
        other = hosted.start("count_hypercalls")
        await until(lambda: count(other.vcpu.domain) > 0)
        before = descriptors()
        execution = hosted.start(entry, payload)
        said = await hosted.finish(execution)
        assert execution.failure == why
        assert said.endswith(f"{why}\n")
        assert execution.vcpu.domain.shutdown_reason == SHUTDOWN_crash
        destroy(execution.vcpu.domain)
        await until(lambda: len(hosted.processes()) == 1 and descriptors() <= before)
        seen = count(other.vcpu.domain)
        await until(lambda: count(other.vcpu.domain) > seen)
        if entry == "have_no_descriptors":
            assert "descriptors of its memory did not arrive" in said
            assert "it has gone on" not in said
        if entry == "raise_something":
            assert "LookupError: what" in said


async def test_one_that_somebody_kills_was_killed() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("count_for_ever")
        await until(lambda: count(execution.vcpu.domain) > 0)
        assert execution.child is not None
        os.kill(execution.child.pid, signal.SIGKILL)
        await hosted.finish(execution)
        assert execution.failure == "its process has ended: killed by SIGKILL"


# ---- what no process does


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        (b"x", "a request of 1 bytes"),
        (bytes(REQUEST.size), "a request of kind 0"),
        (REQUEST.pack(9, *[0] * 12), "a request of kind 9"),
        (REQUEST.pack(1, *[0] * 12) + b"x" * 7, "bytes, expected"),
        (REQUEST.pack(2, *[0] * 12) + bytes(8 * MAX_PFNS + 8), f"at most {MAX_PFNS} PFNs"),
        (REQUEST.pack(2, *[0] * 12) + bytes(100_000), f"at most {MAX_PFNS} PFNs"),
    ],
)
async def test_garbage_ends_its_sender(garbage: bytes, why: str) -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("send_garbage", garbage)
        await hosted.finish(execution)
        assert execution.failure is not None
        assert why in execution.failure


@pytest.mark.parametrize(
    ("entry", "payload", "why"),
    [
        ("send_garbage", b"", "it has closed its channel"),
        ("close_descriptor", b"0", "it has closed its channel"),
        ("close_descriptor", b"4", "it has closed its bell"),
    ],
)
async def test_one_that_closes_its_ends_and_goes_on_is_killed(
    monkeypatch: pytest.MonkeyPatch, entry: str, payload: bytes, why: str
) -> None:
    monkeypatch.setattr(execution_module, "LEAVING_SECONDS", 0.05)
    async with Hosted.running() as hosted:
        execution = hosted.start(entry, payload)
        await hosted.finish(execution)
        assert execution.failure == why
        await until(lambda: hosted.processes() == [])


async def test_requests_out_of_reason_are_refused() -> None:
    async with Hosted.running() as hosted:
        other = hosted.start("count_hypercalls")
        execution = hosted.start("ask_for_anything", str(other.vcpu.domain.domid).encode())
        said = await hosted.finish(execution)
        assert said.startswith("[0, 0, -38, "), said
        assert execution.failure == "its process has ended: exit code 3"
        assert not hosted.machine.faults


async def test_descriptors_that_a_process_sends_are_not_kept() -> None:
    async with Hosted.running() as hosted:
        before = descriptors()
        execution = hosted.start("send_descriptors")
        await hosted.finish(execution)
        assert execution.failure == "its process has ended: exit code 3"
        destroy(execution.vcpu.domain)
        assert descriptors() <= before + 3  # the fork server's


@pytest.mark.parametrize("entry", ["ask_and_not_read", "ring_all", "count_hypercalls"])
async def test_one_that_gives_no_rest_leaves_others_theirs(entry: str) -> None:
    async with Hosted.running() as hosted:
        rude, other = hosted.start(entry), hosted.start("count_hypercalls")
        await until(lambda: count(other.vcpu.domain) > 20)
        destroy(rude.vcpu.domain)
        await hosted.finish(rude)
        seen = count(other.vcpu.domain)
        await until(lambda: count(other.vcpu.domain) > seen)
        assert rude.failure is None


async def test_a_fault_of_ours_costs_its_finder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(execution_module, "share_pages", broken)
    async with Hosted.running() as hosted:
        other = hosted.start("count_hypercalls")
        execution = hosted.start("ask_for_anything", str(other.vcpu.domain.domid).encode())
        await hosted.finish(execution)
        assert "RuntimeError: ours" in (execution.failure or "")
        seen = count(other.vcpu.domain)
        await until(lambda: count(other.vcpu.domain) > seen)


# ---- what it prints


async def test_output_is_limited_as_that_of_the_emergency_console() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("talk")
        said = await hosted.finish(execution)
        counters = execution.vcpu.domain.counters
        assert counters.console_bytes == len(said)
        assert counters.console_bytes + counters.console_bytes_dropped == 64 * 16384
        assert counters.console_bytes_dropped > 0


async def test_the_last_words_are_heard() -> None:
    async with Hosted.running() as hosted:
        executions = [hosted.start("power_off", b"y" * size) for size in (1, 5000, 9000)]
        for execution, size in zip(executions, (1, 5000, 9000)):
            assert len(await hosted.finish(execution)) == size + 1


# ---- pausing


async def test_a_paused_domain_stands_still() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("count_for_ever")
        domain = execution.vcpu.domain
        await until(lambda: count(domain) > 0)
        for _ in range(5):
            domain.pause()
            domain.unpause()
            domain.pause()
            await until(lambda: state(execution) == "T")
            seen = count(domain)
            execution.wake()
            await anyio.sleep(0.01)
            assert state(execution) == "T"
            assert count(domain) == seen
            domain.unpause()
            await until(lambda seen=seen: count(domain) > seen)  # type: ignore[misc]
        domain.pause()
        await until(lambda: state(execution) == "T")
        destroy(domain)
        await hosted.finish(execution)
        await until(lambda: hosted.processes() == [])


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_that_is_paused_while_it_starts(moment: int) -> None:
    async with Hosted.running() as hosted:
        domain = hosted.build()
        execution = hosted.start("count_for_ever", domain=domain)
        domain.unpause()
        for _ in range(moment):
            await checkpoint()
        domain.pause()
        for _ in range(3):
            await checkpoint()
        if domain.memory.journal is not None:  # it is on its way
            await until(lambda: execution.child is not None)
            await until(lambda: state(execution) == "T")
        domain.unpause()
        await until(lambda: count(domain) > 0)


async def test_one_that_is_not_unpaused_has_no_process() -> None:
    async with Hosted.running() as hosted:
        domain = hosted.build()
        execution = hosted.start("count_for_ever", domain=domain)
        await anyio.sleep(0.05)
        assert execution.child is None
        assert domain.isolated
        destroy(domain)
        await hosted.finish(execution)
        await until(lambda: hosted.processes() == [])


async def test_a_long_hypercall_stands_still_while_its_domain_is_paused() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("call_at_length")
        domain = execution.vcpu.domain
        for _ in range(5):
            before = domain.counters.continuations
            await until(lambda before=before: domain.counters.continuations > before)  # type: ignore[misc]
            domain.pause()
            for _ in range(3):
                await checkpoint()
            seen = domain.counters.multicall_entries
            await anyio.sleep(0.01)
            assert domain.counters.multicall_entries == seen
            domain.unpause()
        done = count(domain)
        await until(lambda: count(domain) > done)


# ---- blocking and suspending


async def test_block_and_poll_by_hand_return() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("block")
        assert await hosted.finish(execution) == "not blocked\n"
        assert execution.vcpu.domain.events.audit() == []


async def test_one_that_suspends_goes_on_when_it_is_resumed() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("suspend")
        domain = execution.vcpu.domain
        await until(lambda: domain.shutdown_reason == SHUTDOWN_suspend)
        await until(lambda: state(execution) == "T")
        assert count(domain) == 1
        domain.resume()
        await hosted.finish(execution)
        assert count(domain) == 100
        assert domain.shutdown_reason == SHUTDOWN_poweroff
        assert execution.failure is None


async def test_one_that_suspends_can_be_destroyed() -> None:
    async with Hosted.running() as hosted:
        execution = hosted.start("suspend")
        await until(lambda: execution.vcpu.domain.shutdown_reason == SHUTDOWN_suspend)
        destroy(execution.vcpu.domain)
        await hosted.finish(execution)
        await until(lambda: hosted.processes() == [])


# ---- ends at every moment


def end_by_kill(domain: Domain) -> None:
    destroy(domain)


def end_by_shutdown(domain: Domain) -> None:
    domain.shutdown(SHUTDOWN_poweroff)


@pytest.mark.parametrize("end", [end_by_kill, end_by_shutdown])
async def test_one_that_is_ended_while_it_starts_leaves_nothing(end: Callable[[Domain], None]) -> None:
    async with Hosted.running() as hosted:
        first = hosted.start("leave", b"0")
        await hosted.finish(first)  # the fork server is there
        destroy(first.vcpu.domain)
        before = descriptors()
        for moment in (*MOMENTS, 60, 100):
            domain = hosted.build()
            execution = hosted.start("call_at_length", domain=domain)
            domain.unpause()
            for _ in range(moment):
                await checkpoint()
            end(domain)
            await hosted.finish(execution)
            assert execution.failure is None
            destroy(domain)
            await until(lambda: hosted.processes() == [] and descriptors() <= before)
        assert len(hosted.host._bells) == 0
        assert not hosted.machine.faults


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_host_that_ends_takes_all_with_it(moment: int) -> None:
    before = descriptors()
    async with Hosted.running() as hosted:
        executions = [
            hosted.start(entry) for entry in ("call_at_length", "ask_and_not_read", "count_for_ever")
        ]
        for _ in range(moment):
            await checkpoint()
    for execution in executions:
        assert execution.finished.is_set()
    for domain in reversed(hosted.machine.domains.copy().values()):
        destroy(domain)
    assert descriptors() <= before + 2  # what the loop keeps


# ---- a host that has no more of something


@pytest.mark.parametrize("name", ["memfd_create", "pipe2", "socketpair"])
async def test_without_descriptors_a_domain_crashes_and_nothing_leaks(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with Hosted.running() as hosted:
        await hosted.finish(hosted.start("leave", b"0"))
        module: Any = socket if name == "socketpair" else os
        make = getattr(module, name)
        for working in range(4):
            left = working

            def limited(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(24, "too many open files")
                return make(*args, **options)

            domain = hosted.build()
            before = descriptors()
            monkeypatch.setattr(module, name, limited)
            execution = hosted.start("leave", b"5", domain=domain)
            domain.unpause()
            await hosted.finish(execution)
            monkeypatch.setattr(module, name, make)
            assert execution.failure is not None
            is_enough = left >= 0
            assert execution.failure.startswith(
                "its process has ended" if is_enough else "its process cannot be started"
            )
            await until(lambda before=before: descriptors() <= before)  # type: ignore[misc]
            destroy(domain)
        assert await hosted.finish(hosted.start("power_off", b"hello")) == "hello\n"


async def test_descriptors_that_are_too_many_under_way_are_sent_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one user all processes together may have so many only; the others' are not this domain's fault."""
    refused = 0
    send = send_packet

    def crowded(*args: Any) -> None:
        nonlocal refused
        if args[2] and refused < 3:
            refused += 1
            raise OSError(errno.ETOOMANYREFS, "too many references")
        send(*args)

    monkeypatch.setattr(execution_module, "send_packet", crowded)
    async with Hosted.running() as hosted:
        assert await hosted.finish(hosted.start("power_off", b"hello")) == "hello\n"
    assert refused == 3


async def test_a_process_that_does_not_read_has_few_packets_under_way() -> None:
    """And the hypervisor makes no more before they are read."""
    async with Hosted.running() as hosted:
        keeper = hosted.build(1024)
        domain = hosted.build()
        execution = hosted.start("ask_and_not_read", domain=domain)
        await until(lambda: domain.isolated)
        for index in range(1024):
            mfn = keeper.memory.mfn(index)
            assert mfn is not None
            domain.memory.map_foreign(0x1000 + index, mfn, writable=True)
        domain.unpause()
        journal: Any = None
        while journal is None or not journal.due:
            await anyio.sleep(0.001)
            journal = domain.memory.journal
        await anyio.sleep(0.05)
        assert len(journal.due) >= 1024 - 3 * MAX_DESCRIPTORS
        destroy(domain)
        await hosted.finish(execution)
