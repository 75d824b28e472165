"""Consoles from a domain's creation to its end, on the real machine."""

import os
from pathlib import Path

import anyio
import pytest

from backends.console import daemon as daemon_module
from backends.console.daemon import ConsoleDaemon
from backends.console.errors import ConsoleClosed, NoConsole
from backends.console.terminal import Terminal
from frontends.console.attach import attached_console
from kernel.kernel import Kernel
from ringbuffers.protocols.console import ConsolePage
from tests.backends.console.machines import console_machine

pytestmark = pytest.mark.anyio


async def greet(kernel: Kernel) -> None:
    async with attached_console(kernel) as console:
        console.write("Hello\nfrom a guest\n")


async def silent(kernel: Kernel) -> None:
    pass


async def test_what_a_guest_prints_is_in_its_log_when_it_has_ended(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console = await machine.launch(greet, "web")
        await machine.ended(console.domid)
        assert (tmp_path / "web.log").read_text() == "Hello\nfrom a guest\n"
        assert machine.consoles.output(console.domid) == "Hello\nfrom a guest\n"
        assert machine.consoles.last_line(console.domid) == "from a guest"


async def test_a_console_is_found_by_the_watch_alone(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        domid = await machine.create()
        machine.start(domid, greet)
        await machine.ended(domid)
        assert machine.consoles.output(domid) == "Hello\nfrom a guest\n"


async def test_consoles_that_were_there_before_the_daemon_are_found(tmp_path: Path) -> None:
    async with console_machine(tmp_path / "one") as machine, anyio.create_task_group() as tasks:
        console, kernel = await machine.boot()
        machine.consoles_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert console.closed == "the daemon ends"
        async with attached_console(kernel) as driver:
            driver.write("while there is none, ")
            late = ConsoleDaemon(machine.dom0, tmp_path / "two", log=machine.said.append)
            tasks.start_soon(late.run)
            await driver.drain()
            driver.write("and afterwards")
            await driver.drain()
        assert late.output(console.domid) == "while there is none, and afterwards"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["destroyed", "died", "daemon ends"])
async def test_output_that_nobody_was_told_of_is_not_lost(tmp_path: Path, how: str) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        assert kernel.console_ring is not None
        page = ConsolePage(kernel.memory.page(kernel.console_ring.pfn))
        page.guest_side().outgoing.write(b"last words")
        async with console.attach() as terminal:
            if how == "destroyed":
                await machine.toolstack.destroy(console.domid)
            elif how == "died":
                machine.dom0.hypercalls.destroydomain(console.domid)
            else:
                machine.consoles_scope.cancel()
            assert [data async for data in terminal] == [b"last words"]
        assert machine.consoles.output(console.domid) == "last words"


async def test_a_destroyed_domain_gives_its_page_and_port_back(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        counters = machine.base.machine.domain(0).counters
        console = await machine.launch(greet)
        await machine.ended(console.domid)
        await machine.toolstack.destroy(console.domid)
        await anyio.wait_all_tasks_blocked()
        assert console.closed is not None
        assert counters.grant_maps == counters.grant_unmaps
        assert console.domid not in machine.base.machine.domains
        assert machine.consoles.console(console.domid) is console
        assert machine.said == []


async def test_a_domain_that_dies_with_its_nodes_still_there_is_noticed(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        for name in ("one", "two"):  # the second comes while the sweep after the first one rests
            console = await machine.launch(greet, name)
            await machine.ended(console.domid)
            async with console.attach() as terminal:
                machine.dom0.hypercalls.destroydomain(console.domid)
                assert [data async for data in terminal] == [b"Hello\nfrom a guest\n"]
            assert console.domid not in machine.base.machine.domains
            assert console.closed == "the domain has died"
            assert machine.consoles.output(console.domid) == "Hello\nfrom a guest\n"


async def test_a_shut_down_domain_keeps_its_console_until_it_is_destroyed(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console = await machine.launch(greet)
        await machine.ended(console.domid)
        assert console.closed is None


async def test_there_is_no_console_of_an_unknown_domain(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        assert machine.consoles.output(7) == ""
        assert machine.consoles.last_line(7) == ""
        with pytest.raises(NoConsole) as none:
            machine.consoles.console(7)
        assert none.value.domid == 7
        with pytest.raises(NoConsole):
            await machine.consoles.add(7)


async def test_a_console_that_somebody_else_serves_is_left_alone(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, _ = await machine.boot()
        path = f"/local/domain/{console.domid}"
        await machine.dom0.store.write(f"{path}/console/type", "ioemu")
        with pytest.raises(NoConsole):
            await machine.consoles.add(console.domid)
        assert console.closed == "removed by the toolstack"


@pytest.mark.parametrize("port", ["", "x", "0", "-1", "99999999999", "1.5"])
async def test_a_port_that_is_none_gives_no_console_and_ends_no_daemon(tmp_path: Path, port: str) -> None:
    async with console_machine(tmp_path) as machine:
        domid = await machine.create("bad")
        await machine.dom0.store.write(f"/local/domain/{domid}/console/port", port)
        with pytest.raises(NoConsole):
            await machine.consoles.add(domid)
        assert any(f"domain {domid}" in line for line in machine.said)
        good = await machine.launch(greet, "good")
        await machine.ended(good.domid)
        assert good.output() == "Hello\nfrom a guest\n"


async def test_two_domains_of_one_name_have_two_logs(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        consoles = [await machine.launch(greet, "twin") for _ in range(2)]
        for console in consoles:
            await machine.ended(console.domid)
        assert set(os.listdir(tmp_path)) == {"twin.log", f"twin-{consoles[1].domid}.log"}


async def test_a_domain_number_used_again_has_a_console_of_its_own(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        first = await machine.launch(greet)
        await machine.ended(first.domid)
        first.identity = b"somebody else's."  # as if that domain had died and this one had got its number
        second = await machine.consoles.add(first.domid)
        assert second is not first
        assert first.closed == "the domain has died"
        assert machine.consoles.console(first.domid) is second


async def test_who_types_is_heard(tmp_path: Path) -> None:
    async def echo(kernel: Kernel) -> None:
        async with attached_console(kernel) as console:
            console.write("ready\n")
            while (line := await console.read_line()) != b"end\n":
                console.write(b"you said " + line)

    async with console_machine(tmp_path) as machine:
        console = await machine.launch(echo)
        async with console.attach() as terminal:
            await terminal.send(b"one\rtwo\nend\r\n")
            await machine.ended(console.domid)
            await machine.toolstack.destroy(console.domid)
            assert b"".join([data async for data in terminal]) == b"ready\nyou said one\nyou said two\n"
            with pytest.raises(ConsoleClosed):
                await terminal.send(b"x")


async def test_what_several_terminals_type_is_not_mixed_and_waits_for_room(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine, anyio.create_task_group() as tasks:
        console, kernel = await machine.boot()

        async def type_in(letter: bytes) -> None:
            async with console.attach() as terminal:
                await terminal.send(letter * 3000)

        tasks.start_soon(type_in, b"a")
        tasks.start_soon(type_in, b"b")
        await anyio.wait_all_tasks_blocked()
        assert console.bytes_in == 1024
        async with attached_console(kernel) as driver:
            read = b""
            while len(read) < 6000:
                read += await driver.read()
        assert read in (b"a" * 3000 + b"b" * 3000, b"b" * 3000 + b"a" * 3000)


async def test_who_waits_for_room_is_told_when_the_console_closes(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine, anyio.create_task_group() as tasks:
        console, _ = await machine.boot()
        errors: list[ConsoleClosed] = []

        async def type_in() -> None:
            async with console.attach() as terminal:
                with pytest.raises(ConsoleClosed) as closed:
                    await terminal.send(b"a" * 2000)
                errors.append(closed.value)

        tasks.start_soon(type_in)
        await anyio.wait_all_tasks_blocked()
        await machine.toolstack.destroy(console.domid)
        await anyio.wait_all_tasks_blocked()
        assert [(error.domid, error.reason) for error in errors] == [(console.domid, console.closed)]


async def test_all_terminals_see_the_output_and_one_that_comes_late_sees_its_end(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        async with console.attach() as first, attached_console(kernel) as driver:
            driver.write("before ")
            await driver.drain()
            async with console.attach() as second:
                driver.write("after")
                await driver.drain()
                assert await first.receive() == await second.receive() == b"before after"
            driver.write("!")
            await driver.drain()
            assert await first.receive() == b"!"


async def test_a_terminal_that_is_left_behind_loses_the_oldest_and_holds_nobody_up(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        async with console.attach() as slow, attached_console(kernel) as driver:
            printed = b"".join(b"%07d\n" % number for number in range(40_000))
            driver.write(printed)
            await driver.drain()
            data = await slow.receive()
        assert slow.lost_bytes == len(printed) - len(data) > 0
        assert printed.endswith(data)
        assert console.log.content() == printed


async def test_a_terminal_on_an_ended_console_shows_the_end_and_ends(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console = await machine.launch(greet)
        await machine.ended(console.domid)
        await machine.toolstack.destroy(console.domid)
        console.close("for good")
        async with console.attach() as terminal:
            assert [data async for data in terminal] == [b"Hello\nfrom a guest\n"]


async def test_the_oldest_of_many_ended_consoles_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "ENDED_KEPT", 2)
    async with console_machine(tmp_path) as machine:
        consoles = []
        for number in range(3):
            console = await machine.launch(silent, f"guest{number}")
            await machine.ended(console.domid)
            await machine.toolstack.destroy(console.domid)
            await anyio.wait_all_tasks_blocked()
            consoles.append(console)
        with pytest.raises(NoConsole):
            machine.consoles.console(consoles[0].domid)
        assert machine.consoles.console(consoles[2].domid) is consoles[2]


async def test_an_error_of_ours_costs_one_console_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console_machine(tmp_path) as machine:
        struck, kernel = await machine.boot("struck")

        def fail(self: Terminal, data: bytes) -> None:
            raise RuntimeError("a bug")

        async with struck.attach(), attached_console(kernel) as driver:
            monkeypatch.setattr(Terminal, "feed", fail)
            driver.write("x")
            await anyio.wait_all_tasks_blocked()
            driver.detach()
        assert struck.closed == "an error of the daemon"
        assert "RuntimeError: a bug" in machine.said[0]
        good = await machine.launch(greet, "good")
        await machine.ended(good.domid)
        assert good.output() == "Hello\nfrom a guest\n"


async def test_a_log_that_cannot_be_written_is_said_once_and_stops_no_console(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        console.log.path.unlink()
        console.log.path.mkdir()
        async with attached_console(kernel) as driver:
            for _ in range(3):
                driver.write("word ")
                await driver.drain()
        assert console.tail == b"word word word "
        assert console.log.lost_bytes == 15
        assert len(machine.said) == 1
        assert str(console.log.path) in machine.said[0]
