"""Both shells of a device against each other, over the real store: connect, close, come back."""

import anyio
import anyio.lowlevel
import pytest

from kernel.xenbus import (
    BackendBus,
    ClosedByPeer,
    ClosedByUs,
    FrontendDevice,
    XenbusState,
)
from tests.kernel.xenbus.devices import DEVID, KIND, ToyBackend, ToyFrontend, attached

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


async def test_a_kernel_that_ends_waits_until_backends_have_let_go(anyio_backend: str) -> None:
    """A frontend is Closed before its backend is, which still has the ring mapped until then."""
    async with attached() as device:
        gate = anyio.Event()
        disconnect = device.back_driver.disconnect

        async def take_time() -> None:
            await gate.wait()
            await disconnect()

        device.back_driver.disconnect = take_time  # type: ignore[method-assign]
        ended: list[S] = []

        async def end() -> None:
            await device.guest.close_devices()
            ended.append(device.front.peer)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            await device.reach(S.Closed, S.Closing)
            await anyio.wait_all_tasks_blocked()
            assert not ended
            gate.set()
        assert ended == [S.Closed]


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


async def test_kernels_close_their_devices_when_they_end(anyio_backend: str) -> None:
    async with attached() as device:
        driver = device.front_driver
        await device.dom0.store.write(f"/local/domain/{device.domid}/control/shutdown", "poweroff")
        assert await device.world.ended(device.domid) == 0
        assert driver.calls[-1] == "closing"
        await device.reach(S.Closed, S.Closed)
        assert isinstance(device.front.closed, ClosedByUs)


async def test_a_backend_that_connects_again_looks_at_its_folder_again(anyio_backend: str) -> None:
    async with attached() as device:
        device.front.close()
        await device.reach(S.Closed, S.Closed)
        await device.dom0.store.write(f"{device.back_path}/mode", "r")
        device.front.reopen()
        await device.reach(S.Connected, S.Connected)
        assert device.back.keys["mode"] == "r"
