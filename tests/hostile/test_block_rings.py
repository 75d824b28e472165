"""Frontends that lie about their ring, change what they sent, ring the bell for nothing, or leave in the middle."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import ByteSize

from backends.block.memory import MemoryStoreConfig
from backends.block.pages import PageBudget
from dom0.toolstack.toolstack import DiskConfig
from frontends.block.disk import Disk, DiskOptions
from kernel.errors import PortClosed
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed
from kernel.xenbus.states import XenbusState
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.slots import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from tests.backends.block.stores import GatedStore
from tests.hostile.block_frontend import SLOT, XVDA, RawFrontend, RawRing
from tests.rig import MIB, Guest, Rig, memory_disk, running_rig
from tests.steps import State

OKAY = blkif.BLKIF_RSP_OKAY

pytestmark = pytest.mark.anyio


def gated_disk() -> DiskConfig:
    """A disk whose store waits for the test."""
    config = MemoryStoreConfig(size=ByteSize(MIB))
    return DiskConfig("xvda", "tests.backends.block.stores:GatedStore", config)


async def begun(count: int) -> None:
    """The store has begun so many calls."""
    with anyio.fail_after(5):
        while len(GatedStore.last.begun) < count:
            await checkpoint()


async def connect(kernel: Kernel, state: State, **options: Any) -> None:
    """The hostile frontend, which stays in its guest."""
    state["front"] = front = RawFrontend(kernel, **options)
    await front.open()


async def send_good_requests(_kernel: Kernel, state: State, count: int) -> None:
    front = state["front"]
    for request_id in range(count):
        assert await front.status(front.read(request_id)) == OKAY


async def publish(_kernel: Kernel, state: State, req_prod: int) -> None:
    state["front"].publish(req_prod)


async def closed(_kernel: Kernel, state: State) -> None:
    await state["front"].closed()


async def nothing_is_mapped(kernel: Kernel, state: State) -> None:
    with anyio.fail_after(5):
        while any(kernel.grants.is_mapped(gref) for gref in state["front"].grefs):
            await checkpoint()


async def let_go(rig: Rig, guest: Guest) -> None:
    """Nothing of the guest's is mapped any more."""
    await guest.run(nothing_is_mapped)
    assert rig.machine.audit() == []


async def open_disk(kernel: Kernel, state: State) -> None:
    """A bystander's."""
    state["disk"] = disk = await Disk.open(kernel, XVDA)
    await disk.write(0, b"bystander's" * 1024)


async def use_disk(_kernel: Kernel, state: State) -> None:
    with anyio.fail_after(5):
        await state["disk"].write(100, b"still here" * 51 + b"..")
        assert (await state["disk"].read(100, 1)).startswith(b"still here")


async def works(bystander: Guest) -> None:
    """Its disk is served."""
    await bystander.run(use_disk)


@pytest.mark.parametrize("lie", [33, 34, 1 << 31, -1, (1 << 32) - 33, 0x7FFF_FFFF])
@pytest.mark.parametrize("before", [0, 5], ids=["at once", "after good requests"])
async def test_a_producer_index_out_of_bounds(tmp_path: Path, isolation: str, lie: int, before: int) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_disk)
        await guest.run(partial(connect, persistent=True))
        await guest.run(send_good_requests, before)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        await guest.run(publish, before + lie)
        await guest.run(closed)
        assert isinstance(driver.violation, PeerViolation)
        assert driver.violation.what == "req_prod"
        store = rig.services.kernel.store
        assert "req_prod" in await store.read(f"error/backend/vbd/{guest.domid}/{XVDA}/error")
        await let_go(rig, guest)
        await works(bystander)


