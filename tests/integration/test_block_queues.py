"""Disks with several queues, from end to end: data, keys, coming and going, dying, and what orders what."""

import hashlib
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from backends.block.memory import MemoryStoreConfig
from backends.block.report import BackendReport, QueueCounts
from backends.contract import SECTOR_BYTES
from dom0.embedding import running_machine
from dom0.toolstack.toolstack import DiskConfig
from frontends.block.disk import Disk, DiskOptions
from frontends.block.errors import DiskMisuse
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed
from kernel.xenbus.states import XenbusState
from ringbuffers.protocols import blkif
from tests.backends.block.stores import GatedStore
from tests.held import disk as disk_of_driver_domain
from tests.held import held
from tests.hostile.block_frontend import RawFrontend
from tests.hostile.test_block_rings import begun, gated_disk
from tests.integration.test_block_life import back_comes_and_goes, folder, nothing_left
from tests.rig import MIB, Guest, Rig, file_disk, memory_disk, running_rig
from tests.steps import State

XVDA = 51712
PAGE_BYTES = 4096
FOUR = DiskOptions(queues=4, ring_page_order=0)

pytestmark = pytest.mark.anyio


def with_queues(most: int, size: int = MIB) -> DiskConfig:
    """A disk in memory that offers so many queues."""
    return DiskConfig("xvda", "memory", MemoryStoreConfig(size=ByteSize(size)), max_queues=most)


def used(rig: Rig, guest: Guest) -> list[int]:
    """How many requests each queue of a disk was asked for."""
    (served,) = rig.services.blocks.disks_of(guest.domid)
    return [sum(queue.requests.requests.values()) for queue in served.stats.queues]


def content(block: int, turn: int) -> bytes:
    """What a page of a disk has to hold after a turn."""
    return random.Random(block << 32 | turn).randbytes(PAGE_BYTES)


class Blocks:
    """Pages of a disk that many tasks write, each its own. turns: how often each was written."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.turns: dict[int, int] = {}

    async def work(self, block: int, turns: int) -> None:
        """Writes a page by each way there is and looks whether it is there, again and again."""
        for _ in range(turns):
            turn = self.turns[block] = self.turns.get(block, -1) + 1
            data = content(block, turn)
            match turn % 3:
                case 0:
                    await self.disk.write(block * 8, data)
                case 1:
                    await self.disk.write_many([(block * 8, data[:1024]), (block * 8 + 2, data[1024:])])
                case 2:
                    await self.disk.write(block * 8, data, barrier=turn % 2 == 0)
            assert await self.disk.read(block * 8, 8) == data
            if turn % 5 == 4:
                await self.disk.flush()

    async def check(self) -> None:
        """Everything is there."""
        for block, turn in self.turns.items():
            assert await self.disk.read(block * 8, 8) == content(block, turn), block


# Steps of guests


async def open_disk(kernel: Kernel, state: State, **options: Any) -> None:
    """Leaves it, and what it has to hold, in the guest's state."""
    state["disk"] = await Disk.open(kernel, XVDA, DiskOptions(**({"ring_page_order": 0} | options)))
    state["blocks"] = Blocks(state["disk"])


async def work(_kernel: Kernel, state: State, count: int, turns: int) -> dict[str, int]:
    """As many tasks with a page each; what was asked for."""
    async with anyio.create_task_group() as tasks:
        for block in range(count):
            tasks.start_soon(state["blocks"].work, block, turns)
    await state["blocks"].check()
    requests: dict[str, int] = state["disk"].stats.requests
    return requests


async def work_until_it_has_come_back_twice(_kernel: Kernel, state: State) -> None:
    """So many tasks that all queues are used."""
    disk, blocks = state["disk"], state["blocks"]

    async def work(block: int) -> None:
        while disk.stats.reconnections < 2:
            await blocks.work(block, 2)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for block in range(150):
                tasks.start_soon(work, block)
        await blocks.check()
    assert disk.stats.errors == 0


async def queues_of(_kernel: Kernel, state: State) -> int:
    """How many there are."""
    found: int = state["disk"].stats.queues
    return found


async def ask_for_much(kernel: Kernel, state: State) -> None:
    """And do not wait for it."""
    for sector in range(100):
        kernel.tasks.start_soon(state["disk"].read, sector, 1)


