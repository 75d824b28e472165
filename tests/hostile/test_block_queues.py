"""Frontends with several queues that say what cannot be, or lie on one queue while the others are in order."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backends.block.pages import PageBudget
from frontends.block.disk import Disk, DiskOptions
from kernel.xenbus.drivers import DeviceClosed, Keys
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.slots import REQ_PROD
from tests.backends.block.stores import GatedStore
from tests.hostile.block_frontend import SLOT, XVDA, RawFrontend
from tests.hostile.test_block_rings import begun, gated_disk
from tests.rig import MIB, Guest, Rig, memory_disk, running_rig

OKAY = blkif.BLKIF_RSP_OKAY

pytestmark = pytest.mark.anyio


class StubbornFrontend(RawFrontend):
    """Does not close when it is refused. A change that names another key says the same as that one does."""

    async def negotiate(self, backend_keys: Keys) -> Keys:
        keys = await super().negotiate(backend_keys)
        return {key: keys.get(value, value) for key, value in keys.items()}

    async def closing(self) -> None:
        return


async def let_go(rig: Rig, guest: Guest, front: RawFrontend) -> None:
    """Nothing of the guest's is mapped any more."""
    grants = guest.kernel.grants
    with anyio.fail_after(5):
        while any(grants.is_mapped(gref) for gref in front.grefs):
            await checkpoint()
    assert rig.machine.audit() == []


async def works(disk: Disk) -> None:
    """A bystander's disk is served."""
    with anyio.fail_after(5):
        await disk.write(3, b"still here" * 51 + b"..")
        assert (await disk.read(3, 1)).startswith(b"still here")


async def refused(rig: Rig, guest: Guest, front: RawFrontend) -> str:
    """The reason in the error node of a device that was refused. Nothing is held of it, though the frontend has
    not closed.
    """
    with pytest.raises(DeviceClosed):
        await front.open()
    assert rig.machine.audit() == []
    for ring in front.rings:
        assert not any(guest.kernel.grants.is_mapped(gref) for gref in ring.grefs)
        channel = guest.domain.events.lookup(ring.port.port)
        assert channel is not None
        assert channel.peer is None
    driver = rig.services.blocks.driver_of(guest.domid, XVDA)
    assert driver is not None
    assert driver.queues == []
    return await rig.services.kernel.store.read(f"error/backend/vbd/{guest.domid}/{XVDA}/error")


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
async def test_queues_that_lead_nowhere(tmp_path: Path, changes: dict[str, str | None], reason: str) -> None:
    """Whatever is wrong with one queue, nothing is held of the others, and nobody else notices."""
    async with (
        running_rig(tmp_path) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        disk = await Disk.open(bystander.kernel, XVDA, DiskOptions(queues=4))
        front = StubbornFrontend(guest.kernel, queues=3)
        front.changes = changes
        assert reason in await refused(rig, guest, front)
        await works(disk)
        guest.kill()


@pytest.mark.parametrize("order", [1, 2])
async def test_pages_of_rings_that_are_not_granted(tmp_path: Path, order: int) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(MIB)]) as guest:
        front = StubbornFrontend(guest.kernel, order=order, queues=4)
        front.changes = {f"queue-3/ring-ref{(1 << order) - 1}": "3999"}
        assert "queue-3: grant 3999" in await refused(rig, guest, front)
        guest.kill()


