"""Guests that abuse their consoles: they lose theirs at most, and nobody else anything (XSA-57, 86, 180)."""

from pathlib import Path

import anyio
import pytest

from backends.console import daemon
from backends.console.errors import ConsoleClosed, NoConsole
from backends.console.guest_console import GuestConsole
from backends.console.keys import MIN_LIMIT_BYTES
from dom0.toolstack import toolstack
from frontends.console.attach import attached_console
from hypervisor.abi.xen import DOMID_SELF
from kernel.kernel import Kernel
from kernel.xenstore.errors import StoreError
from ringbuffers.protocols.console import IN_SIZE, OUT_SIZE
from tests.backends.console.machines import ConsoleMachine, console_machine
from tests.frontends.console.peers import WORDS

pytestmark = pytest.mark.anyio

LIES = [(0, OUT_SIZE + 1), (1, 0), (0, 2**31), (2**32 - 1, OUT_SIZE), (2**31, 0)]


def ring_words(kernel: Kernel) -> memoryview:
    """The console page as u32, under the guest's pen."""
    assert kernel.console_ring is not None
    return kernel.memory.page(kernel.console_ring.pfn).cast("I")


def notify(kernel: Kernel) -> None:
    assert kernel.console_ring is not None
    kernel.hypercalls.evtchn_send(kernel.console_ring.port)


async def is_served(machine: ConsoleMachine) -> None:
    """Another guest prints and is heard."""
    console, kernel = await machine.boot("witness")
    async with attached_console(kernel) as driver:
        driver.write("served")
        await driver.drain()
    assert console.output() == "served"


@pytest.mark.parametrize(("cons", "prod"), LIES)
async def test_impossible_output_indices_close_this_console(tmp_path: Path, cons: int, prod: int) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("liar")
        async with console.attach() as terminal:
            words = ring_words(kernel)
            words[WORDS["out_cons"]], words[WORDS["out_prod"]] = cons, prod
            notify(kernel)
            assert [data async for data in terminal] == []
        assert console.closed is not None
        assert machine.said == [f"console of domain {console.domid} closed: {console.closed}"]
        with pytest.raises(NoConsole):
            await machine.consoles.add(console.domid)
        await is_served(machine)