async def write_and_close(_kernel: Kernel, state: State, turn: int) -> None:
    """Uses all queues, and then the disk is closed."""
    disk = state["disk"]
    async with anyio.create_task_group() as tasks:
        for sector in range(100):
            tasks.start_soon(disk.write, sector, bytes([turn]) * 512)
    await disk.close()
    with pytest.raises(DeviceClosed):
        await disk.read(0, 1)


async def reopen_and_read(_kernel: Kernel, state: State, turn: int) -> None:
    """The same disk again."""
    await state["disk"].reopen()
    assert await state["disk"].read(99, 1) == bytes([turn]) * 512


async def test_four_queues_carry_what_one_does(tmp_path: Path, isolation: str) -> None:
    path = tmp_path / "a.img"
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(path, size=4 * MIB)]) as guest,
    ):
        await guest.run(partial(open_disk, queues=4))
        requests = await guest.run(work, 200, 7)
        assert await guest.run(queues_of) == len(used(rig, guest)) == 4
        assert all(used(rig, guest))
        (served,) = rig.services.blocks.disks_of(guest.domid)
        assert sum(used(rig, guest)) == sum(served.stats.requests.values()) == sum(requests.values())
        written = sum(queue.requests.bytes_written for queue in served.stats.queues)
        assert served.stats.bytes_written == written == 200 * 7 * PAGE_BYTES
        assert not served.stats.errors
        sent = sum(queue.rings.notifications_sent for queue in served.stats.queues)
        assert 0 < sent == served.stats.notifications_sent
        found = path.read_bytes()
        for block in range(200):
            assert found[block * PAGE_BYTES : (block + 1) * PAGE_BYTES] == content(block, 6)
    assert guest.leaks == []


async def test_a_batch_is_one_run_on_one_queue(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(4 * MIB)]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, DiskOptions(queues=4))
        buffers = disk.buffers(100)
        shown = disk.stats.notifications_sent + disk.stats.notifications_suppressed
        await disk.write_many([(index * 8, buffer) for index, buffer in enumerate(buffers)])
        assert disk.stats.notifications_sent + disk.stats.notifications_suppressed == shown + 1
        await anyio.wait_all_tasks_blocked()  # nobody looks at the rings any more
        async with anyio.create_task_group() as tasks:
            for sector in range(64):
                tasks.start_soon(disk.read, sector, 1)
        assert disk.stats.notifications_sent + disk.stats.notifications_suppressed <= shown + 3
        assert used(rig, guest)[1:] == [0, 0, 0]


@pytest.mark.parametrize("order", [0, 2])
async def test_the_keys_are_those_of_the_header(tmp_path: Path, isolation: str, order: int) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([with_queues(3)]) as guest:
        await guest.run(partial(open_disk, queues=8, ring_page_order=order))
        front = f"/local/domain/{guest.domid}/device/vbd/{XVDA}"
        back = await folder(rig, f"/local/domain/0/backend/vbd/{guest.domid}/{XVDA}")
        assert (back["multi-queue-max-queues"], back["max-queues"]) == ("3", "3")
        keys = await folder(rig, front)
        assert keys["multi-queue-num-queues"] == "3"
        assert not keys.keys() & {"ring-ref", "ring-ref0", "event-channel"}
        assert keys.get("ring-page-order") == ("2" if order else None)
        assert {key for key in keys if key.startswith("queue-")} == {"queue-0", "queue-1", "queue-2"}
        queues = [await folder(rig, f"{front}/queue-{index}") for index in range(3)]
        names = {f"ring-ref{page}" for page in range(4)} if order else {"ring-ref"}
        for queue in queues:
            assert queue.keys() == names | {"event-channel"}
        for name in names | {"event-channel"}:
            assert len({queue[name] for queue in queues}) == 3


@pytest.mark.parametrize(
    ("most", "wished", "got"), [(1, 4, 1), (4, 1, 1), (4, 2, 2), (2, 16, 2), (16, 16, 16)]
)
async def test_never_more_than_are_offered(tmp_path: Path, most: int, wished: int, got: int) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([with_queues(most)]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, DiskOptions(queues=wished))
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        assert disk.stats.queues == len(driver.queues) == got
        await disk.write(1, b"q" * 512)
        assert await disk.read(1, 1) == b"q" * 512
        keys = await folder(rig, f"/local/domain/{guest.domid}/device/vbd/{XVDA}")
        assert ("multi-queue-num-queues" in keys, "event-channel" in keys) == (got > 1, got == 1)