async def test_a_ring_that_is_wrong_before_anything_is_served(tmp_path: Path) -> None:
    class Wrong(StubbornFrontend):
        async def negotiate(self, backend_keys: Keys) -> Keys:
            keys = await super().negotiate(backend_keys)
            self.rings[2].words[REQ_PROD] = 1 << 20
            self.rings[0].ring.put(self.read(1))
            self.rings[0].ring.publish()
            return keys

    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(MIB)]) as guest:
        front = Wrong(guest.kernel, queues=3)
        assert "req_prod" in await refused(rig, guest, front)
        await anyio.wait_all_tasks_blocked()
        assert front.rings[0].rsp_prod == 0
        guest.kill()


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_lie_on_one_queue_ends_the_device(tmp_path: Path, liar: int) -> None:
    """All of its queues, and nothing else."""
    async with (
        running_rig(tmp_path) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        disk = await Disk.open(bystander.kernel, XVDA, DiskOptions(queues=2))
        front = StubbornFrontend(guest.kernel, persistent=True, queues=3)
        await front.open()
        for index, ring in enumerate(front.rings):
            assert await ring.status(front.read(index, page=index)) == OKAY
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        front.rings[liar].publish(1 + 33)
        await front.closed()
        assert isinstance(driver.violation, PeerViolation)
        for ring in front.rings:
            if ring is not front.rings[liar]:
                ring.put(front.read(7))
        await anyio.wait_all_tasks_blocked()
        assert [ring.rsp_prod for ring in front.rings] == [1, 1, 1]
        await let_go(rig, guest, front)
        assert not any(guest.kernel.grants.is_mapped(gref) for ring in front.rings for gref in ring.grefs)
        await works(disk)
        guest.kill()


async def test_a_lie_while_the_other_queues_have_requests_in_flight(tmp_path: Path) -> None:
    """They end, are answered, and only then is everything given back."""
    async with running_rig(tmp_path) as rig, rig.guest([gated_disk()]) as guest:
        front = StubbornFrontend(guest.kernel, persistent=True, queues=4)
        await front.open()
        for index in range(3):
            front.rings[index].put(*(front.write(i, 8 * i, 4 * index + i) for i in range(4)))
        await begun(12)
        front.rings[3].publish(1 << 31)
        await front.closed()
        assert [ring.rsp_prod for ring in front.rings] == [0, 0, 0, 0]
        assert not GatedStore.last.closed
        GatedStore.last.gate.set()
        await let_go(rig, guest, front)
        assert [ring.rsp_prod for ring in front.rings] == [4, 4, 4, 0]
        with anyio.fail_after(5):
            while not GatedStore.last.closed:
                await checkpoint()
        guest.kill()


async def test_queues_that_are_one_page_under_two_names(tmp_path: Path) -> None:
    """No key tells; what the two ends of the ring then do to each other is the frontend's own affair."""

    class Twice(StubbornFrontend):
        async def negotiate(self, backend_keys: Keys) -> Keys:
            keys = await super().negotiate(backend_keys)
            (again,) = self.kernel.grants.grant_many(self.device.peer_domid, [self.rings[0].pages.pfn])
            return {**keys, "queue-1/ring-ref": str(again)}

    async with (
        running_rig(tmp_path) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        disk = await Disk.open(bystander.kernel, XVDA)
        front = Twice(guest.kernel, queues=2)
        await front.open()
        for turn in range(20):
            front.rings[0].words[REQ_PROD] = turn
            front.ring_pages.view[64 : 64 + SLOT] = front.read(turn)
            for ring in front.rings:
                ring.port.notify()
            await checkpoint()
        await works(disk)
        assert rig.machine.audit() == []
        guest.kill()


async def test_how_many_pages_stay_mapped_is_bounded_over_all_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By queue and by domain (XSA-300)."""
    monkeypatch.setattr("backends.block.backend.PageBudget", lambda: PageBudget(300))
    monkeypatch.setattr("backends.block.device.PERSISTENT_PAGES", 100)
    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(4 * MIB)]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, DiskOptions(ring_page_order=0, queues=4))
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        buffers = disk.buffers(800)
        for _ in range(3):
            for index, buffer in enumerate(buffers):
                buffer.view[:4] = index.to_bytes(4, "little")
            async with anyio.create_task_group() as tasks:
                for start in range(0, 800, 100):
                    part = [(index * 8, buffers[index]) for index in range(start, start + 100)]
                    tasks.start_soon(disk.write_many, part)
            for index in range(0, 800, 37):
                assert (await disk.read(index * 8, 1))[:4] == index.to_bytes(4, "little")
            kept = [connection.queue.pages.persistent_pages for connection in driver.queues]
            assert len(kept) == 4
            assert min(kept) > 0
            assert max(kept) <= 100
            assert sum(kept) <= 300
            buffers.reverse()
        disk.release(buffers)
        assert rig.machine.audit() == []
    assert guest.kernel.leaks == []
