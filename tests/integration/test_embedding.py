"""A whole machine inside somebody's own tests: with pytest-asyncio, its fixtures included, and on trio.

This is how an application's tests look that need dom0 services and guests. Nothing but `dom0.embedding` and the
drivers that the guest programs themselves use is imported. `isolation` says whether guests are processes.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trio

from dom0.embedding import DiskSpec, RunningMachine, running_machine
from frontends.block.disk import Disk
from frontends.console.attach import attached_console
from kernel.kernel import Kernel

DISK = DiskSpec(vdev="xvda", config={"path": "disk.img", "size": "1MiB"})


async def writer(kernel: Kernel) -> int:
    """A guest program of the application's: stores a greeting durably, and says so."""
    disk = await Disk.open(kernel, 51712)
    await disk.write(8, b"hello from the other side".ljust(512, b"\0"))
    await disk.flush()
    await disk.close()
    async with attached_console(kernel) as console:
        console.write("stored\n")
    return 0


async def echo(kernel: Kernel) -> int:
    """Says back what is typed, until a line that says bye."""
    async with attached_console(kernel) as console:
        console.write("ready\n")
        while (line := await console.read_line()) not in (b"bye\n", b""):
            console.write(b"you said " + line)
    return 0


# In a test


@pytest.mark.asyncio
async def test_a_guest_writes_to_an_image(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(writer, disks=[DISK], isolation=isolation)
        end = await guest.wait()
        assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ())
        assert guest.console == "stored\n"
    image = (tmp_path / "disk.img").read_bytes()
    assert image[8 * 512 :].startswith(b"hello from the other side")


@pytest.mark.asyncio
async def test_asyncio_s_own_tools_work_beside_it(tmp_path: Path, isolation: str) -> None:
    """Timeouts, tasks, gather and cancellation are the application's own, not anyio's."""
    async with running_machine(tmp_path) as machine:
        sleeper = await machine.start("idle", isolation=isolation)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sleeper.wait(), 0.01)
        guests = await asyncio.gather(
            *(machine.start("hello", {"greeting": word}, isolation=isolation) for word in ("a", "b", "c"))
        )
        ends = await asyncio.gather(*(guest.wait() for guest in guests))
        assert [end.exit_code for end in ends] == [0, 0, 0]
        waiting = asyncio.create_task(sleeper.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await sleeper.shut_down()).outcome == "poweroff"


@pytest.mark.asyncio
async def test_a_test_that_is_cancelled_takes_its_machine_down(tmp_path: Path, isolation: str) -> None:
    machines: list[RunningMachine] = []
    runs = asyncio.Event()

    async def test() -> None:
        async with running_machine(tmp_path) as machine:
            machines.append(machine)
            await machine.start("idle", isolation=isolation)
            runs.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(test())
    await runs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(machines[0].core.domains) == [0]


# In a fixture, which pytest-asyncio enters in one task and leaves in another


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[RunningMachine]:
    async with running_machine(tmp_path) as machine:
        yield machine


@pytest.mark.asyncio
async def test_a_machine_from_a_fixture(machine: RunningMachine, isolation: str) -> None:
    guest = await machine.start(writer, disks=[DISK], isolation=isolation)
    assert (await guest.wait()).exit_code == 0


@pytest.mark.asyncio
async def test_somebody_types_on_a_guest_s_console(machine: RunningMachine, isolation: str) -> None:
    guest = await machine.start(echo, isolation=isolation)
    await guest.printed("ready")
    async with guest.terminal() as terminal:
        await terminal.send(b"good day\r")
        await guest.printed("you said good day")
        await terminal.send(b"bye\r")
    assert (await guest.wait()).exit_code == 0


@pytest.mark.asyncio
async def test_guests_may_be_left_to_the_fixture(machine: RunningMachine, isolation: str) -> None:
    for _ in range(3):
        await machine.start("idle", isolation=isolation)
    assert len(machine.guests) == 3


@pytest.mark.asyncio
async def test_it_looks_into_its_store(machine: RunningMachine, isolation: str) -> None:
    guest = await machine.start("idle", name="mine", memory="8MiB", isolation=isolation)
    assert await machine.store.read(f"/local/domain/{guest.domid}/name") == "mine"
    assert await machine.store.read(f"/local/domain/{guest.domid}/memory/target") == str(8 << 10)


# On trio


def test_the_same_on_trio(tmp_path: Path, isolation: str) -> None:
    async def main() -> None:
        async with running_machine(tmp_path) as machine:
            guest = await machine.start(writer, disks=[DISK], isolation=isolation)
            with trio.fail_after(20):
                assert (await guest.wait()).exit_code == 0
            sleeper = await machine.start("idle", isolation=isolation)
            with trio.move_on_after(0.01) as scope:
                await sleeper.wait()
            assert scope.cancelled_caught

    trio.run(main)
    assert b"hello from the other side" in (tmp_path / "disk.img").read_bytes()


def test_a_nursery_that_is_cancelled_takes_its_machine_down(tmp_path: Path, isolation: str) -> None:
    machines: list[RunningMachine] = []

    async def test(runs: trio.Event) -> None:
        async with running_machine(tmp_path) as machine:
            machines.append(machine)
            await machine.start("idle", isolation=isolation)
            runs.set()
            await trio.sleep_forever()

    async def main() -> None:
        runs = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(test, runs)
            await runs.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert list(machines[0].core.domains) == [0]


@pytest.mark.parametrize("loop", [asyncio.run, trio.run])
def test_a_skipped_test_is_skipped(loop: object, tmp_path: Path) -> None:
    async def test() -> None:
        async with running_machine(tmp_path):
            pytest.skip("for a reason")

    with pytest.raises(pytest.skip.Exception, match="for a reason"):
        asyncio.run(test()) if loop is asyncio.run else trio.run(test)
