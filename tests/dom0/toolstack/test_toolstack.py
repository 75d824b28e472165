"""Lives of domains and disks: what is in the store while they last, and that nothing is left of them after it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import ByteSize

from backends.block.memory import MemoryStoreConfig
from dom0.embedding import DiskSpec, RunningGuest, RunningMachine, running_machine
from dom0.toolstack import devices as devices_module
from dom0.toolstack.devices import DeviceRecord
from dom0.toolstack.errors import BuildError, DeviceExists, NoSuchDisk, NoSuchGuest
from dom0.toolstack.layout import DevicePaths, Node
from dom0.toolstack.toolstack import COMMAND_LINE_BYTES, DiskConfig, DomainConfig, Toolstack
from frontends.block.disk import Disk
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed
from kernel.xenstore.errors import StoreError
from tests.dom0 import programs
from tests.dom0.stores import Tree, dumped, recorded

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def memory_disk(vdev: str = "xvda", *, mode: str = "w") -> DiskConfig:
    return DiskConfig(vdev, "memory", MemoryStoreConfig(size=ByteSize(MIB)), mode)


def spec(vdev: str) -> DiskSpec:
    return DiskSpec(vdev=vdev, backend="memory", config={"size": MIB})


def domain(*disks: DiskConfig, name: str = "g") -> DomainConfig:
    return DomainConfig(name, 4 * MIB, "test", disks=disks)


async def until(machine: RunningMachine, path: str, value: str | None) -> None:
    """Returns when a node has a value; None: when it is not there."""
    with anyio.fail_after(20):
        async with machine.store.watch(path) as watch:
            async for _ in watch:
                if (await machine.store.read_many([path]))[0] == value:
                    return


async def assert_nothing_left(machine: RunningMachine, before: Tree) -> None:
    """The store is what it was, but for two folders that stay as on Xen; and when all daemons have let go, the
    hypervisor knows dom0 alone.
    """
    assert await dumped(machine.store) == before | dict.fromkeys(("/libxl", "/vm"), ("", "n0"))
    with anyio.fail_after(20):
        async with machine.store.watch("@releaseDomain") as watch:
            async for _ in watch:
                if list(machine.core.domains) == [0]:
                    break
    assert machine.core.audit() == []
    assert not machine.core.faults


# Whole lives


async def test_a_store_is_as_before_when_a_domain_with_disks_has_lived_and_died(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        guest = await machine.start(programs.with_disks, disks=[spec("xvda"), spec("xvdb")])
        await until(machine, f"/local/domain/{guest.domid}/data/connected", "1")
        assert (await guest.shut_down()).outcome == "poweroff"
        await assert_nothing_left(machine, before)


async def test_what_is_left_is_what_xl_leaves(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.five, disks=[spec("xvda")])
        await guest.wait()
        ours = await dumped(machine.store)
        theirs = recorded("xenstore-after-destroy.txt")
        assert {path: theirs[path] for path in ours} == ours
        assert theirs.keys() - ours.keys() == {
            "/local/domain/0/device-model",  # no device model runs
            "/local/domain/0/memory",  # dom0's balloon, none here
            "/local/domain/0/memory/target",
            "/local/domain/0/memory/static-max",
        }


async def test_connected_disks_have_the_nodes_of_a_real_xen(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.with_disks, disks=[spec("xvda"), spec("xvdb")])
        assert guest.domid == 1
        await until(machine, "/local/domain/1/data/connected", "1")
        ours, theirs = await dumped(machine.store), recorded("xenstore-domU-2disks.txt")
        for devid in (programs.XVDA, programs.XVDB):
            for folder in (f"/local/domain/1/device/vbd/{devid}", f"/local/domain/0/backend/vbd/1/{devid}"):
                here = {path: node for path, node in ours.items() if path.startswith(folder)}
                there = {path: node for path, node in theirs.items() if path.startswith(folder)}
                names = {path.removeprefix(folder) for path in here.keys() ^ there.keys()}
                # What a hotplug script and Linux's multi-page default add, and what a store in memory lacks.
                assert names <= KNOWN_DIFFERENCES, names
                assert {path: here[path][1] for path in here.keys() & there.keys()} == {
                    path: there[path][1] for path in here.keys() & there.keys()
                }
                assert here[f"{folder}/state"] == there[f"{folder}/state"]


KNOWN_DIFFERENCES = {
    "/script",
    "/physical-device",
    "/physical-device-path",
    "/multi-queue-max-queues",
    "/queue-size",
    "/ring-ref",
    "/ring-ref0",
    "/ring-ref1",
    "/ring-ref2",
    "/ring-ref3",
    "/ring-page-order",
    "/discard-secure",
}


@pytest.mark.parametrize(
    ("program", "outcome", "exit_code"),
    [(programs.five, "poweroff", 5), (programs.crash, "crash", None), (programs.sleep, "destroyed", None)],
)
async def test_every_way_to_end_leaves_nothing(
    program: Callable[[Kernel], Awaitable[int]], outcome: str, exit_code: int | None, tmp_path: Path
) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        guest = await machine.start(program, disks=[spec("xvda")])
        if outcome == "destroyed":
            await guest.destroy()
        end = await guest.wait()
        assert (end.outcome, end.exit_code) == (outcome, exit_code)
        await assert_nothing_left(machine, before)


async def test_errors_of_a_backend_go_with_its_device(tmp_path: Path) -> None:
    """The image is missing: the backend has said so in dom0's error folder."""
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        disk = DiskSpec(vdev="xvda", config={"path": "none.img"})
        guest = await machine.start(programs.sleep, disks=[disk])
        error = f"/local/domain/0/error/backend/vbd/{guest.domid}/{programs.XVDA}/error"
        with anyio.fail_after(20):
            async with machine.store.watch(error) as watch:
                async for _ in watch:
                    if await machine.store.exists(error):
                        break
        assert "none.img" in await machine.store.read(error)
        await guest.destroy()
        await assert_nothing_left(machine, before)


