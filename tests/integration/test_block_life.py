"""Disks come and go: what XenStore says of them, closing from either side, coming back, and dying."""

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.lowlevel import checkpoint
from pydantic import ByteSize

from backends.block.memory import MemoryStoreConfig
from dom0.toolstack.toolstack import DiskConfig
from frontends.block.disk import Disk, DiskOptions
from frontends.block.errors import RequestFailed
from kernel.kernel import Kernel
from kernel.xenbus.drivers import ClosedByPeer, ClosedByUs, DeviceClosed
from kernel.xenbus.states import XenbusState
from tests.backends.block.stores import GatedStore
from tests.rig import MIB, Guest, Rig, file_disk, memory_disk, running_rig
from tests.steps import State

XVDA = 51712
RECORDED = Path(__file__).parent.parent / "data" / "xenstore-domU-2disks.txt"

pytestmark = pytest.mark.anyio


def store_disk(name: str) -> DiskConfig:
    """A disk on one of the stores that tests control."""
    config = MemoryStoreConfig(size=ByteSize(MIB))
    return DiskConfig("xvda", f"tests.backends.block.stores:{name}", config)


def recorded(folder: str) -> dict[str, str]:
    """Nodes of a folder in the recording of a real Xen."""
    found = {}
    for line in RECORDED.read_text().splitlines():
        path, _, rest = line.partition(" = ")
        if path.startswith(folder + "/"):
            found[path.removeprefix(folder + "/")] = rest.split('"')[1]
    return found


async def folder(rig: Rig, path: str) -> dict[str, str]:
    """Nodes of a folder in the store."""
    store = rig.services.kernel.store
    names = await store.directory(path)
    values = await store.read_many([f"{path}/{name}" for name in names])
    return {name: value or "" for name, value in zip(names, values)}


def nothing_left(rig: Rig) -> None:
    """Only dom0 lives, and the core's books agree."""
    assert list(rig.machine.domains) == [0]
    assert rig.machine.audit() == []


async def open_disk(kernel: Kernel, state: State, *, devid: int = XVDA, **options: Any) -> None:
    """Leaves it in the guest's state."""
    state["disk"] = await Disk.open(kernel, devid, DiskOptions(**options))


async def test_the_store_says_what_a_real_xen_says(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(tmp_path / "a.img", size=64 * MIB)]) as guest,
    ):
        await guest.run(partial(open_disk, ring_page_order=0))
        back = await folder(rig, f"/local/domain/0/backend/vbd/{guest.domid}/{XVDA}")
        theirs = recorded(f"/local/domain/0/backend/vbd/1/{XVDA}")
        # Of the hotplug script, and of the block device that it sets up.
        not_ours = {"script", "physical-device", "physical-device-path"}
        assert theirs.keys() - back.keys() <= not_ours
        assert back.keys() <= theirs.keys()
        other = {"params", "type", "frontend", "frontend-id"}
        other.add("multi-queue-max-queues")  # Linux's is its number of CPUs: the recorded dom0 had one
        assert {key: back[key] for key in back.keys() - other} == {
            key: theirs[key] for key in back.keys() - other
        }
        front = await folder(rig, f"/local/domain/{guest.domid}/device/vbd/{XVDA}")
        theirs = recorded(f"/local/domain/1/device/vbd/{XVDA}")
        assert front.keys() == theirs.keys()
        same = ("state", "protocol", "feature-persistent", "backend-id", "virtual-device", "device-type")
        assert [front[key] for key in same] == [theirs[key] for key in same]


async def test_a_ring_of_several_pages_has_a_key_for_each(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(partial(open_disk, ring_page_order=2))
        front = await folder(rig, f"/local/domain/{guest.domid}/device/vbd/{XVDA}")
        assert front["ring-page-order"] == "2"
        assert "ring-ref" not in front
        assert len({front[f"ring-ref{page}"] for page in range(4)}) == 4


async def close_and_open(kernel: Kernel, _state: State) -> None:
    """A few times, with requests between."""
    disk = await Disk.open(kernel, XVDA)
    disk.buffers(10)
    for turn in range(3):
        await disk.write(turn, bytes([turn]) * 512)
        await disk.close()
        with pytest.raises(ClosedByUs):
            await disk.read(0, 1)
        await disk.reopen()
        assert await disk.read(turn, 1) == bytes([turn]) * 512
    assert disk.stats.reconnections == 3


async def test_closing_and_opening_again(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(tmp_path / "a.img", size=MIB)]) as guest,
    ):
        await guest.run(close_and_open)
    assert guest.leaks == []


