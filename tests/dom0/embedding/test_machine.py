"""Machines that are embedded: guests that are started, that end in every way, and machines that stop under them."""

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel, ValidationError

from backends.registry import BackendError
from dom0.embedding import DiskSpec, MachineStopped, NeverPrinted, RunningMachine, running_machine
from dom0.programs import ProgramError
from dom0.toolstack.errors import BuildError, NoSuchGuest
from frontends.block.disk import Disk
from frontends.console.attach import attached_console
from guests.hello import Args as HelloArgs
from hypervisor.errors import XenError
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed
from tests.dom0 import programs

pytestmark = pytest.mark.anyio


class Count(BaseModel):
    upto: int = 3


async def count(kernel: Kernel, args: Count) -> int:
    return sum(range(args.upto + 1))


async def leaky(kernel: Kernel) -> int:
    """Grants a page to dom0 and forgets it."""
    kernel.grants.grant(0, kernel.pages.allocate().pfn)
    return 0


def stop(machine: RunningMachine, error: Exception) -> None:
    """Lets a service of dom0's break."""

    async def fail() -> None:
        raise error

    machine.services.kernel.tasks.start_soon(fail)


async def test_a_ready_made_guest_by_name(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("hello", {"greeting": "Hi"}, name="greeter", isolation=isolation)
        end = await guest.wait()
        assert (end.outcome, end.exit_code, end.crash, end.leaks) == ("poweroff", 0, "", ())
        assert guest.console == "Hi from greeter, domain 1\n"
        assert (tmp_path / "greeter.log").read_text() == guest.console


async def test_a_function_with_arguments_of_its_own(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        for args, expected in (({"upto": 4}, 10), (Count(upto=2), 3), ({}, 6)):
            assert (
                await (await machine.start(count, args, isolation=isolation)).wait()
            ).exit_code == expected
        with pytest.raises(ValidationError):
            await machine.start(count, {"upto": "many"}, isolation=isolation)
        with pytest.raises(ValidationError):
            await machine.start(count, HelloArgs(), isolation=isolation)


async def test_what_cannot_be_started_leaves_the_machine_as_it_was(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        with pytest.raises(ProgramError):
            await machine.start("helo", isolation=isolation)
        with pytest.raises(ProgramError):
            await machine.start(print, isolation=isolation)  # type: ignore[arg-type]
        with pytest.raises(BackendError):
            await machine.start("hello", disks=[DiskSpec(vdev="xvda", backend="none")], isolation=isolation)
        with pytest.raises(ValidationError):
            await machine.start("hello", disks=[DiskSpec(vdev="xvda", backend="memory")], isolation=isolation)
        with pytest.raises(ValidationError):
            await machine.start("hello", memory="1KiB", isolation=isolation)
        with pytest.raises(BuildError):
            await machine.start("hello", memory="2GiB", isolation=isolation)
        assert not machine.guests
        assert list(machine.core.domains) == [0]
        guest = await machine.start("hello", isolation=isolation)
        assert (await guest.wait()).exit_code == 0


async def test_relative_images_lie_in_the_machine_s_folder(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path / "new" / "folder") as machine:
        disk = DiskSpec(vdev="xvda", config={"path": "disk.img", "size": "1MiB"})
        guest = await machine.start("block-exerciser", {"requests": 10}, disks=[disk], isolation=isolation)
        assert (await guest.wait()).exit_code == 0
        assert "verify OK" in guest.console
    assert (tmp_path / "new" / "folder" / "disk.img").stat().st_size == 1 << 20


async def test_a_crash_is_told_with_its_traceback_and_harms_nobody(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        neighbour = await machine.start(programs.sleep, isolation=isolation)
        guest = await machine.start(programs.crash, isolation=isolation)
        end = await guest.wait()
        assert (end.outcome, end.exit_code) == ("crash", None)
        assert "RuntimeError: on purpose" in end.crash
        assert "tests/dom0/programs.py" in end.crash
        assert (await (await machine.start(programs.five, isolation=isolation)).wait()).exit_code == 5
        assert neighbour.end is None
        assert (await neighbour.shut_down()).outcome == "poweroff"


async def test_leaks_are_named(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(leaky, isolation=isolation)
        end = await guest.wait()
        (leak,) = end.leaks
        assert "for domain 0 by program, never ended" in leak


async def test_the_end_is_the_same_for_all_who_wait(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.sleep, isolation=isolation)
        ends = []

        async def wait() -> None:
            ends.append(await guest.wait())

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await guest.destroy()
        assert len(set(map(id, ends))) == 1
        assert ends[0] is guest.end
        assert await guest.shut_down() is guest.end
        assert await guest.destroy() is guest.end


async def test_a_guest_that_hears_nothing_is_destroyed_when_patience_ends(
    tmp_path: Path, isolation: str
) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.deaf, isolation=isolation)
        assert (await guest.shut_down(patience_s=0.05)).outcome == "destroyed"


async def test_an_idle_guest_ends_by_itself_when_it_is_asked(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("idle", isolation=isolation)
        await guest.printed("idle")
        end = await guest.shut_down()
        assert (end.outcome, end.exit_code) == ("poweroff", 0)
        assert guest.console == "idle\nasked to poweroff\n"


async def say(kernel: Kernel) -> int:
    """Prints numbered lines, the first thousands of them at once."""
    async with attached_console(kernel) as console:
        for number in range(5000):
            console.write(f"line {number}\n")
        await console.drain()
        console.write("the last word\n")
    return 0


async def test_a_pattern_is_waited_for_on_the_console(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(say, isolation=isolation)
        found = await guest.printed(r"^line (49\d\d)$")
        assert found[1] == "4900"
        await guest.printed("the last word")
        await guest.wait()
        assert (await guest.printed("last w"))[0] == "last w"
        with pytest.raises(NeverPrinted) as caught:
            await guest.printed("the very last word")
        assert caught.value.name == guest.name
        assert caught.value.printed.endswith("the last word\n")


async def test_a_guest_that_ends_without_the_pattern(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("hello", isolation=isolation)
        with anyio.fail_after(20), pytest.raises(NeverPrinted):
            await guest.printed("bye")
        crashed = await machine.start(programs.crash, isolation=isolation)
        with anyio.fail_after(20), pytest.raises(NeverPrinted):
            await crashed.printed("bye")


async def test_guests_are_cleared_away_though_nobody_waits(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guests = [await machine.start(programs.five, isolation=isolation) for _ in range(3)]
        with anyio.fail_after(20):
            async with machine.store.watch("/local/domain") as watch:
                async for _ in watch:
                    if await machine.store.directory("/local/domain") == ["0"]:
                        break
        assert [(await guest.wait()).exit_code for guest in guests] == [5, 5, 5]
        assert not machine.guests


async def test_guests_that_still_run_at_the_end_are_destroyed_the_youngest_first(
    tmp_path: Path, isolation: str
) -> None:
    said: list[str] = []
    async with running_machine(tmp_path, log=said.append) as machine:
        guests = [
            await machine.start(programs.deaf, name=name, isolation=isolation) for name in ("old", "young")
        ]
    assert [guest.end.outcome for guest in guests if guest.end] == ["destroyed", "destroyed"]
    assert [line for line in said if "has ended" in line] == [
        "young has ended: destroyed, exit code None",
        "old has ended: destroyed, exit code None",
    ]
    assert list(machine.core.domains) == [0]


async def test_nothing_can_be_started_on_a_machine_that_has_ended(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.five, isolation=isolation)
        await guest.wait()
    with pytest.raises(MachineStopped):
        await machine.start(programs.five, isolation=isolation)


async def test_a_start_that_is_cancelled_leaves_no_guest(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        for delay in range(5):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(machine.start, programs.sleep, isolation=isolation))
                    for _ in range(delay):
                        await checkpoint()
                    scope.cancel()
            while guest := next(iter(machine.guests), None):
                with pytest.raises(MachineStopped):
                    await guest.wait()
        assert machine.services.toolstack.domids == []


@pytest.mark.parametrize("turns", range(0, 40, 4))
async def test_a_machine_may_end_while_a_guest_is_being_built(
    turns: int, tmp_path: Path, isolation: str
) -> None:
    async def start(machine: RunningMachine) -> None:
        with suppress(MachineStopped):
            await machine.start(programs.deaf, isolation=isolation)

    async with anyio.create_task_group() as tasks, running_machine(tmp_path) as machine:
        tasks.start_soon(start, machine)
        for _ in range(turns):
            await checkpoint()
    assert list(machine.core.domains) == [0]
    assert not machine.guests


async def test_an_error_in_the_body_comes_out_as_it_is(tmp_path: Path, isolation: str) -> None:
    class Mine(Exception): ...

    async def body() -> None:
        async with running_machine(tmp_path) as machine:
            await machine.start(programs.sleep, isolation=isolation)
            raise Mine

    with pytest.raises(Mine):
        await body()


async def test_a_dom0_that_breaks_ends_the_machine_with_its_traceback(tmp_path: Path, isolation: str) -> None:
    async def body() -> None:
        async with running_machine(tmp_path) as machine:
            guest = await machine.start(programs.sleep, isolation=isolation)
            stop(machine, ZeroDivisionError("in a service"))
            with anyio.fail_after(20), pytest.raises(MachineStopped):
                await guest.wait()
            with pytest.raises(MachineStopped):
                await machine.start(programs.five, isolation=isolation)

    with pytest.raises(MachineStopped, match="dom0 ended with crash") as caught:
        await body()
    assert "ZeroDivisionError: in a service" in caught.value.why


async def test_a_dom0_that_breaks_while_a_guest_is_being_built(tmp_path: Path, isolation: str) -> None:
    async def body() -> None:
        async with running_machine(tmp_path) as machine:
            stop(machine, ZeroDivisionError())
            with anyio.fail_after(20):
                await machine.start(programs.five, isolation=isolation)

    with pytest.raises(MachineStopped):
        await body()


async def test_a_machine_smaller_than_its_dom0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XenError):
        async with running_machine(tmp_path, memory="8MiB", dom0_memory="64MiB"):
            raise AssertionError("there is no such machine")


async def test_what_is_said_goes_to_logging_by_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, isolation: str
) -> None:
    caplog.set_level(logging.INFO, "domzero")
    async with running_machine(tmp_path) as machine:
        await (await machine.start(programs.crash, name="bad", isolation=isolation)).wait()
    assert "bad starts as domain 1: crash, 16.0MiB" in caplog.text
    assert "(XEN) d1: RuntimeError: on purpose" in caplog.text
    assert "bad has ended: crash, exit code None" in caplog.text


async def no_disk(kernel: Kernel) -> int:
    """1 if its disk cannot be connected."""
    try:
        await Disk.open(kernel, programs.XVDA)
    except DeviceClosed:
        return 1
    return 0


async def test_a_disk_whose_image_is_missing_fails_to_connect(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(
            no_disk, disks=[DiskSpec(vdev="xvda", config={"path": "none.img"})], isolation=isolation
        )
        with anyio.fail_after(20):
            assert (await guest.wait()).exit_code == 1


async def test_disks_come_and_go(tmp_path: Path, isolation: str) -> None:
    disk = DiskSpec(vdev="xvdb", backend="memory", config={"size": "1MiB"})
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.sleep, isolation=isolation)
        await guest.attach(disk)
        assert await guest.detach("xvdb")
        await guest.destroy()
        with pytest.raises(NoSuchGuest):
            await guest.attach(disk)


async def test_its_store_is_served_on_a_socket_too(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    async with running_machine(tmp_path, sockets=[socket]):
        stream = await anyio.connect_unix(socket)
        await stream.aclose()
    assert not socket.exists()