async def test_a_reboot_is_told_from_a_poweroff(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.sleep)
        await machine.services.toolstack.request_shutdown(guest.domid, "reboot")
        assert (await guest.wait()).outcome == "reboot"


async def test_many_domains_live_at_once_and_leave_nothing(tmp_path: Path) -> None:
    count = 24
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        guests = [
            await machine.start(programs.with_disks, memory="4MiB", disks=[spec("xvda")])
            for _ in range(count)
        ]
        for guest in guests:
            await until(machine, f"/local/domain/{guest.domid}/data/connected", "1")
        assert [guest.domid for guest in guests] == list(range(1, count + 1))
        async with anyio.create_task_group() as tasks:
            for guest in guests:
                tasks.start_soon(guest.shut_down)
        assert {guest.end.outcome for guest in guests if guest.end} == {"poweroff"}
        await assert_nothing_left(machine, before)


# What the guest says at its end


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0", 0),
        ("-3", -3),
        ("", None),
        ("1\n", None),
        ("１２", None),
        ("9" * 30, None),
        ("x", None),
        ("--1", None),
    ],
)
async def test_an_exit_code_is_a_number_or_nothing(text: str, code: int | None, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        domid = await toolstack.create(domain())
        assert await toolstack.exit_code(domid) is None
        await machine.store.write(f"/local/domain/{domid}/data/exit-code", text)
        assert await toolstack.exit_code(domid) == code


async def test_driver_reports_are_what_the_guest_has_written(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        domid = await toolstack.create(domain())
        assert await toolstack.driver_reports(domid) == {}
        await machine.store.write(f"/local/domain/{domid}/data/report/vbd-1", "words")
        assert await toolstack.driver_reports(domid) == {"vbd-1": "words"}
        assert await toolstack.driver_reports(domid + 1) == {}


# Disks that come and go


async def until_disk(kernel: Kernel, devid: int) -> None:
    async with kernel.store.watch("device/vbd") as watch:
        async for _ in watch:
            if (await kernel.store.read_many([f"device/vbd/{devid}/state"]))[0] is not None:
                return


async def hotplugged(kernel: Kernel) -> int:
    """Waits for xvdb, works with it until it is taken away, and says why it ended."""
    await until_disk(kernel, programs.XVDB)
    disk = await Disk.open(kernel, programs.XVDB)
    await disk.write(0, b"hotplug!" * 64)
    await kernel.store.write("data/wrote", (await disk.read(0, 1))[:8])
    closed: DeviceClosed = await disk.device.wait_closed()
    await kernel.store.write("data/closed", type(closed).__name__)
    await anyio.sleep_forever()
    return 0


async def test_a_disk_is_given_to_a_running_guest_and_taken_away_again(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(hotplugged, disks=[spec("xvda")])
        home = f"/local/domain/{guest.domid}"
        before = await dumped(machine.store, "/local/domain/0"), await dumped(machine.store, "/libxl")
        await guest.attach(spec("xvdb"))
        await until(machine, f"{home}/data/wrote", "hotplug!")
        assert await guest.detach("xvdb")
        await until(machine, f"{home}/data/closed", "ClosedByPeer")
        assert (
            await dumped(machine.store, "/local/domain/0"),
            await dumped(machine.store, "/libxl"),
        ) == before
        assert not await machine.store.exists(f"{home}/device/vbd/{programs.XVDB}")


async def test_a_disk_that_nobody_uses_is_detached_at_once(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.sleep, disks=[spec("xvda"), spec("xvdb")])
        for _ in range(3):
            assert await guest.detach("xvdb")
            await guest.attach(spec("xvdb"))
        assert await guest.detach("xvdb")
        assert not await machine.store.exists(f"/local/domain/0/backend/vbd/{guest.domid}/{programs.XVDB}")
        assert await machine.store.exists(f"/local/domain/0/backend/vbd/{guest.domid}/{programs.XVDA}")


async def closing(kernel: Kernel) -> int:
    """Opens xvda and closes it again."""
    await (await Disk.open(kernel, programs.XVDA)).close()
    await kernel.store.write("data/closed", "1")
    await anyio.sleep_forever()
    return 0


async def test_a_disk_that_was_closed_by_its_guest_is_detached(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(closing, disks=[spec("xvda")])
        await until(machine, f"/local/domain/{guest.domid}/data/closed", "1")
        assert await guest.detach("xvda")
        assert not await machine.store.exists(f"/local/domain/{guest.domid}/device/vbd")
        assert not await machine.store.exists("/local/domain/0/backend/vbd")


async def test_a_driver_that_does_not_let_go_loses_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is paused, so that its frontend cannot close."""
    monkeypatch.setattr(devices_module, "REMOVAL_TIMEOUT_S", 0.05)
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.with_disks, disks=[spec("xvda")])
        await until(machine, f"/local/domain/{guest.domid}/data/connected", "1")
        machine.services.kernel.hypercalls.pausedomain(guest.domid)
        assert not await guest.detach("xvda")
        assert not await machine.store.exists(f"/local/domain/{guest.domid}/device/vbd")
        assert not await machine.store.exists("/local/domain/0/backend/vbd")
        machine.services.kernel.hypercalls.unpausedomain(guest.domid)
        assert (await guest.shut_down()).outcome == "poweroff"


async def test_one_number_is_one_disk(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        domid = await toolstack.create(domain(memory_disk("xvda")))
        before = await dumped(machine.store)
        for name in ("xvda", "d0"):
            with pytest.raises(DeviceExists) as caught:
                await toolstack.attach_disk(domid, memory_disk(name))
            assert (caught.value.domid, caught.value.kind, caught.value.devid) == (
                domid,
                "vbd",
                programs.XVDA,
            )
        assert await dumped(machine.store) == before


async def test_a_domain_with_the_same_disk_twice_is_not_made(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        with pytest.raises(DeviceExists):
            await machine.services.toolstack.create(domain(memory_disk("xvda"), memory_disk("d0")))
        await assert_nothing_left(machine, before)


async def test_what_is_not_there_cannot_be_changed(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        before = await dumped(machine.store)
        calls: list[Callable[[], Awaitable[None]]] = [
            lambda: toolstack.attach_disk(9, memory_disk()),
            lambda: toolstack.request_shutdown(9),
            lambda: toolstack.request_shutdown(0),
            lambda: toolstack.destroy(0),
        ]
        for call in calls:
            with pytest.raises(NoSuchGuest):
                await call()
        with pytest.raises(NoSuchGuest):
            toolstack.start(9)
        domid = await toolstack.create(domain())
        with pytest.raises(NoSuchDisk) as caught:
            await toolstack.detach_disk(domid, "xvda")
        assert (caught.value.domid, caught.value.vdev) == (domid, "xvda")
        await toolstack.destroy(domid)
        await toolstack.destroy(domid)
        await toolstack.destroy(77)
        with pytest.raises(NoSuchGuest):
            await toolstack.request_shutdown(domid)
        assert await toolstack.wait_end(domid) == "destroyed"
        await assert_nothing_left(machine, before)


# Failures on the way


async def test_a_machine_that_is_full_refuses_one_more(tmp_path: Path) -> None:
    async with running_machine(tmp_path, memory="64MiB", dom0_memory="16MiB") as machine:
        before = await dumped(machine.store)
        guest = await machine.start(programs.sleep, memory="32MiB")
        while_full = await dumped(machine.store)
        with pytest.raises(BuildError, match="domain second could not be built"):
            await machine.start(programs.sleep, name="second", memory="32MiB")
        assert await dumped(machine.store) == while_full
        await guest.destroy()
        await assert_nothing_left(machine, before)
        again = await machine.start(programs.five, memory="32MiB")
        assert (await again.wait()).exit_code == 5


async def test_a_description_that_the_store_refuses_leaves_nothing(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        config = MemoryStoreConfig(size=ByteSize(MIB))
        bad = DiskConfig("xvdb", "b" * 5000, config)
        with pytest.raises(StoreError):
            await machine.services.toolstack.create(domain(memory_disk("xvda"), bad))
        await assert_nothing_left(machine, before)


async def test_long_arguments_are_cut_in_the_store(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        domid = await toolstack.create(DomainConfig("g", 4 * MIB, "test", {"x": "y" * 9000}))
        vm = await machine.store.read(f"/local/domain/{domid}/vm")
        line = await machine.store.read(f"{vm}/image/cmdline")
        assert len(line) == COMMAND_LINE_BYTES
        assert line.endswith("yyy...")


class Interrupted:
    """A toolstack whose store cancels a scope at its n-th transaction, or after it."""

    def __init__(self, toolstack: Toolstack, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = toolstack._store
        self._monkeypatch = monkeypatch
        self.transactions = 0

    def arm(self, scope: anyio.CancelScope, at: int, *, after: bool) -> None:
        transact = type(self._store).transact
        self.transactions = 0

        async def counted(*args: object, **kwargs: object) -> object:
            self.transactions += 1
            now = self.transactions == at
            if now and not after:
                scope.cancel()
            result: object = await transact(self._store, *args, **kwargs)  # type: ignore[arg-type]
            if now:
                scope.cancel()
            return result

        self._monkeypatch.setattr(self._store, "transact", counted)


@pytest.mark.parametrize("after", [False, True])
async def test_a_creation_that_is_cancelled_anywhere_leaves_nothing(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        interrupted = Interrupted(toolstack, monkeypatch)
        before = await dumped(machine.store)
        for at in range(1, 60):
            domid = 0
            with anyio.CancelScope() as scope:
                interrupted.arm(scope, at, after=after)
                domid = await toolstack.create(domain(memory_disk("xvda"), memory_disk("xvdb")))
            monkeypatch.undo()
            if domid:
                break
        else:
            raise AssertionError("a creation has more transactions than were cancelled")
        assert (
            at >= 5
        )  # the skeleton, the description, two disks, the console, and what drivers write meanwhile
        await toolstack.destroy(domid)
        await assert_nothing_left(machine, before)


async def test_destroying_twice_at_once_is_destroying_once(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        guest = await machine.start(programs.with_disks, disks=[spec("xvda")])
        await until(machine, f"/local/domain/{guest.domid}/data/connected", "1")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(machine.services.toolstack.destroy, guest.domid)
                tasks.start_soon(guest.destroy)
        assert (await guest.wait()).outcome == "destroyed"
        await assert_nothing_left(machine, before)


async def test_a_disk_that_comes_between_the_removal_of_devices_and_that_of_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dom0.toolstack.devices.REMOVAL_TIMEOUT_S", 0.2)  # nobody serves it
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        guest = await machine.start(programs.sleep)
        turn = machine.services.toolstack._transact._turn
        async with anyio.create_task_group() as tasks, turn:  # turns come as they were asked for
            tasks.start_soon(machine.services.toolstack.destroy, guest.domid)
            await anyio.wait_all_tasks_blocked()
            path = DevicePaths.of("vbd", guest.domid, programs.XVDA)
            nodes = [Node(path.frontend), Node(f"{path.backend}/state", "1")]
            devices = machine.services.toolstack.devices
            tasks.start_soon(devices.add, DeviceRecord(guest.domid, "vbd", programs.XVDA), nodes)
            await anyio.wait_all_tasks_blocked()
        assert (await guest.wait()).outcome == "destroyed"
        await assert_nothing_left(machine, before)


async def test_a_domain_that_somebody_took_out_of_the_store_gets_nothing_there(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        toolstack = machine.services.toolstack
        domid = await toolstack.create(domain())
        await machine.store.rm(f"/local/domain/{domid}")
        with pytest.raises(NoSuchGuest):
            await toolstack.request_shutdown(domid)
        with pytest.raises(NoSuchGuest):
            await toolstack.attach_disk(domid, memory_disk())
        assert not await machine.store.exists(f"/local/domain/{domid}")
        await toolstack.destroy(domid)
        await assert_nothing_left(machine, before)


async def test_a_disk_may_come_or_go_while_its_domain_is_destroyed(tmp_path: Path) -> None:
    async def attach(guest: RunningGuest) -> None:
        try:
            await guest.attach(spec("xvdc"))
        except NoSuchGuest:
            return

    async def detach(guest: RunningGuest) -> None:
        try:
            await guest.detach("xvda")
        except NoSuchDisk:
            return

    async with running_machine(tmp_path) as machine:
        before = await dumped(machine.store)
        for turns in range(6):
            guest = await machine.start(programs.with_disks, disks=[spec("xvda"), spec("xvdb")])
            await until(machine, f"/local/domain/{guest.domid}/data/connected", "1")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attach, guest)
                tasks.start_soon(detach, guest)
                for _ in range(turns):
                    await checkpoint()
                tasks.start_soon(guest.destroy)
            await assert_nothing_left(machine, before)
