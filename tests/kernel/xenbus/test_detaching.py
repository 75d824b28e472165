"""Devices that the toolstack takes away, before, while and after both ends are connected."""

from collections.abc import Mapping

import anyio
import anyio.lowlevel
import pytest

from kernel.xenbus import (
    BackendBus,
    ClosedByPeer,
    ClosedByUs,
    DeviceRemoved,
    FrontendBus,
    FrontendDevice,
    PeerDomainGone,
    PeerGone,
    XenbusState,
)
from kernel.xenstore import StoreError, Transaction
from tests.kernel.xenbus.devices import DEVID, KIND, ToyBackend, ToyFrontend, attached

pytestmark = pytest.mark.anyio

S = XenbusState


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
        assert device.front_driver.calls[:3] == ["negotiate", "connected", "closing"]
        await device.reach(S.Closed, S.Unknown)


async def test_a_frontend_that_vanishes_ends_the_backend(anyio_backend: str) -> None:
    async with attached() as device:
        back, driver = device.back, device.back_driver
        await device.dom0.store.rm(device.front_path)
        assert isinstance(await back.wait_closed(), PeerGone)
        assert driver.calls[-1] == "disconnect"


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


async def test_a_backend_that_vanishes_before_it_connects_ends_the_wait(anyio_backend: str) -> None:
    async with attached(serve=False, use=False) as device:
        device.guest.tasks.start_soon(device.front.run)
        async with device.guest.store.watch(device.back_path):
            await device.dom0.store.rm(device.back_path)
        with pytest.raises(PeerGone) as gone:
            await device.front.wait_connected()
        assert isinstance(gone.value.cause, PeerDomainGone)
        assert (gone.value.cause.side, gone.value.cause.domid) == ("backend", 0)
        assert f"device/{KIND}/{DEVID}" in str(gone.value)
        assert device.front_driver.calls == ["forsaken"]
        await device.reach(S.Closed, S.Unknown)


async def test_a_backend_that_has_closed_and_vanishes_does_not_come_back(anyio_backend: str) -> None:
    async with attached() as device:
        device.back.close()
        assert isinstance(await device.front.wait_closed(), ClosedByPeer)
        await device.dom0.store.rm(device.back_path)
        while not isinstance(device.front.closed, PeerGone):
            await anyio.lowlevel.checkpoint()
        while "forsaken" not in device.front_driver.calls:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(PeerGone):
            await device.front.wait_connected()


async def test_why_a_device_was_closed_stays_so_when_its_peer_vanishes(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        await device.reach(S.Closed, S.Closed)
        await device.dom0.store.rm(device.back_path)
        while "forsaken" not in device.front_driver.calls:
            await anyio.lowlevel.checkpoint()
        assert isinstance(device.front.closed, ClosedByUs)


async def test_a_device_whose_peer_is_gone_is_not_opened_again(anyio_backend: str) -> None:
    """Whoever asks for it is told at once, and a backend that appears there later is not followed unasked."""
    async with attached() as device:
        await device.dom0.store.rm(device.back_path)
        assert isinstance(await device.front.wait_closed(), PeerGone)
        device.front.reopen()
        with pytest.raises(PeerGone):
            await device.front.wait_connected()
        readable = ["n0", f"r{device.domid}"]
        await device.dom0.store.write_nodes(
            [(device.back_path, "", readable), (f"{device.back_path}/state", "2", None)]
        )
        for _ in range(20):
            await device.guest.store.read(f"{device.back_path}/state")
        assert device.front_driver.calls.count("negotiate") == 1
        device.front.reopen()
        while device.front_driver.calls.count("negotiate") == 1:
            await anyio.lowlevel.checkpoint()