async def test_a_producer_index_that_goes_backwards(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(connect)
        await guest.run(send_good_requests, 3)
        await guest.run(publish, 2)
        await guest.run(closed)
        await let_go(rig, guest)


async def lie_about_events(_kernel: Kernel, state: State) -> None:
    """Write all event indices that a ring has."""
    front = state["front"]
    for index, lie in enumerate((0, 5, 1 << 31, 0xFFFF_FFFF)):
        front.words[REQ_EVENT] = lie
        front.words[RSP_EVENT] = lie
        front.words[RSP_PROD] = lie
        front.put(front.read(index))
        with anyio.fail_after(5):
            while front.rsp_prod != index + 1:
                await checkpoint()


async def test_event_indices_may_be_anything(tmp_path: Path, isolation: str) -> None:
    """They say who wants a bell, and cost at most that."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(connect)
        await guest.run(lie_about_events)
        assert rig.machine.audit() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"event-channel": None},
        {"event-channel": ""},
        {"event-channel": "-1"},
        {"event-channel": "0"},
        {"event-channel": "4095"},
        {"event-channel": "99999999999999999999"},
        {"event-channel": "1"},
        {"ring-ref": None},
        {"ring-ref": "x"},
        {"ring-ref": "4294967295"},
        {"ring-ref": "4294967296"},
        {"ring-ref": "3"},
        {"ring-ref": "٣"},
        {"ring-page-order": "0", "ring-ref": None},
        {"ring-page-order": "1"},
        {"ring-page-order": "5"},
        {"ring-page-order": "63"},
        {"ring-page-order": "-1"},
        {"num-ring-pages": "3"},
        {"num-ring-pages": "32"},
        {"num-ring-pages": "0"},
        {"protocol": "x86_32-abi"},
        {"protocol": "arm-abi"},
        {"feature-persistent": "2"},
        {"multi-queue-num-queues": "2"},
        {"multi-queue-num-queues": "0"},
    ],
    ids=str,
)
async def test_keys_that_lead_nowhere(tmp_path: Path, isolation: str, changes: dict[str, str | None]) -> None:
    """The device is refused with the reason in its error node; with right keys it connects afterwards."""

    async def is_refused(kernel: Kernel, _state: State) -> None:
        front = RawFrontend(kernel)
        front.changes = changes
        with pytest.raises(DeviceClosed):
            await front.open()
        await front.closed()

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(is_refused)
        store = rig.services.kernel.store
        home = f"backend/vbd/{guest.domid}/{XVDA}"
        assert await store.read(f"error/{home}/error")
        assert rig.machine.audit() == []
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        assert (driver.queues, driver.violation) == ([], None)


async def send_two(_kernel: Kernel, state: State) -> None:
    """A write, and an indirect one."""
    front = state["front"]
    for index in range(16):
        front.page(index)[:] = bytes([index]) * 4096
    listed = [blkif.Segment(front.grefs[1], 0, 7)] * 12
    blkif.pack_indirect_segments(front.page(9), listed)
    front.put(
        front.write(1, sector=8, page=3),
        blkif.IndirectRequest(1, 12, 2, 800, 0, (front.grefs[9],)).pack(),
    )


async def change_them(_kernel: Kernel, state: State) -> None:
    front = state["front"]
    evil = front.write(99, sector=1600, page=4)
    front.ring_pages.view[64 : 64 + 2 * SLOT] = evil * 2
    blkif.pack_indirect_segments(front.page(9), [blkif.Segment(front.grefs[2], 0, 7)] * 12)


async def two_were_done(_kernel: Kernel, state: State) -> None:
    front = state["front"]
    answers = await front.answers(2)
    assert sorted(answer.id for answer in answers) == [1, 2]
    for sector, expected in ((8, 3), (800, 1), (888, 1), (1600, 0), (0, 0)):
        assert await front.status(front.read(5, sector=sector, page=7)) == OKAY
        assert front.page(7) == bytes([expected]) * 4096, sector


async def test_requests_are_what_they_were_when_they_were_taken(tmp_path: Path, isolation: str) -> None:
    """A slot, or a list of segments, that changes afterwards changes nothing (XSA-155)."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([gated_disk()]) as guest:
        await guest.run(connect)
        await guest.run(send_two)
        await begun(2)
        await guest.run(change_them)
        GatedStore.last.gate.set()
        await guest.run(two_were_done)


async def send_ten(_kernel: Kernel, state: State) -> None:
    front = state["front"]
    front.put(*(front.write(index, 8 * index, index) for index in range(10)))


async def say(kernel: Kernel, _state: State, state: str) -> None:
    """Write the state of the device, past its driver."""
    await kernel.store.write(f"device/vbd/{XVDA}/state", state)


@pytest.mark.parametrize("state", ["5", "6", "1", "0", "", "7", "nonsense"])
async def test_leaving_with_requests_in_flight(tmp_path: Path, isolation: str, state: str) -> None:
    """The frontend's state says so, or its node vanishes; the backend ends what it began and lets go."""
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([gated_disk()]) as guest:
        await guest.run(partial(connect, persistent=True))
        await guest.run(send_ten)
        await begun(10)
        store = GatedStore.last
        await guest.run(say, state)
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
        if state != "7":
            with anyio.fail_after(5):
                while not store.closed:
                    await guest.run(say, "6")
                    await checkpoint()
            await let_go(rig, guest)
        guest.kill()
    assert list(rig.machine.domains) == [0]
    assert len(store.ended) == 10


async def fill_the_ring(_kernel: Kernel, state: State) -> None:
    """And take no answers."""
    front = state["front"]
    front.put(*(front.read(index) for index in range(32)))
    with anyio.fail_after(5):
        while front.rsp_prod != 32:
            await checkpoint()


async def test_a_frontend_that_never_takes_its_answers(tmp_path: Path, isolation: str) -> None:
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_disk)
        await guest.run(connect)
        await guest.run(fill_the_ring)
        await works(bystander)
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        assert driver.violation is None