async def test_no_queue_is_no_disk(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([memory_disk(MIB)]) as guest:
        with pytest.raises(DiskMisuse, match="number of queues is 0"):
            Disk(guest.kernel, XVDA, DiskOptions(queues=0))


async def offers(rig: Rig, guest: Guest, queues: int) -> None:
    """The backend closes the device and comes back with so many queues."""
    home = f"backend/vbd/{guest.domid}/{XVDA}"
    await rig.services.kernel.store.write(f"{home}/max-queues", str(queues))
    await back_comes_and_goes(rig, guest)


@pytest.mark.parametrize("then", [4, 1, 2, 3])
async def test_the_backend_comes_back_in_the_middle(tmp_path: Path, isolation: str, then: int) -> None:
    """With as many queues as before or fewer, and then with all again: no request is lost."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(tmp_path / "a.img", size=4 * MIB)]) as guest,
    ):
        await guest.run(partial(open_disk, queues=4))
        driver = rig.services.blocks.driver_of(guest.domid, XVDA)
        assert driver is not None
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guest.run, work_until_it_has_come_back_twice)
                while not all(used(rig, guest)):
                    await checkpoint()
                for queues in (then, 4):
                    await offers(rig, guest, queues)
                    while not driver.queues:
                        await checkpoint()
                    assert len(driver.queues) == queues
                    before = sum(used(rig, guest))
                    while sum(used(rig, guest)) == before:  # the frontend has yet to see that it is connected
                        await checkpoint()
        assert await guest.run(queues_of) == 4
        assert rig.machine.audit() == []
    assert guest.leaks == []


@pytest.mark.parametrize("then", [1, 2, 3])
async def test_what_was_in_flight_on_all_queues_is_sent_again(tmp_path: Path, then: int) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([gated_disk()]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, DiskOptions(queues=3))
        first = GatedStore.last
        done: list[int] = []

        async def write(block: int) -> None:
            data = bytes([block]) * PAGE_BYTES
            await disk.write_many([(block * 8, data[:512]), (block * 8 + 1, data[512:])])
            done.append(block)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for block in range(6):
                    tasks.start_soon(write, block)
                await begun(12)
                assert used(rig, guest) == [4, 4, 4]
                tasks.start_soon(offers, rig, guest, then)
                await anyio.wait_all_tasks_blocked()
                assert done == []
                first.gate.set()
                while GatedStore.last is first:
                    await checkpoint()
                await anyio.wait_all_tasks_blocked()
                assert done == []
                GatedStore.last.gate.set()
        assert sorted(done) == list(range(6))
        assert disk.stats.queues == then
        for block in range(6):
            assert await disk.read(block * 8, 8) == bytes([block]) * PAGE_BYTES


async def test_cancelled_calls_give_their_pages_back_whichever_queue_answers(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([gated_disk()]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, DiskOptions(queues=3, staged_pages=6))
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(disk.read, 0, 16)
            await begun(3)
            assert used(rig, guest) == [1, 1, 1]
            tasks.cancel_scope.cancel()
        assert not disk.is_settled
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(disk.read, 0, 16)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(offers, rig, guest, 2)
                await anyio.wait_all_tasks_blocked()
                first = GatedStore.last
                first.gate.set()
                while GatedStore.last is first:
                    await checkpoint()
                GatedStore.last.gate.set()
            await disk.settled()
            assert await disk.read(0, 32) == bytes(32 * 512)


async def test_closing_and_opening_again(tmp_path: Path, isolation: str) -> None:
    """Many times, with what one queue and what several need: nothing is left mapped or granted."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(tmp_path / "a.img", size=MIB)]) as guest,
    ):
        await guest.run(partial(open_disk, queues=4))
        for turn in range(12):
            offered = f"backend/vbd/{guest.domid}/{XVDA}/max-queues"
            await rig.services.kernel.store.write(offered, str(1 + turn % 4))
            await guest.run(write_and_close, turn)
            driver = rig.services.blocks.driver_of(guest.domid, XVDA)
            assert driver is not None
            assert driver.queues == []
            assert rig.machine.audit() == []
            await guest.run(reopen_and_read, turn)
            assert await guest.run(queues_of) == len(driver.queues) == 1 + turn % 4
    assert guest.leaks == []


