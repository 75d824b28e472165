"""Frontends with several queues that say what cannot be, or lie on one queue while the others are in order."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backends.block.pages import PageBudget
from frontends.block.disk import Disk, DiskOptions
from kernel.errors import PortClosed
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed, Keys
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.slots import REQ_PROD
from tests.backends.block.stores import GatedStore
from tests.hostile.block_frontend import SLOT, XVDA, RawFrontend
from tests.hostile.test_block_rings import begun, closed, gated_disk, let_go, works
from tests.rig import MIB, Guest, Rig, memory_disk, running_rig
from tests.steps import State

OKAY = blkif.BLKIF_RSP_OKAY

pytestmark = pytest.mark.anyio


class StubbornFrontend(RawFrontend):
    """Does not close when it is refused. A change that names another key says the same as that one does."""

    async def negotiate(self, backend_keys: Keys) -> Keys:
        keys = await super().negotiate(backend_keys)
        return {key: keys.get(value, value) for key, value in keys.items()}

    async def closing(self) -> None:
        return


async def start(
    kernel: Kernel,
    state: State,
    make: type[RawFrontend] = StubbornFrontend,
    changes: Mapping[str, str | None] | None = None,
    **options: Any,
) -> None:
    """A frontend that stays in its guest; it is not connected yet."""
    state["front"] = front = make(kernel, **options)
    front.changes = dict(changes or {})


async def open_it(_kernel: Kernel, state: State) -> None:
    await state["front"].open()


async def is_refused(kernel: Kernel, state: State) -> list[int]:
    """The ports of its rings."""
    front = state["front"]
    with pytest.raises(DeviceClosed):
        await front.open()
    for ring in front.rings:
        assert not any(kernel.grants.is_mapped(gref) for gref in ring.grefs)
    return [ring.port.port for ring in front.rings]


async def nothing_is_mapped_of_rings(kernel: Kernel, state: State) -> None:
    assert not any(kernel.grants.is_mapped(gref) for ring in state["front"].rings for gref in ring.grefs)


async def indices(_kernel: Kernel, state: State) -> list[int]:
    """How far the backend says it has answered, ring by ring."""
    return [ring.rsp_prod for ring in state["front"].rings]


async def publish_on(_kernel: Kernel, state: State, ring: int, req_prod: int) -> None:
    state["front"].rings[ring].publish(req_prod)


async def refused(rig: Rig, guest: Guest) -> str:
    """The reason in the error node of a device that was refused. Nothing is held of it, though the frontend has
    not closed.
    """
    for port in await guest.run(is_refused):
        channel = guest.domain.events.lookup(port)
        assert channel is not None
        assert channel.peer is None
    assert rig.machine.audit() == []
    driver = rig.services.blocks.driver_of(guest.domid, XVDA)
    assert driver is not None
    assert driver.queues == []
    return await rig.services.kernel.store.read(f"error/backend/vbd/{guest.domid}/{XVDA}/error")


async def open_queues(kernel: Kernel, state: State, queues: int, **options: Any) -> None:
    """A disk that is used as it should be."""
    state["disk"] = await Disk.open(kernel, XVDA, DiskOptions(queues=queues, **options))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"multi-queue-num-queues": "0"}, "device/vbd/51712/multi-queue-num-queues is '0'"),
        ({"multi-queue-num-queues": "5"}, "multi-queue-num-queues is '5', expected 1 to 4"),
        ({"multi-queue-num-queues": "17"}, "multi-queue-num-queues is '17'"),
        ({"multi-queue-num-queues": "-3"}, "multi-queue-num-queues is '-3'"),
        ({"multi-queue-num-queues": "three"}, "multi-queue-num-queues is 'three'"),
        ({"multi-queue-num-queues": "4294967299"}, "multi-queue-num-queues is '4294967299'"),
        ({"multi-queue-num-queues": "4"}, "queue-3/ring-ref is None"),
        ({"multi-queue-num-queues": "1"}, "device/vbd/51712/ring-ref is None"),
        ({"multi-queue-num-queues": None}, "device/vbd/51712/ring-ref is None"),
        ({"queue-1/ring-ref": None}, "queue-1/ring-ref is None"),
        ({"queue-1/ring-ref": "", "ring-ref": "queue-1/ring-ref"}, "queue-1/ring-ref is ''"),
        ({"queue-2/ring-ref": "x"}, "queue-2/ring-ref is 'x'"),
        ({"queue-2/ring-ref": "4294967296"}, "queue-2/ring-ref is '4294967296'"),
        ({"queue-2/ring-ref": "4294967295"}, "grant 4294967295"),
        ({"queue-0/event-channel": None}, "queue-0/event-channel is None"),
        ({"queue-2/event-channel": "4095"}, ""),
        ({"queue-2/event-channel": "0"}, ""),
        ({"queue-2/ring-ref": "queue-0/ring-ref"}, "expected another one than that of"),
        ({"queue-1/event-channel": "queue-0/event-channel"}, "expected another one than that of"),
        ({"ring-page-order": "1"}, "queue-0/ring-ref0 is None"),
        ({"ring-page-order": "5"}, "ring-page-order is '5'"),
    ],
    ids=str,
)
async def test_queues_that_lead_nowhere(
    tmp_path: Path, isolation: str, changes: dict[str, str | None], reason: str
) -> None:
    """Whatever is wrong with one queue, nothing is held of the others, and nobody else notices."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_queues, 4)
        await guest.run(partial(start, changes=changes, queues=3))
        assert reason in await refused(rig, guest)
        await works(bystander)
        guest.kill()


