"""Buses: devices appear, vanish, are made anew, are many; nothing depends on the number of events."""

import anyio
import anyio.lowlevel
import pytest

from kernel.xenbus import BackendBus, BackendDevice, FrontendBus, XenbusState
from kernel.xenstore.watches import MAX_PENDING_PATHS
from tests.kernel.xenbus.devices import DEVID, KIND, ToyBackend, ToyFrontend, attach, attached

pytestmark = pytest.mark.anyio

SECOND = DEVID + 16


async def test_a_frontend_bus_finds_what_is_there_and_what_comes(anyio_backend: str) -> None:
    async with attached(use=False) as device:
        bus = FrontendBus(device.guest, KIND, ToyFrontend)
        device.guest.tasks.start_soon(bus.run)
        first = await bus.find(DEVID)
        await attach(device.dom0, device.domid, SECOND)
        second = await bus.find(SECOND)
        await first.wait_connected()
        await second.wait_connected()
        assert set(device.bus.devices) == {(device.domid, DEVID), (device.domid, SECOND)}


async def test_a_frontend_bus_notices_removal_of_its_own_folder(anyio_backend: str) -> None:
    async with attached(use=False) as device:
        bus = FrontendBus(device.guest, KIND, ToyFrontend)
        device.guest.tasks.start_soon(bus.run)
        front = await bus.find(DEVID)
        await front.wait_connected()
        await device.dom0.store.rm(device.front_path)
        await front.wait_closed()
        while bus.devices:
            await anyio.lowlevel.checkpoint()
        assert isinstance(front.driver, ToyFrontend)
        assert front.driver.calls[-1] == "closing"


async def test_removing_a_whole_domains_folder_ends_all_its_devices(anyio_backend: str) -> None:
    async with attached() as device:
        await attach(device.dom0, device.domid, SECOND)
        backs = [device.back, await device.bus.find(device.domid, SECOND)]
        await device.dom0.store.rm(f"/local/domain/0/backend/{KIND}/{device.domid}")
        for back in backs:
            await back.wait_closed()
        while device.bus.devices:
            await anyio.lowlevel.checkpoint()


async def test_removing_the_root_ends_all_devices(anyio_backend: str) -> None:
    async with attached() as device:
        back = device.back
        await device.dom0.store.rm("/local/domain/0/backend")
        await back.wait_closed()
        while device.bus.devices:
            await anyio.lowlevel.checkpoint()


async def test_a_device_that_cannot_begin_is_not_tried_for_ever(anyio_backend: str) -> None:
    async with attached(serve=False, use=False) as device:
        made: list[BackendDevice] = []

        def make(back: BackendDevice) -> ToyBackend:
            made.append(back)
            raise RuntimeError("no driver")

        device.dom0.tasks.start_soon(BackendBus(device.dom0, KIND, make).run)
        path = f"error/backend/{KIND}/{device.domid}/{DEVID}/error"
        while not await device.dom0.store.exists(path):
            await anyio.lowlevel.checkpoint()
        for _ in range(20):
            await device.dom0.store.write(f"{device.back_path}/unrelated", "x")
        assert len(made) == 1


async def test_more_changes_than_a_watch_remembers(anyio_backend: str) -> None:
    """The bus does not run while they happen: it wakes up to one event, which says to look at everything."""
    async with attached(serve=False, use=False) as device:
        count = MAX_PENDING_PATHS // 5
        device.dom0.tasks.start_soon(device.bus.run)
        await device.bus.find(device.domid, DEVID)
        back = f"/local/domain/0/backend/{KIND}/{device.domid}"

        async def flood(transaction: object) -> None:
            for number in range(count):
                folder = f"{back}/{number}"
                keys = {
                    "frontend": f"/local/domain/{device.domid}/device/{KIND}/{number}",
                    "frontend-id": str(device.domid),
                    "online": "1",
                    "state": "1",
                }
                await transaction.write_many(  # type: ignore[attr-defined]
                    {f"{folder}/{name}": value for name, value in keys.items()}
                )

        await device.dom0.store.transact(flood)
        for number in range(count):
            await device.bus.find(device.domid, number)


async def test_names_that_are_no_numbers_are_passed_over(anyio_backend: str) -> None:
    async with attached() as device:
        for name in ("x", "-1", "1x"):
            await device.dom0.store.write(f"/local/domain/0/backend/{KIND}/{name}/1/state", "1")
            await device.dom0.store.write(f"/local/domain/0/backend/{KIND}/{device.domid}/{name}/state", "1")
        await attach(device.dom0, device.domid, SECOND)
        await device.bus.find(device.domid, SECOND)
        assert set(device.bus.devices) == {(device.domid, DEVID), (device.domid, SECOND)}
        await device.reach(XenbusState.Connected, XenbusState.Connected)