async def ring_the_bell(_kernel: Kernel, state: State) -> None:
    """For ever."""
    while True:
        for _ in range(100):
            state["front"].port.notify()
        await checkpoint()


async def test_bells_for_nothing(tmp_path: Path, isolation: str) -> None:
    """A storm of notifications without requests leaves everybody else their turn (XSA-332)."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_disk)
        await guest.run(connect)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run, ring_the_bell)
            for _ in range(50):
                await works(bystander)
            tasks.cancel_scope.cancel()
        await guest.run(send_good_requests, 1)


READ_INTO_RING = 2


def broken(req_prod: int) -> bytes:
    """A page that no frontend would write at this point."""
    return req_prod.to_bytes(4, "little") * 1024


@pytest.mark.parametrize("persistent", [False, True], ids=["transient", "persistent"])
@pytest.mark.parametrize("victim", [0, 1], ids=["itself", "its neighbour"])
@pytest.mark.parametrize(
    "content", [broken(0), broken(0xFFFF_FFFF), broken(0x0101_0101)], ids=["zeroes", "ones", "counts"]
)
async def test_a_read_into_a_ring(
    tmp_path: Path, isolation: str, content: bytes, victim: int, persistent: bool
) -> None:
    """The frontend has a ring of its own overwritten with what is on the disk: its undoing, and nobody else's.

    What was taken from the ring before is served as it was; then the producer index is found to be impossible.
    """

    async def overwrite(_kernel: Kernel, state: State) -> None:
        front = state["front"]
        front.page(0)[:] = content
        for ring in front.rings:
            assert await ring.status(front.write(1, 8, page=0)) == OKAY
        overwritten = front.rings[victim]
        front.put(read_into(overwritten), *(front.write(3 + page, 80 + 8 * page, page) for page in range(16)))
        if overwritten is not front.rings[0]:
            await front.answers(17)
            with suppress(PortClosed):  # it was still being looked at
                overwritten.port.notify()
        await front.closed()

    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_disk)
        await guest.run(partial(connect, persistent=persistent, queues=2))
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        await guest.run(overwrite)
        assert isinstance(driver.violation, PeerViolation)
        assert driver.violation.what == "req_prod"
        assert driver.violation.found == int.from_bytes(content[:4], "little")
        assert sum(driver.stats.requests.values()) == 2 + 1 + 16
        assert not driver.stats.errors.keys() - {"ring broken"}
        await let_go(rig, guest)
        await bystander.run(disk_is_as_it_was)
        await works(bystander)
    assert list(rig.machine.domains) == [0]
    assert rig.machine.audit() == []


async def disk_is_as_it_was(_kernel: Kernel, state: State) -> None:
    assert await state["disk"].read(0, 22) == b"bystander's" * 1024


@pytest.mark.parametrize("persistent", [False, True], ids=["transient", "persistent"])
@pytest.mark.parametrize("more", [0, 1, 13])
async def test_a_read_into_a_ring_that_leaves_it_in_order(
    tmp_path: Path, isolation: str, more: int, persistent: bool
) -> None:
    """What is on the disk is a ring, with the indices that were to come, and requests: they are served, as whoever
    put them there might have sent them.
    """

    async def overwrite(_kernel: Kernel, state: State) -> None:
        front = state["front"]
        wanted = 2 + more
        page = front.page(0)
        page[:] = b"\xa5" * 4096
        page.cast("I")[REQ_PROD] = wanted
        for index in range(2, wanted):
            slot = front.write(100 + index, sector=800 + 8 * index, page=index)
            page[64 + index * SLOT : 64 + (index + 1) * SLOT] = slot
            front.page(index)[:] = bytes([index]) * 4096
        assert await front.status(front.write(1, 8, page=0)) == OKAY
        front.put(read_into(front.rings[0]))
        with anyio.fail_after(5):
            while front.rsp_prod != wanted:
                await checkpoint()
        answers = [blkif.Response.unpack(slot_of(front, index).tobytes()) for index in range(1, wanted)]
        assert [answer.id for answer in answers] == [READ_INTO_RING, *range(102, 100 + wanted)]
        assert {answer.status for answer in answers} == {OKAY}

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(partial(connect, persistent=persistent))
        await guest.run(overwrite)
        served = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert served is not None
        assert (served.violation, len(served.queues)) == (None, 1)
        assert rig.machine.audit() == []
    assert list(rig.machine.domains) == [0]


def read_into(ring: RawRing) -> bytes:
    """A request to read what is on the disk at sector 8 into the first page of a ring."""
    segment = blkif.Segment(ring.grefs[0], 0, 7)
    return blkif.Request(blkif.BLKIF_OP_READ, 0, READ_INTO_RING, 8, (segment,)).pack()


def slot_of(front: RawFrontend, index: int) -> memoryview:
    """What stands on the first ring where request or response `index` goes."""
    return front.ring_pages.view[64 + index * SLOT : 64 + (index + 1) * SLOT]


async def say_this_and_that(kernel: Kernel, _state: State) -> None:
    states = ["3", "5", "1", "6", "4", "2", "8", "x", "1", "3", "0", "5", "3", "6", "1"]
    for turn in range(1500):
        await kernel.store.write(f"device/vbd/{XVDA}/state", states[turn * 7 % len(states)])


async def test_states_at_random(tmp_path: Path, isolation: str) -> None:
    """A frontend whose state node says this and that, thousands of times: the backend survives and holds nothing."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as guest,
        rig.guest([memory_disk(MIB)], name="bystander") as bystander,
    ):
        await bystander.run(open_disk)
        await guest.run(connect)
        await guest.run(say_this_and_that)
        await works(bystander)
        guest.kill()
    assert list(rig.machine.domains) == [0]
    assert rig.machine.audit() == []