async def test_a_disk_is_resized_and_then_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    async with running_rig(tmp_path) as rig, rig.guest([file_disk(path, size=MIB)]) as guest:
        disk = await Disk.open(guest.kernel, XVDA, FOUR)
        with path.open("r+b") as file:
            file.truncate(2 * MIB)
        assert await rig.services.blocks.resize(guest.domid, XVDA)
        with anyio.fail_after(10):
            if disk.sectors == MIB // 512:
                await disk.wait_resized()
            blocks = Blocks(disk)
            async with anyio.create_task_group() as tasks:
                for block in range(256, 512, 2):
                    tasks.start_soon(blocks.work, block, 2)
            await blocks.check()
            assert await rig.services.toolstack.detach_disk(guest.domid, "xvda")
            while disk.device.own is not XenbusState.Unknown:
                await checkpoint()
        with pytest.raises(DeviceClosed):
            await disk.read(0, 1)
        assert rig.services.blocks.driver_of(guest.domid, XVDA) is None
        assert rig.machine.audit() == []
    assert guest.kernel.leaks == []


@pytest.mark.parametrize("waits", [True, False])
async def test_a_killed_guest_leaves_nothing_behind(tmp_path: Path, isolation: str, waits: bool) -> None:
    """Its requests are in flight on all queues when it is destroyed."""
    async with running_rig(tmp_path, isolation=isolation) as rig:
        with anyio.fail_after(20):
            async with rig.guest([gated_disk() if waits else memory_disk(MIB)]) as guest:
                await guest.run(partial(open_disk, queues=4))
                await guest.run(ask_for_much)
                while min(used(rig, guest)) < (4 if waits else 1):
                    await checkpoint()
                if waits:
                    GatedStore.last.gate.set()
                guest.kill()
        nothing_left(rig)
        if waits:
            assert GatedStore.last.closed