async def back_comes_and_goes(rig: Rig, guest: Guest) -> None:
    """The backend closes the device and offers it again."""
    driver = rig.services.blocks.driver_of(guest.domid, XVDA)
    assert driver is not None
    device = driver.device
    device.close()
    await device.wait_closed()
    device.reopen()


async def work_until_it_has_come_back(kernel: Kernel, state: State) -> None:
    """Requests of many tasks, begun before the backend goes, and some that are begun without one."""
    disk = state["disk"]
    buffers = disk.buffers(300)
    for index, buffer in enumerate(buffers):
        buffer.view[:] = bytes([index & 0xFF]) * 4096

    async def work(sector: int) -> None:
        while not disk.stats.reconnections:
            await disk.write(2000 - sector, bytes([sector]) * 512)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for sector in range(64):
                tasks.start_soon(work, sector)
            while disk.device.own is XenbusState.Connected:
                await checkpoint()
            tasks.start_soon(disk.write_many, [(index * 8 % 1600, b) for index, b in enumerate(buffers)])
    assert disk.stats.reconnections == 1
    for sector in range(64):
        assert await disk.read(2000 - sector, 1) == bytes([sector]) * 512
    for index in range(100, 300):
        assert (await disk.read(index * 8 % 1600, 8)) == bytes([index & 0xFF]) * 4096


async def test_requests_wait_for_a_backend_that_comes_back(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(tmp_path / "a.img", size=MIB)]) as guest,
    ):
        await guest.run(open_disk)
        (served,) = rig.services.blocks.disks_of(guest.domid)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run, work_until_it_has_come_back)
            while sum(served.stats.requests.values()) < 64:
                await checkpoint()
            await back_comes_and_goes(rig, guest)


async def use_pages_of_the_ring(kernel: Kernel, state: State) -> None:
    """Gives them another use while the disk is away."""
    disk = state["disk"]
    while disk.device.own is not XenbusState.Closed:
        await checkpoint()
    await anyio.wait_all_tasks_blocked()
    assert not kernel.grants.leaks()[32:]  # which tries again to end what the backend had mapped
    reused = state["reused"] = kernel.pages.allocate(4)
    assert set(range(reused.pfn, reused.pfn + 4)) == state["ring"]
    reused.view[:] = b"\xab" * 16384

    for sector in range(10):
        kernel.tasks.start_soon(disk.write, sector, bytes(512))
    kernel.tasks.start_soon(disk.flush)
    await anyio.wait_all_tasks_blocked()
    assert reused.view == b"\xab" * 16384


async def ring_is_served(_kernel: Kernel, state: State) -> None:
    """What waited was answered, elsewhere."""
    disk = state["disk"]
    while not disk.stats.reconnections:
        await checkpoint()
    with anyio.fail_after(10):
        await disk.flush()
        await disk.settled()


async def note_pages_of_the_ring(kernel: Kernel, state: State) -> None:
    disk = state["disk"]
    state["ring"] = {entry.pfn for entry in kernel.grants.ledger if entry.owner == disk.device.path}
    assert len(state["ring"]) == 4
    await disk.read(0, 8)


