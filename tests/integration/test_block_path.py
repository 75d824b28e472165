"""Disks from end to end: a guest's frontend, dom0's backend, a store, on a real machine."""

import random
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.contract import SECTOR_BYTES
from dom0.toolstack.toolstack import DiskConfig
from frontends.block.disk import Disk, DiskOptions
from frontends.block.errors import DiskMisuse, NotSupported, RequestFailed
from kernel.kernel import Kernel
from tests.rig import MIB, file_disk, memory_disk, running_rig
from tests.steps import State

XVDA = 51712
PAGE_BYTES = 4096
BOTH_PERSISTENCES = pytest.mark.parametrize("persistent", [True, False])

pytestmark = pytest.mark.anyio


def image(folder: Path, size: int = MIB) -> Path:
    """A file with random content."""
    path = folder / "disk.img"
    path.write_bytes(content_of_image(size))
    return path


def content_of_image(size: int = MIB) -> bytes:
    return random.Random(size).randbytes(size)


async def every_way(kernel: Kernel, _state: State, persistent: bool) -> bytes:
    """Moves data in every way there is; returns the hash of what the disk holds then."""
    content = bytearray(content_of_image())
    rng = random.Random(1)
    disk = await Disk.open(kernel, XVDA, DiskOptions(persistent=persistent))
    assert (disk.name, disk.sectors, disk.sector_size) == ("xvda", MIB // 512, 512)
    assert (disk.read_only, disk.can_flush, disk.can_discard) == (False, True, True)

    for sector, count in ((0, 1), (7, 8), (100, 9), (8, 8 * 11), (9, 8 * 12), (1, 2047), (3, 2040)):
        assert await disk.read(sector, count) == content[sector * 512 : (sector + count) * 512]
        data = rng.randbytes(count * 512)
        content[sector * 512 : (sector + count) * 512] = data
        await disk.write(sector, data)
    assert await disk.read(0, disk.sectors) == content

    buffers = disk.buffers(40)
    await disk.read_into(5, buffers)
    assert b"".join(buffer.view for buffer in buffers) == content[5 * 512 : 5 * 512 + 40 * PAGE_BYTES]
    await disk.write_from(1000, buffers)
    content[1000 * 512 : 1000 * 512 + 40 * PAGE_BYTES] = content[5 * 512 : 5 * 512 + 40 * PAGE_BYTES]
    sectors = [rng.randrange(disk.sectors - 8) for _ in buffers]
    await disk.read_many(list(zip(sectors, buffers)))
    for sector, buffer in zip(sectors, buffers):
        assert buffer.view == content[sector * 512 : sector * 512 + PAGE_BYTES]
    own = [bytearray(512 * size) for size in (1, 8, 9, 40)]
    await disk.read_many(
        [(11, own[0]), (12, memoryview(own[1])), (13, own[2]), (99, own[3]), (7, buffers[0])]
    )
    for sector, memory in ((11, own[0]), (12, own[1]), (13, own[2]), (99, own[3])):
        assert memory == content[sector * 512 : sector * 512 + len(memory)]
    await disk.write_many([(sector * 80, memory) for sector, memory in enumerate(own)])
    for sector, memory in enumerate(own):
        content[sector * 80 * 512 : sector * 80 * 512 + len(memory)] = memory
    disk.release(buffers)

    await disk.write(40, b"barrier!" * 64, barrier=True)
    content[40 * 512 : 41 * 512] = b"barrier!" * 64
    await disk.discard(200, 24)
    content[200 * 512 : 224 * 512] = bytes(24 * 512)
    await disk.flush()
    assert await disk.read(0, disk.sectors) == content
    assert disk.stats.errors == 0
    return sha256(content).digest()


@BOTH_PERSISTENCES
async def test_every_way_to_move_data(tmp_path: Path, isolation: str, persistent: bool) -> None:
    path = image(tmp_path)
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([file_disk(path)]) as guest:
        assert await guest.run(every_way, persistent) == sha256(path.read_bytes()).digest()
        (served,) = rig.services.blocks.disks_of(guest.domid)
        assert not served.stats.errors
    assert guest.leaks == []


@pytest.mark.parametrize("order", [0, 1, 2, 4, 9])
async def test_rings_of_all_sizes(tmp_path: Path, isolation: str, order: int) -> None:
    slots = {0: 32, 1: 64, 2: 128, 4: 512, 9: 512}[order]

    async def fill_it(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, XVDA, DiskOptions(ring_page_order=order))
        buffers = disk.buffers(slots * 2)
        for index, buffer in enumerate(buffers):
            buffer.view[:8] = index.to_bytes(8, "little")
        await disk.write_many([(index * 8 % disk.sectors, buffer) for index, buffer in enumerate(buffers)])
        assert disk.stats.high_water == slots == disk.stats.ring_size
        for index in range(0, slots, 7):
            assert (await disk.read(index * 8, 1))[:8] == index.to_bytes(8, "little")

    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(4 * MIB)]) as guest,
    ):
        await guest.run(fill_it)
        (served,) = rig.services.blocks.disks_of(guest.domid)
        assert served.stats.ring_size == slots
        if isolation == "coroutine":  # a backend beside its frontend may take requests while others are put
            assert served.stats.high_water == slots


