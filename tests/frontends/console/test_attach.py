"""The driver on a real kernel: in whose place it comes, what is left when it goes."""

from pathlib import Path

import anyio
import pytest

from frontends.console import attach
from frontends.console.attach import attached_console
from frontends.console.errors import NoConsole
from kernel.kernel import Kernel
from tests.backends.console.machines import console_machine
from tests.kernel.guests import running_machine

pytestmark = pytest.mark.anyio


async def test_it_is_the_kernels_console_inside_the_context(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        before = kernel.console
        async with attached_console(kernel) as driver:
            assert kernel.console is driver
            kernel.console.write("to the daemon")
        assert kernel.console is before
        kernel.console.write("to the hypervisor")
        assert console.output() == "to the daemon"
        assert "to the hypervisor" in machine.base.console[console.domid]


async def test_inside_a_context_it_is_the_same_console(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        async with attached_console(kernel) as outer:
            async with attached_console(kernel) as inner:
                assert inner is outer
            outer.write("still attached")
        assert console.output() == "still attached"


async def test_it_may_be_attached_again(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        console, kernel = await machine.boot()
        for word in ("once ", "twice"):
            async with attached_console(kernel) as driver:
                driver.write(word)
        assert console.output() == "once twice"


async def test_a_kernel_without_a_ring_has_no_console(tmp_path: Path) -> None:
    async with console_machine(tmp_path) as machine:
        with pytest.raises(NoConsole):
            async with attached_console(machine.dom0):
                pass


@pytest.mark.parametrize("how", ["return", "raise", "shutdown"])
async def test_however_a_program_ends_its_output_does_not_get_lost(tmp_path: Path, how: str) -> None:
    printed = b"".join(b"line %d\n" % number for number in range(2000))
    wrote = anyio.Event()

    async def program(kernel: Kernel) -> None:
        async with attached_console(kernel) as console:
            console.write(printed)
            wrote.set()
            if how == "raise":
                raise RuntimeError("a crash")
            if how == "shutdown":
                await anyio.sleep_forever()

    async with console_machine(tmp_path) as machine:
        console = await machine.launch(program)
        await wrote.wait()
        if how == "shutdown":
            await machine.toolstack.request_shutdown(console.domid)
        await machine.ended(console.domid)
        await machine.toolstack.destroy(console.domid)
        assert console.log.content() == printed


async def test_without_a_daemon_the_end_is_not_held_up_and_the_rest_goes_to_the_hypervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attach, "LAST_WORDS_SECONDS", 0.01)

    async def program(kernel: Kernel) -> None:
        async with attached_console(kernel) as driver:
            driver.write("r" * 2048 + "and more")

    async with running_machine() as machine:
        domid = await machine.create_guest(program)
        await machine.ended(domid)
        assert machine.console[domid] == "and more"