async def test_nothing_is_written_to_a_ring_that_was_given_back(tmp_path: Path, isolation: str) -> None:
    """Its pages may be anybody's by then."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(open_disk)
        await guest.run(note_pages_of_the_ring)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        driver.device.close()
        await driver.device.wait_closed()
        await guest.run(use_pages_of_the_ring)
        driver.device.reopen()
        await guest.run(ring_is_served)


async def write_five(_kernel: Kernel, state: State) -> None:
    """Five writes at once; they are noted as they end."""
    state["done"] = []

    async def write(sector: int) -> None:
        await state["disk"].write(sector, bytes([sector]) * 512)
        state["done"].append(sector)

    async with anyio.create_task_group() as tasks:
        for sector in range(5):
            tasks.start_soon(write, sector)
    assert sorted(state["done"]) == [0, 1, 2, 3, 4]


async def nothing_is_done(_kernel: Kernel, state: State) -> None:
    assert state["done"] == []


async def test_what_was_in_flight_is_sent_again(tmp_path: Path, isolation: str) -> None:
    """A backend that goes while its store has not answered: nothing is lost, and nobody is told of success early."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([store_disk("GatedStore")]) as guest,
    ):
        await guest.run(open_disk)
        first = GatedStore.last
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.run, write_five)
                while len(first.begun) < 5:
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(back_comes_and_goes, rig, guest)
                await frontend_leaves(rig, guest)
                await guest.run(nothing_is_done)
                first.gate.set()
                while GatedStore.last is first:
                    await anyio.lowlevel.checkpoint()
                GatedStore.last.gate.set()


async def read_three_times(_kernel: Kernel, state: State) -> None:
    """At once; each ends with the reason."""
    errors: list[Exception] = []

    async def read() -> None:
        try:
            await state["disk"].read(0, 1)
        except DeviceClosed as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
    assert len(errors) == 3
    assert all(isinstance(error, ClosedByPeer) for error in errors)


async def frontend_leaves(rig: Rig, guest: Guest) -> None:
    """Return when its state is Connected no more."""
    state = f"/local/domain/{guest.domid}/device/vbd/{XVDA}/state"
    while await rig.services.kernel.store.read(state) == str(int(XenbusState.Connected)):
        await anyio.lowlevel.checkpoint()


async def test_without_reconnect_requests_end_with_the_reason(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([store_disk("GatedStore")]) as guest,
    ):
        await guest.run(partial(open_disk, reconnect=False))
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.run, read_three_times)
                while len(GatedStore.last.begun) < 3:
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(back_comes_and_goes, rig, guest)
                # The guest closes on its own; its backend lets what is in flight end first.
                await frontend_leaves(rig, guest)
                GatedStore.last.gate.set()


async def open_two(kernel: Kernel, state: State) -> None:
    """Two disks."""
    state["disk"], state["other"] = await Disk.open(kernel, XVDA), await Disk.open(kernel, XVDA + 16)
    await state["disk"].write(0, b"a" * 512)


async def has_lost_one(_kernel: Kernel, state: State) -> None:
    """And the other works."""
    disk, other = state["disk"], state["other"]
    while disk.device.own is not XenbusState.Unknown:
        await anyio.lowlevel.checkpoint()
    with pytest.raises(DeviceClosed):
        await disk.read(0, 1)
    await other.write(0, b"b" * 512)
    assert await other.read(0, 1) == b"b" * 512