async def test_tasks_that_ask_together_share_a_notification(tmp_path: Path, isolation: str) -> None:
    async def ask(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, XVDA)
        await disk.read(0, 1)
        before = disk.stats.notifications_sent + disk.stats.notifications_suppressed
        async with anyio.create_task_group() as tasks:
            for sector in range(32):
                tasks.start_soon(disk.read, sector, 1)
        assert disk.stats.notifications_sent + disk.stats.notifications_suppressed - before <= 2
        assert disk.stats.requests == {"read": 33}
        assert disk.stats.latency.samples >= 2

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(ask)


async def test_what_cannot_be_asked_is_refused_before_anything_is_sent(
    tmp_path: Path, isolation: str
) -> None:
    async def ask(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, XVDA)
        end = disk.sectors
        (buffer,) = disk.buffers(1)
        for call in (
            lambda: disk.read(end, 1),
            lambda: disk.read(end - 1, 2),
            lambda: disk.read(-1, 1),
            lambda: disk.read(0, 0),
            lambda: disk.read(0, end + 1),
            lambda: disk.write(0, b"x" * 511),
            lambda: disk.write(0, b""),
            lambda: disk.write(end - 7, bytes(PAGE_BYTES)),
            lambda: disk.read_many([(0, buffer), (end - 7, buffer)]),
            lambda: disk.read_many([(0, buffer), (-8, buffer)]),
            lambda: disk.read_many([(0, bytearray(100))]),
            lambda: disk.read_into(end - 8, [buffer, buffer]),
            lambda: disk.read_into(0, []),
            lambda: disk.discard(end, 8),
        ):
            with pytest.raises(DiskMisuse):
                await call()
        assert disk.stats.requests == {}
        await disk.read_many([])

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(ask)


async def test_a_read_only_disk(tmp_path: Path, isolation: str) -> None:
    path = image(tmp_path)

    async def try_to_write(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, XVDA)
        assert (disk.read_only, disk.can_flush, disk.can_discard) == (True, False, False)
        assert await disk.read(0, 16) == content_of_image()[: 16 * 512]
        with pytest.raises(RequestFailed) as failed:
            await disk.write(5, bytes(512))
        assert (failed.value.operation, failed.value.sector, failed.value.status) == (1, 5, -1)
        with pytest.raises(RequestFailed):
            await disk.write(0, bytes(100 * PAGE_BYTES))
        with pytest.raises(NotSupported):
            await disk.flush()
        with pytest.raises(NotSupported):
            await disk.discard(0, 8)
        assert disk.stats.errors > 0

    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(path, mode="r")]) as guest,
    ):
        await guest.run(try_to_write)
    assert path.read_bytes() == content_of_image()


async def test_sectors_of_4096_bytes(tmp_path: Path, isolation: str) -> None:
    async def use(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, XVDA)
        assert (disk.sector_size, disk.sectors) == (4096, MIB // 512)
        await disk.write(8, b"y" * 8192)
        assert await disk.read(16, 8) == b"y" * 4096
        for call in (lambda: disk.read(1, 8), lambda: disk.read(8, 4), lambda: disk.write(0, bytes(512))):
            with pytest.raises(DiskMisuse):
                await call()
        buffers = disk.buffers(3)
        await disk.read_many([(8, buffers[0]), (16, buffers[1]), (0, buffers[2])])
        with pytest.raises(DiskMisuse):
            await disk.read_many([(8, buffers[0]), (17, buffers[1])])

    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(image(tmp_path), sector_size=4096)]) as guest,
    ):
        await guest.run(use)


async def test_a_resized_image(tmp_path: Path, isolation: str) -> None:
    path = image(tmp_path)

    async def begin_to_wait(kernel: Kernel, state: State) -> None:
        async def wait() -> None:
            state["size"] = await state["disk"].wait_resized()

        kernel.tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()

    async def size(_kernel: Kernel, state: State) -> int:
        while "size" not in state:
            await anyio.lowlevel.checkpoint()
        return int(state["size"])

    async def use_the_end(_kernel: Kernel, state: State) -> None:
        disk = state["disk"]
        await disk.write(disk.sectors - 1, b"z" * 512)
        assert await disk.read(disk.sectors - 1, 1) == b"z" * 512

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([file_disk(path)]) as guest:
        await guest.run(open_disk)
        with path.open("r+b") as file:
            file.truncate(2 * MIB)
        assert not await rig.services.blocks.resize(guest.domid, 999)
        await guest.run(begin_to_wait)
        assert await rig.services.blocks.resize(guest.domid, XVDA)
        assert not await rig.services.blocks.resize(guest.domid, XVDA)
        assert await guest.run(size) == 2 * MIB // 512
        await guest.run(use_the_end)


