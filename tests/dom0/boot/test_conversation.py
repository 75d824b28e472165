"""What guests print is shown, what comes in is typed, and who wants to leave is heard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from dom0.boot.conversation import DETACH, Conversation
from dom0.boot.streams import Sink, Source
from dom0.embedding import RunningGuest, running_machine
from dom0.programs import Main
from tests.dom0.boot.consoles import Ends, deaf, ends, parrot

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def conversation(
    folder: Path, program: Main, *, interactive: bool = False
) -> AsyncIterator[tuple[RunningGuest, Ends, Conversation]]:
    with ends() as pipes:
        async with running_machine(folder) as machine:
            guest = await machine.start(program)
            async with guest.terminal() as terminal:
                source, sink = Source(pipes.stdin), Sink(pipes.stdout)
                yield guest, pipes, Conversation(terminal, source, sink, interactive=interactive)


@pytest.mark.parametrize("interactive", [False, True])
async def test_words_go_to_and_fro_until_the_guest_ends(tmp_path: Path, interactive: bool) -> None:
    async with (
        conversation(tmp_path, parrot, interactive=interactive) as (guest, pipes, talk),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(talk.listen)
        tasks.start_soon(talk.talk)
        await pipes.see(b"ready\n")
        await pipes.type(b"one\n")
        await pipes.see(b"<one>\n")
        await pipes.type(b"two\nbye\n")
        await pipes.see(b"<two>\n")
        await guest.wait()
        tasks.cancel_scope.cancel()


async def test_the_end_of_a_pipe_is_no_end_of_the_guest(tmp_path: Path) -> None:
    async with conversation(tmp_path, parrot) as (guest, pipes, talk):
        await pipes.type(b"one\n")
        pipes.close("typing")
        assert await talk.talk() is False
        assert guest.runs
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk.listen)
            await pipes.see(b"<one>\n")
            tasks.cancel_scope.cancel()


async def test_a_pipe_is_read_as_the_guest_takes_what_is_typed(tmp_path: Path) -> None:
    lines = b"".join(b"%d\n" % number for number in range(10_000))
    async with conversation(tmp_path, parrot) as (guest, pipes, talk), anyio.create_task_group() as tasks:
        tasks.start_soon(talk.listen)
        tasks.start_soon(talk.talk)
        tasks.start_soon(pipes.type, lines + b"bye\n")
        shown = await pipes.see(b"<9999>\n")
        await guest.wait()
        tasks.cancel_scope.cancel()
    assert shown == b"ready\n" + b"".join(b"<%d>\n" % number for number in range(10_000))


async def test_a_byte_that_detaches_a_terminal_is_typed_from_a_pipe(tmp_path: Path) -> None:
    async with conversation(tmp_path, parrot) as (_, pipes, talk):
        await pipes.type(b"a" + DETACH + b"b\n")
        pipes.close("typing")
        assert await talk.talk() is False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk.listen)
            await pipes.see(b"<a" + DETACH + b"b>\n")
            tasks.cancel_scope.cancel()


async def test_whoever_wants_to_leave_is_heard_though_the_guest_listens_to_nothing(tmp_path: Path) -> None:
    async with conversation(tmp_path, deaf, interactive=True) as (_, pipes, talk):
        left: list[bool] = []

        async def leave() -> None:
            left.append(await talk.talk())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            await pipes.type(b"x" * 20_000)
            await pipes.type(DETACH)
    assert left == [True]


async def test_a_terminal_that_is_gone_does_not_end_the_guest(tmp_path: Path) -> None:
    async with conversation(tmp_path, deaf, interactive=True) as (guest, pipes, talk):
        pipes.close("typing")
        assert await talk.talk() is False
        assert guest.runs


async def test_whoever_shows_to_nobody_is_told(tmp_path: Path) -> None:
    async with conversation(tmp_path, deaf) as (_, pipes, talk):
        pipes.close("shown")
        with pytest.raises(BrokenPipeError):
            await talk.listen()
