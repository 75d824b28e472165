"""Drivers that fail, folders that lead nowhere: one device ends, and says why."""

import anyio
import anyio.lowlevel
import pytest

from kernel.xenbus import (
    BackendBus,
    ClosedByPeer,
    ClosedByUs,
    DeviceFailed,
    DeviceRemoved,
    FrontendDevice,
    XenbusState,
)
from tests.kernel.xenbus.devices import DEVID, KIND, Failure, ToyBackend, ToyFrontend, attached

pytestmark = pytest.mark.anyio

S = XenbusState


@pytest.mark.parametrize("step", ["negotiate", "connected"])
async def test_a_frontend_driver_that_fails_closes_and_reports(anyio_backend: str, step: str) -> None:
    async with attached(use=False) as device:
        front = FrontendDevice(device.guest, KIND, DEVID, lambda d: ToyFrontend(d, fail_in={step}))
        device.guest.tasks.start_soon(front.run)
        closed = await front.wait_closed()
        assert isinstance(closed, DeviceFailed)
        assert isinstance(closed.cause, Failure)
        await device.reach(S.Closed, S.Closed)
        error = await device.guest.store.read(f"error/device/{KIND}/{DEVID}/error")
        assert error == f"22 {step}"
        assert isinstance(front.driver, ToyFrontend)
        assert front.driver.calls[-1] == "closing"
        with pytest.raises(DeviceFailed):
            await front.wait_connected()


@pytest.mark.parametrize("step", ["features", "connect"])
async def test_a_backend_driver_that_fails_harms_no_other_device(anyio_backend: str, step: str) -> None:
    async with attached(serve=False) as device:
        bus = BackendBus(
            device.dom0,
            KIND,
            lambda d: ToyBackend(d, fail_in={step} if d.devid == DEVID else set()),
        )
        device.dom0.tasks.start_soon(bus.run)
        assert isinstance(await device.front.wait_closed(), ClosedByPeer)
        await device.reach(S.Closed, S.Closed)
        path = f"error/backend/{KIND}/{device.domid}/{DEVID}/error"
        assert await device.dom0.store.read(path) == f"22 {step}"
        assert f"backend/{KIND}/{device.domid}/{DEVID}: {step}" in device.world.console[0]


async def test_a_driver_that_fails_while_it_closes_is_reported_only(anyio_backend: str) -> None:
    async with attached() as device:
        device.front_driver.fail_in = {"closing"}
        device.front.close()
        assert isinstance(await device.front.wait_closed(), ClosedByUs)
        await device.reach(S.Closed, S.Closed)
        assert await device.guest.store.read(f"error/device/{KIND}/{DEVID}/error") == "22 closing"


async def test_a_driver_that_finds_out_later_fails_its_device(anyio_backend: str) -> None:
    async with attached() as device:
        device.back.fail(Failure("the ring lies"))
        await device.reach(S.Closed, S.Closed)
        assert isinstance(device.back.closed, DeviceFailed)
        path = f"error/backend/{KIND}/{device.domid}/{DEVID}/error"
        assert await device.dom0.store.read(path) == "22 the ring lies"


async def test_a_device_without_a_folder_ends_at_once(anyio_backend: str) -> None:
    async with attached() as device:
        absent = FrontendDevice(device.guest, KIND, 1, ToyFrontend)
        await absent.run()
        assert isinstance(absent.closed, DeviceRemoved)
        with pytest.raises(DeviceRemoved):
            await absent.wait_connected()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backend", "relative"),
        ("backend-id", "x"),
        ("backend-id", "99999"),
        ("backend-id", ""),
        ("state", "no"),
    ],
)
async def test_a_folder_that_leads_nowhere_is_named(anyio_backend: str, key: str, value: str) -> None:
    async with attached(serve=False, use=False) as device:
        await device.dom0.store.write(f"{device.front_path}/{key}", value)
        await device.front.run()
        assert isinstance(device.front.closed, DeviceFailed)
        assert key in str(device.front.closed)
        assert device.front not in device.guest.devices


async def test_a_backend_folder_of_another_frontend_is_refused(anyio_backend: str) -> None:
    """XSA-175: the numbers in the path and in the folder must agree."""
    async with attached(serve=False, use=False) as device:
        await device.dom0.store.write(f"{device.back_path}/frontend-id", "0")
        device.dom0.tasks.start_soon(device.bus.run)
        path = f"error/backend/{KIND}/{device.domid}/{DEVID}/error"
        while not await device.dom0.store.exists(path):
            await anyio.lowlevel.checkpoint()
        assert "frontend-id" in await device.dom0.store.read(path)


async def test_a_state_that_cannot_be_written_ends_the_device(anyio_backend: str) -> None:
    async with attached(serve=False, use=False) as device:
        await device.dom0.store.set_perms(f"{device.front_path}/state", ["n0", f"r{device.domid}"])
        await device.dom0.store.write(f"{device.back_path}/state", "2")
        await device.front.run()
        assert isinstance(device.front.closed, DeviceFailed)
        assert device.front_driver.calls == ["negotiate", "closing"]
        assert device.front not in device.guest.devices
