"""Peers that write what they like to their nodes: this end stays sane, reports, and reads no more than it
must.
"""

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.rate_limit import BURST
from kernel.xenbus import BackendDevice, ClosedByPeer, DeviceFailed, FrontendDevice, XenbusState
from kernel.xenbus.folder import MAX_FOLDER_NODES, PeerKeysViolation
from kernel.xenbus.states import BadPeerState
from tests.kernel.xenbus.devices import DEVID, KIND, ToyFrontend, attached

pytestmark = pytest.mark.anyio

S = XenbusState
GARBAGE = ["", "9", "connected", "4 ", "\x00\x01", "\udcff", "4" * 2000]


@pytest.mark.parametrize("text", GARBAGE)
async def test_a_frontend_that_writes_no_state_loses_its_device(anyio_backend: str, text: str) -> None:
    async with attached() as device:
        back = device.back
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", text)
        while back.own is not S.Closing:
            await anyio.lowlevel.checkpoint()
        assert isinstance(back.closed, DeviceFailed)
        assert isinstance(back.closed.cause, BadPeerState)
        await device.dom0.store.read(f"error/backend/{KIND}/{device.domid}/{DEVID}/error")
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "6")
        await device.reach(S.Closed, S.Closed)


async def test_a_frontend_that_flaps_does_not_fill_the_log(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some errors are logged, the others are counted; the error node has the last."""
    monkeypatch.setattr("kernel.rate_limit.INTERVAL_NS", 1 << 62)
    async with attached(use=False) as device:
        await device.reach(S.Initialising, S.InitWait)
        error = f"error/backend/{KIND}/{device.domid}/{DEVID}/error"
        state, errors = f"device/{KIND}/{DEVID}/state", 40
        async with device.dom0.store.watch(error) as told:
            for number in range(errors):
                await device.guest.store.write(state, f"garbage {number}")
                while f"garbage {number}" not in str(await device.dom0.store.read_many([error])):
                    await told.__anext__()
        console, logged = device.world.console, f"xenbus: backend/{KIND}/{device.domid}/{DEVID}: "
        assert console[0].count(logged) == BURST
        back = device.back
        await device.detach()
        await device.guest.store.write(state, "6")
        while back in device.dom0.devices:
            await anyio.lowlevel.checkpoint()
        lines = [line for line in console[0].splitlines() if line.startswith(logged)]
        assert lines[BURST:] == [f"{logged}{errors - BURST} errors were not logged"]


@pytest.mark.parametrize("text", GARBAGE)
async def test_a_backend_that_writes_no_state_fails_at_the_frontend(anyio_backend: str, text: str) -> None:
    async with attached(serve=False) as device:
        await device.dom0.store.write(f"{device.back_path}/state", text)
        while device.front.own is not S.Closing:
            await anyio.lowlevel.checkpoint()
        assert isinstance(device.front.closed, DeviceFailed)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(st.sampled_from(list(S)[1:]), max_size=12))
async def test_any_sequence_of_states_leaves_a_backend_in_order(anyio_backend: str, states: list[S]) -> None:
    """Whatever a frontend writes: features, connect and disconnect are called in turn, and at the end the
    device can still be used.
    """
    async with attached(use=False) as device:
        await device.reach(S.Initialising, S.InitWait)
        driver = device.back_driver
        for state in states:
            await device.guest.store.write(f"device/{KIND}/{DEVID}/state", str(int(state)))
            await device.guest.store.read(f"device/{KIND}/{DEVID}/state")
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "6")
        while device.back.own not in (S.Closed, S.InitWait):
            await anyio.lowlevel.checkpoint()
        _assert_in_turn(driver.calls, BACKEND_CALLS)
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "1")
        front = FrontendDevice(device.guest, KIND, DEVID, ToyFrontend)
        device.guest.tasks.start_soon(front.run)
        try:
            await front.wait_connected()
        except ClosedByPeer:  # the backend still heard the last of the lies
            front.reopen()
            await front.wait_connected()
        _assert_in_turn(driver.calls, BACKEND_CALLS)


BACKEND_CALLS = {
    "": {"features"},
    "features": {"connect", "disconnect"},
    "connect": {"disconnect"},
    "disconnect": {"features"},
}
FRONTEND_CALLS = {
    "": {"negotiate"},
    "negotiate": {"connected", "closing"},
    "connected": {"changed", "closing"},
    "changed": {"changed", "closing"},
    "closing": {"negotiate"},
}


def _assert_in_turn(calls: list[str], following: dict[str, set[str]]) -> None:
    for before, call in zip(["", *calls], calls):
        assert call in following[before], calls


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(st.sampled_from(list(S)[1:]), max_size=12))
async def test_any_sequence_of_states_leaves_a_frontend_in_order(anyio_backend: str, states: list[S]) -> None:
    async with attached(serve=False) as device:
        while not hasattr(device.front, "driver"):
            await anyio.lowlevel.checkpoint()
        driver = device.front_driver
        for state in states:
            await device.dom0.store.write(f"{device.back_path}/state", str(int(state)))
            await device.guest.store.read(f"device/{KIND}/{DEVID}/state")
        await device.dom0.store.write(f"{device.back_path}/state", "5")
        await device.front.wait_closed()
        assert isinstance(device.front.closed, ClosedByPeer)
        _assert_in_turn(driver.calls, FRONTEND_CALLS)
        assert driver.calls.count("negotiate") == driver.calls.count("closing")


async def test_a_state_rewritten_at_full_speed_is_read_once_a_turn(anyio_backend: str) -> None:
    """XSA-349: what waits for the backend is one bit, however often the frontend writes."""
    async with attached() as device:
        back = device.back
        for _ in range(20):
            await device.guest.store.write_many({f"device/{KIND}/{DEVID}/state": "4"})
            with device.dom0.hypercalls.batch():
                pass
            assert len(back._notes) == 0
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "6")
        await device.reach(S.Closed, S.Closed)


async def test_a_folder_with_too_many_nodes_is_not_read(anyio_backend: str) -> None:
    async with attached(use=False) as device:
        await device.reach(S.Initialising, S.InitWait)
        crowd = {f"device/{KIND}/{DEVID}/junk{number}": "" for number in range(MAX_FOLDER_NODES)}
        await device.guest.store.write_many(crowd)
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "3")
        back: BackendDevice = device.back
        while back.own is not S.Closing:
            await anyio.lowlevel.checkpoint()
        assert isinstance(back.closed, DeviceFailed)
        assert isinstance(back.closed.cause, PeerKeysViolation)
        assert back.closed.cause.count > MAX_FOLDER_NODES


async def test_values_that_are_no_text_reach_the_driver_unharmed(anyio_backend: str) -> None:
    async with attached(use=False) as device:
        await device.reach(S.Initialising, S.InitWait)
        await device.guest.store.write(f"device/{KIND}/{DEVID}/ring-ref", b"\xff\xfe\x00\x80")
        await device.guest.store.write(f"device/{KIND}/{DEVID}/state", "3")
        await device.reach(None, S.Connected)
        seen = device.back_driver.seen["ring-ref"]
        assert seen.encode("utf-8", "surrogateescape") == b"\xff\xfe\x00\x80"