@pytest.mark.parametrize("order", [1, 2])
async def test_pages_of_rings_that_are_not_granted(tmp_path: Path, isolation: str, order: int) -> None:
    changes = {f"queue-3/ring-ref{(1 << order) - 1}": "3999"}
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(partial(start, changes=changes, order=order, queues=4))
        assert "queue-3: grant 3999" in await refused(rig, guest)
        guest.kill()


class Wrong(StubbornFrontend):
    """Has a ring that is in order, and one that is not, before it says that they are there."""

    async def negotiate(self, backend_keys: Keys) -> Keys:
        keys = await super().negotiate(backend_keys)
        self.rings[2].words[REQ_PROD] = 1 << 20
        self.rings[0].ring.put(self.read(1))
        self.rings[0].ring.publish()
        return keys


async def test_a_ring_that_is_wrong_before_anything_is_served(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(partial(start, make=Wrong, queues=3))
        assert "req_prod" in await refused(rig, guest)
        await anyio.wait_all_tasks_blocked()
        assert (await guest.run(indices))[0] == 0
        guest.kill()


async def use_each(_kernel: Kernel, state: State) -> None:
    front = state["front"]
    for index, ring in enumerate(front.rings):
        assert await ring.status(front.read(index, page=index)) == OKAY


async def ask_the_others(_kernel: Kernel, state: State, liar: int) -> None:
    """Though the device is closed."""
    front = state["front"]
    for ring in front.rings:
        if ring is not front.rings[liar]:
            ring.put(front.read(7))


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_lie_on_one_queue_ends_the_device(tmp_path: Path, isolation: str, liar: int) -> None:
    """All of its queues, and nothing else."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_queues, 2)
        await guest.run(partial(start, persistent=True, queues=3))
        await guest.run(open_it)
        await guest.run(use_each)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        await guest.run(publish_on, liar, 1 + 33)
        await guest.run(closed)
        assert isinstance(driver.violation, PeerViolation)
        await guest.run(ask_the_others, liar)
        await anyio.wait_all_tasks_blocked()
        assert await guest.run(indices) == [1, 1, 1]
        await let_go(rig, guest)
        await guest.run(nothing_is_mapped_of_rings)
        await works(bystander)
        guest.kill()


async def write_on_three(_kernel: Kernel, state: State) -> None:
    """Four requests each."""
    front = state["front"]
    for index in range(3):
        front.rings[index].put(*(front.write(i, 8 * i, 4 * index + i) for i in range(4)))


async def test_a_lie_while_the_other_queues_have_requests_in_flight(tmp_path: Path, isolation: str) -> None:
    """They end, are answered, and only then is everything given back."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([gated_disk()]) as guest:
        await guest.run(partial(start, persistent=True, queues=4))
        await guest.run(open_it)
        await guest.run(write_on_three)
        await begun(12)
        await guest.run(publish_on, 3, 1 << 31)
        await guest.run(closed)
        assert await guest.run(indices) == [0, 0, 0, 0]
        assert not GatedStore.last.closed
        GatedStore.last.gate.set()
        await let_go(rig, guest)
        assert await guest.run(indices) == [4, 4, 4, 0]
        with anyio.fail_after(5):
            while not GatedStore.last.closed:
                await checkpoint()
        guest.kill()


class Twice(StubbornFrontend):
    """Calls one page by two names."""

    async def negotiate(self, backend_keys: Keys) -> Keys:
        keys = await super().negotiate(backend_keys)
        (again,) = self.kernel.grants.grant_many(self.device.peer_domid, [self.rings[0].pages.pfn])
        return {**keys, "queue-1/ring-ref": str(again)}


async def confuse(_kernel: Kernel, state: State) -> None:
    """Write requests and indices while both queues are looked at."""
    front = state["front"]
    for turn in range(20):
        front.rings[0].words[REQ_PROD] = turn
        front.ring_pages.view[64 : 64 + SLOT] = front.read(turn)
        for ring in front.rings:
            with suppress(PortClosed):
                ring.port.notify()
        await checkpoint()


async def test_queues_that_are_one_page_under_two_names(tmp_path: Path, isolation: str) -> None:
    """No key tells; what the two ends of the ring then do to each other is the frontend's own affair."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_queues, 1)
        await guest.run(partial(start, make=Twice, queues=2))
        await guest.run(open_it)
        await guest.run(confuse)
        await works(bystander)
        assert rig.machine.audit() == []
        guest.kill()


async def use_all_queues(_kernel: Kernel, state: State, backwards: bool) -> None:
    """Eight hundred pages, a hundred a task; they stay the same ones."""
    disk = state["disk"]
    buffers = state.setdefault("buffers", [])
    if not buffers:
        buffers += disk.buffers(800)
    if backwards:
        buffers = buffers[::-1]
    for index, buffer in enumerate(buffers):
        buffer.view[:4] = index.to_bytes(4, "little")
    async with anyio.create_task_group() as tasks:
        for start in range(0, 800, 100):
            part = [(index * 8, buffers[index]) for index in range(start, start + 100)]
            tasks.start_soon(disk.write_many, part)
    for index in range(0, 800, 37):
        assert (await disk.read(index * 8, 1))[:4] == index.to_bytes(4, "little")


async def test_how_many_pages_stay_mapped_is_bounded_over_all_queues(
    tmp_path: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By queue and by domain (XSA-300)."""
    monkeypatch.setattr("backends.block.backend.PageBudget", lambda: PageBudget(300))
    monkeypatch.setattr("backends.block.device.PERSISTENT_PAGES", 100)
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(4 * MIB)]) as guest:
        await guest.run(partial(open_queues, ring_page_order=0), 4)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        for turn in range(3):
            await guest.run(use_all_queues, turn % 2 == 1)
            kept = [connection.queue.pages.persistent_pages for connection in driver.queues]
            assert len(kept) == 4
            assert min(kept) > 0
            assert max(kept) <= 100
            assert sum(kept) <= 300
        assert rig.machine.audit() == []
    assert guest.leaks == []
