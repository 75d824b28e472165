"""Both shells of a device against each other, over the real store: connect, close, come back, fail."""

from collections.abc import Mapping

import anyio
import anyio.lowlevel
import pytest

from kernel.xenbus import (
    BackendBus,
    ClosedByPeer,
    ClosedByUs,
    DeviceFailed,
    DeviceRemoved,
    FrontendBus,
    FrontendDevice,
    PeerGone,
    XenbusState,
)
from kernel.xenstore import StoreError, Transaction
from tests.kernel.xenbus.devices import DEVID, KIND, Failure, ToyBackend, ToyFrontend, attached

pytestmark = pytest.mark.anyio

S = XenbusState


async def test_both_ends_connect_and_see_each_others_keys(anyio_backend: str) -> None:
    async with attached() as device:
        assert device.front_driver.calls == ["negotiate", "connected"]
        assert device.back_driver.calls == ["features", "connect"]
        assert device.front_driver.seen["negotiate"]["max-ring-page-order"] == "4"
        assert "sectors" not in device.front_driver.seen["negotiate"]
        assert device.front_driver.seen["connected"]["sectors"] == "131072"
        assert device.back_driver.seen["ring-ref"] == "9"
        assert device.back.keys["mode"] == "w"
        assert (device.front.peer_domid, device.back.peer_domid) == (0, device.domid)
        assert device.front.closed is None
        assert device.back.closed is None


async def test_only_the_wanted_keys_of_the_peer_are_read(anyio_backend: str) -> None:
    async with attached(use=False) as device:
        front = FrontendDevice(device.guest, KIND, DEVID, ToyFrontend, peer_keys=("sectors", "absent"))
        device.guest.tasks.start_soon(front.run)
        await front.wait_connected()
        assert isinstance(front.driver, ToyFrontend)
        assert front.driver.seen["connected"] == {"sectors": "131072"}