async def open_disk(kernel: Kernel, state: State) -> None:
    state["disk"] = await Disk.open(kernel, XVDA)


async def test_two_disks_of_one_image_are_refused(tmp_path: Path, isolation: str) -> None:
    path = image(tmp_path)
    async with running_rig(tmp_path, isolation=isolation) as rig:
        async with rig.guest([file_disk(path)]) as first:
            await first.run(open_disk)
            async with rig.guest([file_disk(path)], name="second") as second:
                store = rig.services.kernel.store
                home = f"backend/vbd/{second.domid}/{XVDA}"
                with anyio.fail_after(5):
                    while (await store.read_many([f"{home}/hotplug-status"]))[0] != "error":
                        await anyio.lowlevel.checkpoint()
                    while (await store.read_many([f"error/{home}/error"]))[0] is None:
                        await anyio.lowlevel.checkpoint()
                assert str(path) in await store.read(f"error/{home}/error")
        async with rig.guest([file_disk(path)], name="third") as third:
            await third.run(open_disk)


class Model:
    """A disk as bytes."""

    def __init__(self, sectors: int) -> None:
        self.content = bytearray(sectors * SECTOR_BYTES)

    def slice(self, sector: int, count: int) -> slice:
        return slice(sector * SECTOR_BYTES, (sector + count) * SECTOR_BYTES)


@st.composite
def steps(draw: st.DrawFn, sectors: int) -> list[tuple[str, int, int, int]]:
    """Operations (what, sector, count, seed), sectors within the disk."""
    found = []
    for _ in range(draw(st.integers(1, 25))):
        what = draw(
            st.sampled_from(["read", "write", "write", "barrier", "discard", "flush", "many", "pages"])
        )
        count = draw(st.one_of(st.integers(1, 20), st.integers(1, sectors)))
        sector = draw(st.integers(0, sectors - count))
        found.append((what, sector, count, draw(st.integers(0, 1 << 16))))
    return found


SECTORS = 1024


@BOTH_PERSISTENCES
@pytest.mark.parametrize("make", [memory_disk, None], ids=["memory", "file"])
async def test_a_disk_is_a_byte_array(tmp_path: Path, isolation: str, make: object, persistent: bool) -> None:
    """Random reads, writes, discards, flushes and batches through the whole path, against a model."""
    config: DiskConfig = (
        memory_disk(SECTORS * SECTOR_BYTES)
        if make
        else file_disk(tmp_path / "a.img", size=SECTORS * SECTOR_BYTES)
    )
    examples: list[list[tuple[str, int, int, int]]] = []

    @settings(max_examples=25, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(steps(SECTORS))
    def draw(found: list[tuple[str, int, int, int]]) -> None:
        examples.append(found)

    draw()
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([config]) as guest:
        await guest.run(apply_all, persistent, examples)


async def apply_all(
    kernel: Kernel, _state: State, persistent: bool, examples: list[list[tuple[str, int, int, int]]]
) -> None:
    """Operations on a disk and its model."""
    model = Model(SECTORS)
    options = DiskOptions(persistent=persistent, ring_page_order=1, max_indirect_segments=32, staged_pages=64)
    disk = await Disk.open(kernel, XVDA, options)
    for example in examples:
        for step in example:
            await apply(disk, model, step)
    assert await disk.read(0, SECTORS) == model.content


async def apply(disk: Disk, model: Model, step: tuple[str, int, int, int]) -> None:
    """One operation on both."""
    what, sector, count, seed = step
    data = random.Random(seed).randbytes(count * SECTOR_BYTES)
    place = model.slice(sector, count)
    match what:
        case "read":
            assert await disk.read(sector, count) == model.content[place]
        case "write" | "barrier":
            await disk.write(sector, data, barrier=what == "barrier")
            model.content[place] = data
        case "discard":
            await disk.discard(sector, count)
            model.content[place] = bytes(count * SECTOR_BYTES)
        case "flush":
            await disk.flush()
        case "many":
            cut = seed % count * SECTOR_BYTES
            await disk.write_many(
                [
                    (sector + at // SECTOR_BYTES, part)
                    for at, part in ((0, data[:cut]), (cut, data[cut:]))
                    if part
                ]
            )
            model.content[place] = data
        case "pages":
            whole = min(count // 8, 40)
            if whole:
                buffers = disk.buffers(whole)
                await disk.read_many([(sector + index * 8, buffer) for index, buffer in enumerate(buffers)])
                found = b"".join(buffer.view for buffer in buffers)
                assert found == model.content[model.slice(sector, whole * 8)]
                disk.release(buffers)
