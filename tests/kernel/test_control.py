"""What the toolstack asks of a kernel through its control folder."""

import anyio
import anyio.lowlevel
import pytest

from hypervisor.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot
from kernel.control import ShutdownRequest
from kernel.kernel import Kernel
from tests.kernel.guests import RunningMachine, running_machine

pytestmark = pytest.mark.anyio


async def ask(world: RunningMachine, domid: int, command: str) -> None:
    await world.dom0.store.write(f"/local/domain/{domid}/control/shutdown", command)


@pytest.mark.parametrize(
    ("command", "reason"),
    [("poweroff", SHUTDOWN_poweroff), ("halt", SHUTDOWN_poweroff), ("reboot", SHUTDOWN_reboot)],
)
async def test_a_request_is_taken_and_the_domain_ends(anyio_backend: str, command: str, reason: int) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, _ = await world.boot_guest()
            await ask(world, domid, command)
            assert await world.ended(domid) == reason
            assert await world.dom0.store.read(f"/local/domain/{domid}/control/shutdown") == ""
            assert world.machine.domain(domid).shutdown_reason == reason


async def test_what_a_kernel_can_do_is_said_before(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            control = f"/local/domain/{domid}/control"
            async with world.dom0.store.watch(control) as watch:
                while await guest.store.read_many(["control/feature-poweroff", "control/feature-reboot"]) != [
                    "1",
                    "1",
                ]:
                    await watch.batch()
            assert not await world.dom0.store.exists(f"{control}/feature-suspend")


async def test_words_that_are_unknown_stay_where_they_are(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            await ask(world, domid, "explode" * 100)
            while "ignored" not in world.console.get(domid, ""):
                await anyio.lowlevel.checkpoint()
            assert not guest.shutdown_requested.is_set
            assert await guest.store.read("control/shutdown") == "explode" * 100
            assert len(world.console[domid]) < 200
            await ask(world, domid, "poweroff")
            assert await world.ended(domid) == SHUTDOWN_poweroff


async def test_a_program_may_end_by_itself(anyio_backend: str) -> None:
    async def orderly(kernel: Kernel) -> int:
        with kernel.shutdown_requested.deferred():
            command = await kernel.shutdown_requested.wait()
            await kernel.store.write("data/last", f"bye after {command}")
        return 5

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(orderly)
            await ask(world, domid, "reboot")
            assert await world.ended(domid) == SHUTDOWN_reboot
            data = f"/local/domain/{domid}/data"
            assert await world.dom0.store.read(f"{data}/last") == "bye after reboot"
            assert await world.dom0.store.read(f"{data}/exit-code") == "5"


async def test_a_kernel_without_a_control_folder_works_all_the_same(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            await world.dom0.store.rm(f"/local/domain/{domid}/control")
            await guest.store.write("data/x", "1")
            assert await guest.store.read("data/x") == "1"


async def test_deferring_holds_the_action_back_until_the_block_ends(anyio_backend: str) -> None:
    request = ShutdownRequest()
    acted: list[str] = []
    with request.calling(lambda: acted.append("now")):
        with request.deferred(), request.deferred():
            request.set("poweroff")
            assert acted == []
        assert acted == ["now"]
    with request.calling(lambda: acted.append("late")):
        assert acted == ["now", "late"]
    assert await request.wait() == "poweroff"
    assert request.reason == SHUTDOWN_poweroff
