"""Staying with a guest: it ends by itself, for want of time, because somebody leaves, or by a signal."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from dom0.boot.attendance import Attendance
from dom0.boot.conversation import DETACH, Conversation
from dom0.boot.streams import Sink, Source
from dom0.embedding import GuestEnd, RunningGuest, running_machine
from dom0.programs import Main
from frontends.console.attach import attached_console
from kernel.kernel import Kernel
from tests.dom0.boot.consoles import Ends, deaf, ends, parrot

pytestmark = pytest.mark.anyio


async def polite(kernel: Kernel) -> int:
    """Ends when the toolstack asks."""
    async with attached_console(kernel) as console:
        console.write("ready\n")
        await console.drain()
        with kernel.shutdown_requested.deferred():
            await kernel.shutdown_requested.wait()
    return 7


@asynccontextmanager
async def attended(
    folder: Path, program: Main, *, limit_s: float | None = None, interactive: bool = False
) -> AsyncIterator[tuple[RunningGuest, Ends, Attendance, list[GuestEnd]]]:
    """A guest that somebody stays with while inside; then its end is in the list."""
    with ends() as pipes:
        async with running_machine(folder) as machine:
            guest = await machine.start(program)
            attendance = Attendance(guest, limit_s)
            found: list[GuestEnd] = []
            async with guest.terminal() as terminal, anyio.create_task_group() as tasks:
                talk = Conversation(
                    terminal, Source(pipes.stdin), Sink(pipes.stdout), interactive=interactive
                )

                async def stay() -> None:
                    found.append(await attendance.see_out(talk))

                tasks.start_soon(stay)
                yield guest, pipes, attendance, found


async def test_a_guest_that_ends_by_itself_is_shown_to_its_last_word(tmp_path: Path) -> None:
    async with attended(tmp_path, parrot) as (_, pipes, attendance, found):
        await pipes.type(b"last\nbye\n")
        await pipes.see(b"<last>\n")
    assert [end.outcome for end in found] == ["poweroff"]
    assert not attendance.timed_out


async def test_a_guest_whose_time_is_up_is_destroyed(tmp_path: Path) -> None:
    async with attended(tmp_path, deaf, limit_s=0.05) as (_, _, attendance, found):
        pass
    assert [end.outcome for end in found] == ["destroyed"]
    assert attendance.timed_out


async def test_a_guest_that_ends_in_time_is_not_timed_out(tmp_path: Path) -> None:
    async with attended(tmp_path, parrot, limit_s=60) as (_, pipes, attendance, found):
        await pipes.type(b"bye\n")
    assert [end.outcome for end in found] == ["poweroff"]
    assert not attendance.timed_out


async def test_whoever_leaves_lets_the_guest_power_off(tmp_path: Path) -> None:
    async with attended(tmp_path, polite, interactive=True) as (_, pipes, _, found):
        await pipes.see(b"ready\n")
        await pipes.type(DETACH)
    assert [(end.outcome, end.exit_code) for end in found] == [("poweroff", 7)]


async def test_a_guest_that_nobody_looks_at_any_more_is_asked_to_power_off(tmp_path: Path) -> None:
    async with attended(tmp_path, polite) as (_, pipes, _, found):
        pipes.close("shown")
    assert [(end.outcome, end.exit_code) for end in found] == [("poweroff", 7)]


async def test_the_first_signal_asks_and_the_second_destroys(tmp_path: Path) -> None:
    async with attended(tmp_path, deaf) as (_, pipes, _, found):
        await pipes.see(b"ready\n")
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert not found
        os.kill(os.getpid(), signal.SIGINT)
    assert [end.outcome for end in found] == ["destroyed"]


async def test_output_that_nobody_takes_is_given_up_when_somebody_leaves(tmp_path: Path) -> None:
    async def chatterbox(kernel: Kernel) -> int:
        async with attached_console(kernel) as console:
            for _ in range(100):
                console.write(b"x" * 2000)
                await console.drain()
        return 0

    async with attended(tmp_path, chatterbox) as (guest, _, _, found):
        await guest.wait()
        assert not found  # the rest of what it printed waits for its reader
        os.kill(os.getpid(), signal.SIGTERM)
    assert [end.outcome for end in found] == ["poweroff"]
