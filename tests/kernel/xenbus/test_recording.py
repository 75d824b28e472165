"""The shells ask the store for what Linux 6.1 was recorded to ask on Xen 4.17: the same requests in the same
order.

Recorded were requests that change something, watches and transactions; reads and replies were dropped. Of the
recording only the requests of one kernel about one disk count. What the drivers do (the backend watches
physical-device) is left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import pytest

from kernel.kernel import Kernel
from kernel.xenbus import BackendBus, FrontendDevice, XenbusState
from kernel.xenstore.connection import Reply
from kernel.xenstore.wire import NAMES, split
from tests.kernel.xenbus.devices import DEVID, KIND, ToyBackend, ToyFrontend, attached

RECORDING: Final = Path(__file__).parents[2] / "data" / "xenbus-trace-writes.txt"
DISK: Final = "vbd/(1/)?51712"
OFFERED: Final = {
    "feature-max-indirect-segments": "256",
    "multi-queue-max-queues": "1",
    "max-ring-page-order": "4",
}
PUBLISHED: Final = {
    "ring-ref": "9",
    "event-channel": "10",
    "protocol": "x86_64-abi",
    "feature-persistent": "1",
}
SIZES: Final = {
    "feature-flush-cache": "1",
    "discard-granularity": "4096",
    "discard-alignment": "0",
    "discard-secure": "0",
    "feature-discard": "1",
    "feature-barrier": "1",
    "feature-persistent": "1",
    "sectors": "131072",
    "info": "0",
    "sector-size": "512",
    "physical-sector-size": "512",
}


def recorded(who: str, first_phase: str, last_phase: str, disk: str) -> list[str]:
    """The requests of kernel `who` about `disk`, a pattern. A transaction counts if any of it does."""
    found: list[str] = []
    block: list[str] | None = None
    for line in phases(first_phase, last_phase):
        name, _, request = line.partition(" ")
        request = " ".join(request.split()).removesuffix(" KPTR")
        if name != who or request.startswith("<-"):
            continue
        if request.startswith("TRANSACTION_START"):
            block = [request]
        elif block is not None:
            block.append(request)
            if request.startswith("TRANSACTION_END"):
                found += block if re.search(disk, " ".join(block)) else []
                block = None
        elif re.search(disk, request):
            found.append(request)
    return [request for request in found if not request.endswith("/physical-device")]


def phases(first: str, last: str) -> Iterator[str]:
    """The lines from the heading of one phase to that of another."""
    inside = False
    for line in RECORDING.read_text().splitlines():
        heading = re.match(r"## phase: (\S+)", line)
        if heading:
            inside = heading[1] == first or (inside and heading[1] != last)
        elif inside:
            yield line


def spy(kernel: Kernel) -> list[str]:
    """From now on, the requests of a kernel, as the recording writes them."""
    connection = kernel.store._connection
    original = connection.request
    heard: list[str] = []

    def request(kind: int, payload: bytes, path: str, tx_id: int = 0) -> Reply:
        name = NAMES[kind]
        if name in ("WATCH", "UNWATCH"):
            heard.append(f"{name} {path}")
        elif name not in ("READ", "DIRECTORY"):
            heard.append(" ".join([name, *(part for part in split(payload) if part)]))
        return original(kind, payload, path, tx_id)

    connection.request = request  # type: ignore[method-assign]
    return heard


@pytest.mark.anyio
async def test_a_disk_connects_and_closes_as_recorded(anyio_backend: str) -> None:
    async with attached(serve=False, use=False) as device:
        bus = BackendBus(device.dom0, KIND, lambda d: ToyBackend(d, offer=OFFERED, sizes=SIZES))
        front = FrontendDevice(device.guest, KIND, DEVID, lambda d: ToyFrontend(d, keys=PUBLISHED))
        back_heard, front_heard = spy(device.dom0), spy(device.guest)
        device.dom0.tasks.start_soon(bus.run)
        await device.reach(XenbusState.Initialising, XenbusState.InitWait)
        device.guest.tasks.start_soon(front.run)
        await device.reach(XenbusState.Connected, XenbusState.Connected)
        front.close()
        await device.reach(XenbusState.Closed, XenbusState.Closed)
        tests_own = (device.front_path, device.back_path, f"backend/{KIND}")
        back_heard, front_heard = list(back_heard), list(front_heard)

    recording = recorded("dom1", "xl-unpause", "domU-ready", DISK)
    recording += recorded("dom1", "xl-shutdown-begin", "xl-shutdown-end", DISK)
    assert len(recording) == 19
    assert front_heard == recording

    recording = recorded("dom0", "xl-create-paused-begin", "xl-create-paused-end", DISK)
    recording += recorded("dom0", "xl-unpause", "domU-ready", DISK)
    recording += recorded("dom0", "xl-shutdown-begin", "xl-shutdown-end", f"backend/vbd/1/{DEVID}")
    assert len(recording) == 29
    assert [r for r in back_heard if r.split()[-1] not in tests_own] == recording


@pytest.mark.anyio
async def test_a_disk_is_detached_as_recorded(anyio_backend: str) -> None:
    """The recorded disk is 51728."""
    async with attached() as device:
        back_heard, front_heard = spy(device.dom0), spy(device.guest)
        await device.detach()
        await device.front.wait_closed()
        while device.bus.devices:
            await anyio.lowlevel.checkpoint()
        await device.dom0.store.rm(device.front_path)
        await device.dom0.store.rm(device.back_path)
        while device.front in device.guest.devices:
            await anyio.lowlevel.checkpoint()

        back_heard, front_heard = list(back_heard), list(front_heard)

    recording = recorded("dom1", "block-detach-begin", "block-detach-end", "51728")
    assert len(recording) == 4
    assert front_heard == [request.replace("51728", str(DEVID)) for request in recording]
    recording = recorded("dom0", "block-detach-begin", "block-detach-end", "51728")
    assert len(recording) == 4
    assert back_heard[4:8] == [request.replace("51728", str(DEVID)) for request in recording]