async def test_a_driver_domain_serves_several_queues(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        _, kernel = await held(machine, disks=[disk_of_driver_domain(size=4 * MIB)])
        disk = await Disk.open(kernel, XVDA, FOUR)
        assert disk.stats.queues == 4
        blocks = Blocks(disk)
        async with anyio.create_task_group() as tasks:
            for block in range(200):
                tasks.start_soon(blocks.work, block, 5)
        await blocks.check()
        await disk.close()
        assert len(list(disks.domain.grants.maptrack)) == 0
        ended = await disks.shut_down()
        statistics = ended.served[0].statistics
        counts = [QueueCounts.model_validate_json(statistics[f"queue-{index}"]) for index in range(4)]
        whole = BackendReport.model_validate_json(statistics[""])
        assert all(sum(queue.requests.values()) for queue in counts)
        assert sum(queue.bytes_written for queue in counts) == whole.bytes_written == 200 * 5 * PAGE_BYTES


# What orders what: as with Linux's blkback


async def test_a_barrier_waits_for_its_own_queue_alone(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest([gated_disk()]) as guest:
        front = RawFrontend(guest.kernel, queues=2)
        await front.open()

        def barrier(request_id: int, sector: int) -> bytes:
            segment = blkif.Segment(front.grefs[request_id], 0, 7)
            return blkif.Request(blkif.BLKIF_OP_WRITE_BARRIER, 0, request_id, sector, (segment,)).pack()

        front.rings[0].put(front.write(1, 8), barrier(2, 16), front.write(3, 24))
        await begun(1)
        front.rings[1].put(barrier(4, 32))
        await begun(2)
        await anyio.wait_all_tasks_blocked()
        assert GatedStore.last.begun == ["write 4096", "flush"]  # the second is that of the other queue
        GatedStore.last.gate.set()
        assert [answer.id for answer in await front.rings[0].answers(3)] == [1, 2, 3]
        assert [answer.id for answer in await front.rings[1].answers(1)] == [4]
        begins = GatedStore.last.begun
        assert begins.index("write 16384") < len(begins)
        assert begins.index("write 8192") < begins.index("write 12288")


async def test_a_flush_makes_durable_what_any_queue_has_written(tmp_path: Path) -> None:
    """It reaches the store, which knows of no queues, and begins after the writes that have been answered."""
    async with running_rig(tmp_path) as rig, rig.guest([gated_disk()]) as guest:
        front = RawFrontend(guest.kernel, queues=3)
        await front.open()
        GatedStore.last.gate.set()
        for index in range(2):
            assert (
                await front.rings[index].status(front.write(index, 8 * index, index)) == blkif.BLKIF_RSP_OKAY
            )
        flush = blkif.Request(blkif.BLKIF_OP_FLUSH_DISKCACHE, 0, 9, 0, ()).pack()
        assert await front.rings[2].status(flush) == blkif.BLKIF_RSP_OKAY
        assert GatedStore.last.ended == ["write 0", "write 4096", "flush"]


# A model

SECTORS = 1024
STRIPES = 8


Step = tuple[str, int, int, int]


@st.composite
def passes(draw: st.DrawFn) -> list[list[Step]]:
    """What tasks ask for at the same time, each in a stripe of its own: (what, sector, count, seed)."""
    size = SECTORS // STRIPES
    found = []
    for _ in range(draw(st.integers(1, 8))):
        steps = []
        for stripe in range(STRIPES):
            what = draw(st.sampled_from(["read", "write", "barrier", "discard", "flush", "many", "nothing"]))
            count = draw(st.one_of(st.integers(1, 20), st.integers(1, size)))
            sector = draw(st.integers(0, size - count))
            steps.append((what, stripe * size + sector, count, draw(st.integers(0, 1 << 16))))
        found.append(steps)
    return found


async def play(_kernel: Kernel, state: State, examples: list[list[list[Step]]]) -> str:
    """All of it on the disk and on a model; a hash of that."""
    disk, model = state["disk"], bytearray(SECTORS * SECTOR_BYTES)
    for example in examples:
        for steps in example:
            async with anyio.create_task_group() as tasks:
                for step in steps:
                    tasks.start_soon(apply, disk, model, step)
    assert await disk.read(0, SECTORS) == model
    return hashlib.sha256(model).hexdigest()


async def apply(disk: Disk, model: bytearray, step: Step) -> None:
    """One operation on both."""
    what, sector, count, seed = step
    data = random.Random(seed).randbytes(count * SECTOR_BYTES)
    place = slice(sector * SECTOR_BYTES, (sector + count) * SECTOR_BYTES)
    match what:
        case "read":
            assert await disk.read(sector, count) == model[place]
        case "write" | "barrier":
            await disk.write(sector, data, barrier=what == "barrier")
            model[place] = data
        case "discard":
            await disk.discard(sector, count)
            model[place] = bytes(len(data))
        case "flush":
            await disk.flush()
        case "many":
            cut = seed % count
            parts = ((sector, data[: cut * SECTOR_BYTES]), (sector + cut, data[cut * SECTOR_BYTES :]))
            await disk.write_many([part for part in parts if part[1]])
            model[place] = data


@pytest.mark.parametrize("queues", [2, 5])
@pytest.mark.parametrize("persistent", [True, False])
async def test_random_requests_over_several_queues_equal_a_model_file(
    tmp_path: Path, isolation: str, queues: int, persistent: bool
) -> None:
    examples: list[list[list[Step]]] = []

    @settings(max_examples=12, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(passes())
    def draw(found: list[list[Step]]) -> None:
        examples.append(found)

    draw()
    whole = [("write", at * SECTORS // STRIPES, SECTORS // STRIPES, at) for at in range(STRIPES)]
    examples.append([whole])  # drawn ones may ask for little, and need one queue then
    path = tmp_path / "disk.img"
    config = replace(file_disk(path, size=SECTORS * SECTOR_BYTES), max_queues=5)
    options = {"persistent": persistent, "max_indirect_segments": 32, "staged_pages": 64, "queues": queues}
    async with running_rig(tmp_path, isolation=isolation) as rig:
        async with rig.guest([config]) as guest:
            await guest.run(partial(open_disk, **options))
            model = await guest.run(play, examples)
            assert len(used(rig, guest)) == queues
            assert min(used(rig, guest)[:2]) > 0
        assert hashlib.sha256(path.read_bytes()).hexdigest() == model