async def test_impossible_input_indices_close_this_console_when_somebody_types(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("liar")
        words = ring_words(kernel)
        words[WORDS["in_cons"]], words[WORDS["in_prod"]] = 5, 5 + IN_SIZE + 1
        async with console.attach() as terminal:
            with pytest.raises(ConsoleClosed) as closed:
                await terminal.send(b"x")
        assert closed.value.reason == console.closed
        assert len(machine.said) == 1
        await is_served(machine)


async def test_a_lie_that_is_found_when_the_output_is_asked_for_is_told(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("liar")
        async with attached_console(kernel) as driver:
            driver.write("truth")
            await driver.drain()
        ring_words(kernel)[WORDS["out_prod"]] += OUT_SIZE + 1
        assert console.output() == "truth"
        assert len(machine.said) == 1


async def test_indices_that_run_round_give_only_what_is_in_the_ring(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("rewinder")
        words = ring_words(kernel)
        words.cast("B")[IN_SIZE : IN_SIZE + OUT_SIZE] = b"o" * OUT_SIZE
        for turn in range(1, 101):
            words[WORDS["out_prod"]] = turn * OUT_SIZE
            notify(kernel)
            with anyio.fail_after(20):
                while console.bytes_out < turn * OUT_SIZE:
                    await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert console.bytes_out == 100 * OUT_SIZE
        assert console.tail == b"o" * len(console.tail)


async def test_a_guest_that_floods_waits_for_its_turn_and_fills_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolstack, "CONSOLE_LOG_LIMIT_BYTES", MIN_LIMIT_BYTES)

    async def flood(kernel: Kernel) -> None:
        async with attached_console(kernel) as console:
            while True:
                console.write(b"flood " * 300)
                await console.drain()

    async with console_machine(tmp_path) as machine:
        flooder = await machine.launch(flood, "flooder")
        witness, kernel = await machine.boot("witness")
        async with attached_console(kernel) as driver:
            for _ in range(50):
                before = flooder.bytes_out
                driver.write("heard ")
                await driver.drain()
                assert flooder.bytes_out - before < 100 * OUT_SIZE
        assert witness.output() == "heard " * 50
        while flooder.bytes_out < 100 * MIN_LIMIT_BYTES:
            await anyio.lowlevel.checkpoint()
        for path in (flooder.log.path, flooder.log.older_path):
            assert path.stat().st_size <= MIN_LIMIT_BYTES


async def test_a_storm_of_events_costs_one_turn_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("storm")
        await anyio.wait_all_tasks_blocked()
        turns: list[int] = []
        monkeypatch.setattr(GuestConsole, "turn", lambda guest: turns.append(guest.domid))
        for _ in range(1000):
            notify(kernel)
            machine.dom0.events.dispatch()
        await anyio.wait_all_tasks_blocked()
        assert turns == [console.domid]
        assert console.closed is None


async def test_between_the_turns_of_many_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_TURNS_AT_A_TIME", 1)
    async with console_machine(tmp_path) as machine:
        booted = [await machine.boot(f"guest{number}") for number in range(3)]
        await anyio.wait_all_tasks_blocked()
        happened: list[str] = []
        monkeypatch.setattr(GuestConsole, "turn", lambda guest: happened.append("turn"))

        async def another() -> None:
            while happened.count("turn") < len(booted):
                happened.append("another")
                await anyio.lowlevel.checkpoint()

        for _, kernel in booted:
            notify(kernel)
        machine.dom0.events.dispatch()
        await another()
        first = happened.index("turn")
        assert happened[first : first + 3] != ["turn"] * 3  # two at most: a loop may swap who goes first


@pytest.mark.parametrize("key", ["port", "ring-ref", "limit", "type", "output", "tty", "backend"])
async def test_no_node_that_counts_is_the_guests_to_write(tmp_path: Path, key: str) -> None:
    async with console_machine(tmp_path) as machine:
        _, kernel = await machine.boot()
        with pytest.raises(StoreError) as refused:
            await kernel.store.write(f"console/{key}", "../../../etc/passwd")
        assert refused.value.name == "EACCES"


async def test_the_node_that_is_the_guests_means_nothing(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        await kernel.store.write("console/backend-id", "7")
        assert await machine.consoles.add(console.domid) is console
        await is_served(machine)


async def test_a_guest_that_closes_its_port_harms_itself(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("mute")
        assert kernel.console_ring is not None
        kernel.hypercalls.evtchn_close(kernel.console_ring.port)
        async with console.attach() as terminal:
            await terminal.send(b"anybody?")
        ring_words(kernel)[WORDS["out_prod"]] = 3
        assert len(console.output()) == 3
        await machine.toolstack.destroy(console.domid)
        await anyio.wait_all_tasks_blocked()
        assert console.closed is not None
        await is_served(machine)


async def test_a_guest_that_takes_its_ring_page_away_keeps_it_while_it_is_mapped(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("thief")
        assert kernel.console_ring is not None
        kernel.hypercalls.remove_from_physmap(kernel.console_ring.pfn, DOMID_SELF)
        async with console.attach() as terminal:
            await terminal.send(b"x")
        assert console.output() == ""
        await machine.toolstack.destroy(console.domid)
        await anyio.wait_all_tasks_blocked()
        assert console.domid not in machine.base.machine.domains
        await is_served(machine)


async def test_what_a_guest_prints_does_nothing_to_who_watches_the_table(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot("painter")
        async with attached_console(kernel) as driver:
            driver.write(b"\x1b]0;owned\x07\x1b[2J\x1b[Hpwned\x1b[0m\x9b\r\n\x1b[?25l")
            await driver.drain()
        assert console.last_line == "pwned\ufffd"


async def test_many_guests_die_in_the_middle_of_a_word(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        booted = [await machine.boot(f"guest{number}") for number in range(5)]
        for console, kernel in booted:
            async with attached_console(kernel) as driver:
                driver.write(f"last words of {console.domid}")
                driver.detach()
            machine.dom0.hypercalls.destroydomain(console.domid)
        for console, _ in booted:
            assert console.output() == f"last words of {console.domid}"
        await is_served(machine)