async def open_two_disks(kernel: Kernel, state: State) -> None:
    state["disks"] = [
        await Disk.open(kernel, devid, DiskOptions(ring_page_order=4)) for devid in (XVDA, XVDA + 16)
    ]


async def use_a_thousand_pages(_kernel: Kernel, state: State, number: int) -> None:
    disk = state["disks"][number]
    state["buffers"] = buffers = disk.buffers(1000)
    for index, buffer in enumerate(buffers):
        buffer.view[:4] = index.to_bytes(4, "little")
    await disk.write_many([(index * 8, buffer) for index, buffer in enumerate(buffers)])
    for index in range(0, 1000, 37):
        assert (await disk.read(index * 8, 1))[:4] == index.to_bytes(4, "little")


async def release_them(_kernel: Kernel, state: State, number: int) -> None:
    state["disks"][number].release(state["buffers"])


async def test_how_many_pages_stay_mapped_is_bounded(
    tmp_path: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By device and by domain, whatever a frontend grants; and it is served all the same (XSA-300)."""
    monkeypatch.setattr("backends.block.backend.PageBudget", lambda: PageBudget(300))
    monkeypatch.setattr("backends.block.device.PERSISTENT_PAGES", 200)
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(4 * MIB), memory_disk(4 * MIB, "xvdb")]) as guest,
    ):
        await guest.run(open_two_disks)
        for turn in range(6):
            await guest.run(use_a_thousand_pages, turn % 2)
            drivers = [rig.services.blocks.driver_of(guest.domid, devid) for devid in (XVDA, XVDA + 16)]
            kept = [c.queue.pages.persistent_pages for driver in drivers if driver for c in driver.queues]
            assert max(kept) <= 200
            assert sum(kept) <= 300
            await guest.run(release_them, turn % 2)
        assert rig.machine.audit() == []
    assert guest.leaks == []


async def is_taken_away(_kernel: Kernel, state: State) -> None:
    with anyio.fail_after(5):
        while state["front"].device.own is not XenbusState.Unknown:
            await checkpoint()


async def test_a_device_that_was_broken_can_be_taken_away(tmp_path: Path, isolation: str) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(connect)
        await guest.run(publish, 1 << 20)
        await guest.run(closed)
        assert await rig.services.toolstack.detach_disk(guest.domid, "xvda")
        await guest.run(is_taken_away)
        with anyio.fail_after(5):
            while rig.services.blocks.driver_of(guest.domid, XVDA) is not None:
                await checkpoint()