async def test_the_frontend_closes(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        closed = await device.front.wait_closed()
        assert isinstance(closed, ClosedByUs)
        await device.reach(S.Closed, S.Closed)
        assert device.front_driver.calls[-1] == "closing"
        assert device.back_driver.calls[-1] == "disconnect"
        assert isinstance(await device.back.wait_closed(), ClosedByPeer)


async def test_the_backend_closes(anyio_backend: str) -> None:
    async with attached() as device:
        device.back.close()
        assert isinstance(await device.front.wait_closed(), ClosedByPeer)
        await device.reach(S.Closed, S.Closed)
        assert isinstance(await device.back.wait_closed(), ClosedByUs)


async def test_the_frontend_comes_back(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        device.front.reopen()
        await device.front.wait_closed()
        await device.front.wait_connected()
        assert device.front_driver.calls == ["negotiate", "connected", "closing", "negotiate", "connected"]
        await device.reach(S.Connected, S.Connected)
        assert device.back_driver.calls == ["features", "connect", "disconnect", "features", "connect"]
        assert device.front.closed is None


async def test_the_backend_comes_back_and_the_frontend_follows(anyio_backend: str) -> None:
    async with attached() as device:
        device.back.close()
        await device.back.wait_closed()
        device.back.reopen()
        await device.reach(S.Connected, S.Connected)
        assert device.back_driver.calls == ["features", "connect", "disconnect", "features", "connect"]
        assert device.front_driver.calls == ["negotiate", "connected", "closing", "negotiate", "connected"]


async def test_a_frontend_that_closed_itself_does_not_follow(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        await device.reach(S.Closed, S.Closed)
        device.back.reopen()
        await device.reach(S.Closed, S.InitWait)
        for _ in range(20):
            await device.guest.store.read(f"{device.back_path}/state")
        assert device.front_driver.calls.count("negotiate") == 1
        assert await device.states() == ("6", "2")
        device.front.reopen()
        await device.reach(S.Connected, S.Connected)


async def test_a_backend_that_starts_over_takes_the_device_up_again(anyio_backend: str) -> None:
    """The driver before it died without a word and left Connected behind."""
    async with attached() as device:
        device.world.dom0.devices.pop(device.back)
        back = device.back
        stale = BackendBus(device.dom0, KIND, ToyBackend)
        back.driver = ToyBackend(back)
        await device.dom0.store.write(f"{device.back_path}/marker", "")
        device.dom0.tasks.start_soon(stale.run)
        found = await stale.find(device.domid, DEVID)
        await found.wait_connected()
        assert isinstance(found.driver, ToyBackend)
        assert found.driver.calls == ["features", "connect"]


async def test_a_frontend_that_starts_over_takes_the_device_up_again(anyio_backend: str) -> None:
    """A kernel before it ended without closing: the state left behind is Connected."""
    async with attached() as device:
        fresh = FrontendDevice(device.guest, KIND, DEVID, ToyFrontend)
        old, device.front.driver = device.front.driver, ToyFrontend(device.front)
        device.guest.tasks.start_soon(fresh.run)
        await fresh.wait_connected()
        await device.reach(S.Connected, S.Connected)
        assert isinstance(fresh.driver, ToyFrontend)
        assert isinstance(old, ToyFrontend)
        assert fresh.driver.calls == ["negotiate", "connected"]
        assert device.back_driver.calls[:3] == ["features", "connect", "disconnect"]


async def test_detaching(anyio_backend: str) -> None:
    async with attached() as device:
        back, driver = device.back, device.back_driver
        await device.detach()
        await device.reach(S.Closed, S.Closed)
        assert isinstance(await device.front.wait_closed(), ClosedByPeer)
        assert driver.calls == ["features", "connect", "disconnect"]
        assert isinstance(await back.wait_closed(), DeviceRemoved | ClosedByPeer)
        await device.dom0.store.rm(device.front_path)
        await device.dom0.store.rm(device.back_path)
        while device.front in device.guest.devices or device.bus.devices:
            await anyio.lowlevel.checkpoint()
        assert await device.states() == ("-", "-")


async def test_detaching_before_a_frontend_came(anyio_backend: str) -> None:
    """Nobody answers at the other end: the backend notes the wish and overwrites nothing."""
    async with attached(use=False) as device:
        await device.reach(S.Initialising, S.InitWait)
        await device.detach()
        while device.back.own is not S.Closing:
            await anyio.lowlevel.checkpoint()
        assert await device.states() == ("1", "5")
        device.guest.tasks.start_soon(device.front.run)
        await device.reach(S.Closed, S.Closed)


async def test_attaching_again_after_removal_is_a_new_device(anyio_backend: str) -> None:
    async with attached() as device:
        old = device.back
        await device.dom0.store.rm(device.front_path)
        await device.dom0.store.rm(device.back_path)
        await device.attach()
        while device.bus.devices.get((device.domid, DEVID), old) is old:
            await anyio.lowlevel.checkpoint()
        front = FrontendDevice(device.guest, KIND, DEVID, ToyFrontend)
        device.guest.tasks.start_soon(front.run)
        await front.wait_connected()
        assert device.back is not old
        assert isinstance(await device.front.wait_closed(), DeviceRemoved | PeerGone)


async def test_a_backend_that_vanishes_is_a_peer_that_is_gone(anyio_backend: str) -> None:
    async with attached() as device:
        await device.dom0.store.rm(device.back_path)
        assert isinstance(await device.front.wait_closed(), PeerGone)
        assert device.front_driver.calls[-1] == "closing"
        await device.reach(S.Closed, S.Unknown)


async def test_a_frontend_that_vanishes_ends_the_backend(anyio_backend: str) -> None:
    async with attached() as device:
        back, driver = device.back, device.back_driver
        await device.dom0.store.rm(device.front_path)
        assert isinstance(await back.wait_closed(), PeerGone)
        assert driver.calls[-1] == "disconnect"


async def test_new_sizes_reach_the_frontend(anyio_backend: str) -> None:
    async with attached() as device:
        await device.back.update({"sectors": "262144"})
        while device.front_driver.seen.get("changed", {}).get("sectors") != "262144":
            await anyio.lowlevel.checkpoint()
        assert await device.states() == ("4", "4")


async def test_sizes_are_not_written_once_closed(anyio_backend: str) -> None:
    async with attached() as device:
        back = device.back
        back.close()
        await device.reach(S.Closed, S.Closed)
        await back.update({"sectors": "262144"})
        assert await device.states() == ("6", "6")
        assert await device.dom0.store.read(f"{device.back_path}/sectors") == "131072"


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


async def test_kernels_close_their_devices_when_they_end(anyio_backend: str) -> None:
    async with attached() as device:
        driver = device.front_driver
        await device.dom0.store.write(f"/local/domain/{device.domid}/control/shutdown", "poweroff")
        assert await device.world.ended(device.domid) == 0
        assert driver.calls[-1] == "closing"
        await device.reach(S.Closed, S.Closed)
        assert isinstance(device.front.closed, ClosedByUs)


async def test_a_node_that_went_unreadable_counts_as_gone(anyio_backend: str) -> None:
    async with attached() as device:
        await device.dom0.store.set_perms(device.back_path, ["n0"])
        for name in await device.dom0.store.directory(device.back_path):
            await device.dom0.store.set_perms(f"{device.back_path}/{name}", ["n0"])
        with pytest.raises(StoreError, match="EACCES"):
            await device.guest.store.read(f"{device.back_path}/state")
        await device.dom0.store.write(f"{device.back_path}/state", "4")
        device.front.own_folder_changed()
        assert isinstance(await device.front.wait_closed(), PeerGone)


async def test_a_wish_to_detach_that_comes_while_the_backend_connects(anyio_backend: str) -> None:
    """It is not overwritten with Connected."""
    async with attached(serve=False, use=False) as device:
        connecting, go_on = anyio.Event(), anyio.Event()

        class Slow(ToyBackend):
            async def connect(self, frontend_keys: Mapping[str, str]) -> Mapping[str, str]:
                connecting.set()
                await go_on.wait()
                return await super().connect(frontend_keys)

        bus = BackendBus(device.dom0, KIND, Slow)
        device.dom0.tasks.start_soon(bus.run)
        device.guest.tasks.start_soon(device.front.run)
        await connecting.wait()
        back = bus.devices[device.domid, DEVID]
        seen: list[XenbusState] = []
        await device.detach()
        go_on.set()
        while back.own is not S.Unknown:
            seen.append(back.own)
            await anyio.lowlevel.checkpoint()
        assert S.Connected not in seen
        assert await device.states() == ("6", "6")
        assert device.front_driver.calls == ["negotiate", "closing"]
        assert isinstance(back.driver, Slow)
        assert back.driver.calls == ["features", "connect", "disconnect"]


async def test_a_state_that_cannot_be_written_ends_the_device(anyio_backend: str) -> None:
    async with attached(serve=False, use=False) as device:
        await device.dom0.store.set_perms(f"{device.front_path}/state", ["n0", f"r{device.domid}"])
        await device.dom0.store.write(f"{device.back_path}/state", "2")
        await device.front.run()
        assert isinstance(device.front.closed, DeviceFailed)
        assert device.front_driver.calls == ["negotiate", "closing"]
        assert device.front not in device.guest.devices


async def test_removed_and_attached_again_in_one_transaction(anyio_backend: str) -> None:
    """No event says that the folder was gone: what is there has another beginning, and other keys."""
    async with attached(use=False) as device:
        fronts = FrontendBus(device.guest, KIND, ToyFrontend)
        device.guest.tasks.start_soon(fronts.run)
        await device.reach(S.Connected, S.Connected)
        old_driver = fronts.devices[(DEVID,)].driver
        front, back = device.front_path, device.back_path

        async def replace(transaction: Transaction) -> None:
            for folder, owners, keys in (
                (front, [f"n{device.domid}", "r0"], {"backend": back, "backend-id": "0", "state": "1"}),
                (
                    back,
                    ["n0", f"r{device.domid}"],
                    {
                        "frontend": front,
                        "frontend-id": str(device.domid),
                        "online": "1",
                        "state": "1",
                        "mode": "r",
                    },
                ),
            ):
                await transaction.rm(folder)
                await transaction.mkdir(folder)
                await transaction.set_perms(folder, owners)
                await transaction.write_many({f"{folder}/{name}": value for name, value in keys.items()})

        await device.dom0.store.transact(replace)
        await device.reach(S.Connected, S.Connected)
        assert device.back.keys["mode"] == "r"
        assert isinstance(old_driver, ToyFrontend)
        assert old_driver.calls[:3] == ["negotiate", "connected", "closing"]


async def test_a_wish_to_detach_that_comes_just_after_the_backend_has_closed(anyio_backend: str) -> None:
    """The toolstack writes Closing over Closed, and waits for Closed."""
    async with attached() as device:
        back = device.back
        rest = back._rest

        async def detach_then_rest() -> None:
            await device.detach()
            await rest()

        back._rest = detach_then_rest  # type: ignore[method-assign]
        device.front.close()
        while back in device.dom0.devices:
            await anyio.lowlevel.checkpoint()
        assert await device.states() == ("6", "6")


@pytest.mark.parametrize("left", ["5", "6"])
async def test_a_backend_that_starts_on_a_detached_device_lets_it_be(anyio_backend: str, left: str) -> None:
    async with attached(serve=False, use=False) as device:
        await device.dom0.store.write_many(
            {
                f"{device.back_path}/online": "0",
                f"{device.back_path}/state": left,
                f"{device.front_path}/state": "6",
            }
        )
        device.dom0.tasks.start_soon(device.bus.run)
        await device.reach(S.Closed, S.Closed)
        while device.bus.devices:
            await anyio.lowlevel.checkpoint()
        assert await device.states() == ("6", "6")


async def test_a_backend_that_connects_again_looks_at_its_folder_again(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        await device.reach(S.Closed, S.Closed)
        await device.dom0.store.write(f"{device.back_path}/mode", "r")
        device.front.reopen()
        await device.reach(S.Connected, S.Connected)
        assert device.back.keys["mode"] == "r"
