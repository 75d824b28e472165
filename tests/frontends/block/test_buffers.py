"""The pool of granted pages: who waits, in which order, and what a backend that is not trusted gets to see."""

from pathlib import Path

import anyio
import pytest

from frontends.block.buffers import BufferPool
from frontends.block.disk import Disk
from kernel.kernel import Kernel
from kernel.parking import waiter_factory
from kernel.xenbus.drivers import PeerGone
from tests.rig import MIB, Rig, memory_disk, running_rig
from tests.steps import State

pytestmark = pytest.mark.anyio


async def test_whoever_asks_for_too_much_waits_in_order(tmp_path: Path, isolation: str) -> None:

    async def use(kernel: Kernel, _state: State) -> None:
        pool = BufferPool(kernel, "test", waiter_factory(), limit=4)
        pool.grant_to(0)
        first = await pool.stage(3)
        assert pool.stage_one() is not None
        assert pool.stage_one() is None
        got: list[str] = []

        async def stage(name: str, count: int) -> None:
            taken = await pool.stage(count)
            got.append(name)
            pool.unstage(taken)

        async with anyio.create_task_group() as tasks:
            for name, count in (("large", 9), ("small", 1), ("middle", 3)):
                tasks.start_soon(stage, name, count)
                await anyio.wait_all_tasks_blocked()
            pool.unstage(first)
            await anyio.wait_all_tasks_blocked()
            assert got == []  # the large one comes first, and there is still somebody
            pool.unstage(first[:1])
        assert got[0] == "large"
        assert sorted(got) == ["large", "middle", "small"]
        pool.close()
        assert len(kernel.grants.ledger) == 0

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(use)


async def test_a_waiting_task_that_is_cancelled_holds_nobody_up(tmp_path: Path, isolation: str) -> None:

    async def use(kernel: Kernel, _state: State) -> None:
        pool = BufferPool(kernel, "test", waiter_factory(), limit=2)
        pool.grant_to(0)
        held = await pool.stage(2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.stage, 2)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        pool.unstage(held)
        with anyio.fail_after(5):
            pool.unstage(await pool.stage(2))
        pool.close()

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(use)


async def test_last_in_first_out(tmp_path: Path, isolation: str) -> None:
    """So that few pages are hot, and a backend's bound on mapped pages hurts little."""

    async def use(kernel: Kernel, _state: State) -> None:
        pool = BufferPool(kernel, "test", waiter_factory(), limit=100)
        pool.grant_to(0)
        (page,) = pool.take(1)
        pool.give([page])
        assert pool.take(1) == [page]
        assert pool.size == 32
        pool.close()

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(use)


async def distrust(rig: Rig, domid: int) -> None:
    """What a toolstack writes for a backend in a driver domain."""
    await rig.services.kernel.store.write(f"/local/domain/{domid}/device/vbd/51712/trusted", "0")


@pytest.mark.parametrize("trusted", [True, False])
async def test_an_untrusted_backend_sees_what_it_is_given_and_zeroes(
    tmp_path: Path, isolation: str, trusted: bool
) -> None:
    """Every page granted, once nothing is in flight (XSA-403)."""

    async def use(kernel: Kernel, _state: State) -> None:
        disk = await Disk.open(kernel, 51712)
        await disk.write(0, b"secret!!" * 64 * 300)
        assert (await disk.read(5, 40)).startswith(b"secret!!")
        await disk.read_many([(3, bytearray(512)), (4, bytearray(4096))])
        await disk.settled()
        pages = [
            kernel.memory.page(entry.pfn) for entry in kernel.grants.ledger if entry.owner == disk.device.path
        ]
        assert len(pages) > 60
        seen = sum(b"secret!!" in bytes(page) for page in pages)
        assert (seen == 0) is not trusted

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        if not trusted:
            await distrust(rig, guest.domid)
        await guest.run(use)


async def test_pages_that_were_freed_meanwhile_do_not_come_back(tmp_path: Path, isolation: str) -> None:
    """They may be somebody else's: they are neither zeroed nor handed out."""

    async def use(kernel: Kernel, _state: State) -> None:
        pool = BufferPool(kernel, "test", waiter_factory(), limit=8)
        pool.grant_to(0)
        pool.trusted = False
        one, others = pool.stage_one() or (await pool.stage(1))[0], await pool.stage(2)
        pool.close()
        one.view[:] = others[0].view[:] = b"\x55" * 4096
        pool.unstage_one(one)
        pool.unstage(others)
        assert one.view == others[0].view == b"\x55" * 4096
        assert not {one, *others} & set(await pool.stage(8))
        pool.close()

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(use)


async def test_a_pool_whose_disk_is_lost_grants_nothing(tmp_path: Path, isolation: str) -> None:

    async def use(kernel: Kernel, _state: State) -> None:
        pool = BufferPool(kernel, "test", waiter_factory(), limit=8)
        pool.grant_to(0)
        pool.close(PeerGone("device/vbd/1"))
        for _ in range(9):  # what was refused counts as staged no longer
            with pytest.raises(PeerGone, match="device/vbd/1"):
                await pool.stage(1)
        assert len(kernel.grants.ledger) == 0
        pool.open()
        pool.unstage(await pool.stage(8))
        pool.close()

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest() as guest:
        await guest.run(use)