async def test_the_toolstack_takes_a_disk_away(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig:
        async with rig.guest([memory_disk(MIB), memory_disk(MIB, "xvdb")]) as guest:
            await guest.run(open_two)
            with anyio.fail_after(10):
                assert await rig.services.toolstack.detach_disk(guest.domid, "xvda")
                await guest.run(has_lost_one)
        assert guest.leaks == []


async def write_to_xvdc(kernel: Kernel, _state: State) -> None:
    disk = await Disk.open(kernel, 51744)
    assert disk.name == "xvdc"
    await disk.write(0, b"c" * 512)


async def test_a_disk_is_added_while_the_guest_runs(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await rig.services.toolstack.attach_disk(guest.domid, memory_disk(MIB, "xvdc"))
        await guest.run(write_to_xvdc)


async def write_much(_kernel: Kernel, state: State) -> None:
    await state["disk"].write(0, bytes(4096 * 100))


async def begin_to_read(kernel: Kernel, state: State) -> None:
    """And do not wait for it."""
    kernel.tasks.start_soon(state["disk"].read, 0, 8)


@pytest.mark.parametrize("store", ["GatedStore", "memory"])
async def test_a_killed_guest_leaves_nothing_behind(tmp_path: Path, isolation: str, store: str) -> None:
    """Its grants are mapped and its requests in flight when it is destroyed."""
    config = memory_disk(MIB) if store == "memory" else store_disk(store)
    async with running_rig(tmp_path, isolation=isolation) as rig:
        with anyio.fail_after(5):
            async with rig.guest([config]) as guest:
                await guest.run(open_disk)
                if store == "memory":
                    await guest.run(write_much)
                else:
                    await guest.run(begin_to_read)
                    while not GatedStore.last.begun:
                        await anyio.lowlevel.checkpoint()
                    GatedStore.last.gate.set()
                guest.kill()
        nothing_left(rig)
        if store == "GatedStore":
            assert GatedStore.last.closed


async def come_and_go(kernel: Kernel, _state: State) -> None:
    """Fifty connections."""
    disk = await Disk.open(kernel, XVDA)
    for turn in range(50):
        if turn % 3:
            await disk.read(turn, 8)
        await disk.close()
        await disk.reopen()
    await disk.close()
    await disk.device.wait_released()


async def test_connections_come_and_go_quickly(tmp_path: Path, isolation: str) -> None:
    """Many times, with and without a request between: nothing is left mapped (XSA-350)."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(come_and_go)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        assert driver.queues == []
        assert rig.machine.audit() == []
    assert guest.leaks == []


async def cancel_one_call(_kernel: Kernel, state: State, call: str, sector: int, what: Any) -> None:
    """One that is with the backend, or on its way there."""
    disk = state["disk"]
    sent = disk.stats.requests.copy()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(getattr(disk, call), sector, what)
            while disk.stats.requests == sent:
                await checkpoint()
            scope.cancel()
    assert not disk.is_settled


async def cancel_before_it_begins(_kernel: Kernel, state: State) -> None:
    with anyio.move_on_after(0):
        await state["disk"].read(0, 8)


async def read_more_than_there_are_pages(_kernel: Kernel, state: State) -> None:
    """There are seven, less those of the cancelled calls."""
    disk = state["disk"]
    assert not disk.is_settled
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(disk.read, 0, 8)
        await disk.settled()
        assert await disk.read(0, 32) == bytes(32 * 512)


async def test_a_cancelled_call_gives_its_pages_back_when_it_is_answered(
    tmp_path: Path, isolation: str
) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([store_disk("GatedStore")]) as guest,
    ):
        await guest.run(partial(open_disk, staged_pages=7))
        await guest.run(cancel_before_it_begins)
        calls: list[tuple[str, int, Any]] = [("read", 0, 8), ("write", 0, bytes(4096)), ("read", 0, 16)]
        for call in calls:
            await guest.run(cancel_one_call, *call)
            while not GatedStore.last.begun:
                await anyio.lowlevel.checkpoint()
            GatedStore.last.begun.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run, read_more_than_there_are_pages)
            while not GatedStore.last.begun:
                await checkpoint()
            GatedStore.last.gate.set()


async def meet_errors(kernel: Kernel, _state: State) -> None:
    disk = await Disk.open(kernel, XVDA)
    buffers = disk.buffers(4)
    for _ in range(2):  # mapped for the request at first, persistently then
        for sector in (0, 8):
            with pytest.raises(RequestFailed) as failed:
                await disk.read(sector, 8)
            assert failed.value.sector == sector
        with pytest.raises(RequestFailed) as failed:
            await disk.read_many([(sector, buffer) for sector, buffer in zip((16, 8, 24, 0), buffers)])
        assert failed.value.sector == 8
    with pytest.raises(RequestFailed):
        await disk.flush()
    assert await disk.read(16, 8) == bytes(4096)
    assert disk.stats.errors == 9


async def test_a_store_that_fails_fails_its_requests_alone(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([store_disk("FailingStore")]) as guest,
    ):
        await guest.run(meet_errors)
        (served,) = rig.services.blocks.disks_of(guest.domid)
        assert served.stats.errors == {"store failed": 5, "store broken": 4}
