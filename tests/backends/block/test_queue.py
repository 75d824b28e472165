"""The backend's end of a ring: order, barriers, waiting stores, and when it sleeps."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import ByteSize

from backends.block import queue as queue_module
from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from backends.block.pages import GrantedPages, PageBudget
from backends.block.queue import BlockQueue
from backends.block.service import Service
from backends.block.stats import BlockStats
from kernel.grants import Grants
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing, FrontRing
from tests.backends.block.granting import FakeGrants
from tests.backends.block.stores import GatedStore

MIB = 1 << 20
READ, WRITE, BARRIER, FLUSH = 0, 1, 2, 3

pytestmark = pytest.mark.anyio


class SlowFlush(MemoryStore):
    """Plain reads and writes, and a flush that waits."""

    def open(self) -> None:
        super().open()
        self.gate = anyio.Event()
        self.calls: list[str] = []

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.calls.append(f"write {offset}")
        super().write(offset, buffers)

    async def flush(self) -> None:  # type: ignore[override]
        self.calls.append("flush")
        await self.gate.wait()
        self.calls.append("flushed")


class Served:
    """queue: under test. front: the frontend's end. bells: notifications of the backend."""

    def __init__(self, tasks: anyio.abc.TaskGroup, disk: OpenedStore, limit: int) -> None:
        self.memory = memoryview(bytearray(4096))
        self.words = self.memory[:64].cast("I")
        self.front = FrontRing([self.memory], 112)
        self.grants = FakeGrants(32)
        self.bells = 0
        self.broken: list[Exception] = []
        self.stats = BlockStats()
        self.queue = BlockQueue(
            BackRing.attach([self.memory], 112),
            GrantedPages(cast(Grants, self.grants), 1, PageBudget(), limit),
            Service(disk, self.stats),
            notify=self._bell,
            spawn=tasks.start_soon,
            broken=self.broken.append,
        )
        tasks.start_soon(self.queue.run)

    def _bell(self) -> None:
        self.bells += 1

    def put(self, *slots: bytes) -> bool:
        """Publishes requests, and rings the bell if the backend wants it; returns whether it did."""
        for slot in slots:
            self.front.put(slot)
        wanted = self.front.publish()
        if wanted:
            self.queue.notified()
        return wanted

    async def answers(self) -> list[int]:
        """Ids answered, once everything has come to rest."""
        await anyio.wait_all_tasks_blocked()
        return [blkif.Response.unpack(slot).id for slot in self.front.take_many()]


@asynccontextmanager
async def served(store: MemoryStore, limit: int = 64) -> AsyncIterator[Served]:
    """A queue that runs on an open store."""
    disk = await OpenedStore.open(store)
    async with anyio.create_task_group() as tasks:
        ring = Served(tasks, disk, limit)
        yield ring
        await ring.queue.close()
        assert ring.grants.mapped == {}
    await disk.close()


def config() -> MemoryStoreConfig:
    return MemoryStoreConfig(size=ByteSize(MIB))


def request(operation: int, request_id: int, sector: int = 0, *grefs: int) -> bytes:
    return blkif.Request(
        operation, 0, request_id, sector, tuple(blkif.Segment(g, 0, 7) for g in grefs)
    ).pack()


async def test_requests_are_begun_in_the_order_of_the_ring() -> None:
    """Quick ones, partial pages, many segments: a later write to the same place wins, a read sees the one before."""
    async with served(MemoryStore(config())) as ring:
        for index in range(8):
            ring.grants.memory[index][:] = bytes([index]) * 4096
        for _ in range(2):  # mapped for the occasion at first, kept then
            partial = blkif.Request(WRITE, 0, 2, 0, (blkif.Segment(1, 0, 3), blkif.Segment(2, 4, 7))).pack()
            ring.put(
                request(WRITE, 1, 0, 0),
                partial,
                request(READ, 3, 0, 10),
                request(WRITE, 4, 0, 3),
                request(READ, 5, 0, 11),
                request(WRITE, 6, 0, 4, 5),
                request(READ, 7, 0, 12),
            )
            assert await ring.answers() == [1, 2, 3, 4, 5, 6, 7]
            found = [ring.grants.memory[gref] for gref in (10, 11, 12)]
            assert found[0] == b"\x01" * 2048 + b"\x02" * 2048
            assert found[1] == b"\x03" * 4096
            assert found[2] == b"\x04" * 4096
        assert ring.stats.requests == {"read": 6, "write": 8}


async def test_large_requests_are_served_a_turn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the loop have theirs in between, and nothing is lost or put out of order."""
    monkeypatch.setattr(queue_module, "_PAGES_AT_ONCE", 4)
    async with served(MemoryStore(config())) as ring:
        ring.put(*(request(READ, number, 0, 0, 1, 2) for number in range(8)))
        at_once = [blkif.Response.unpack(slot).id for slot in ring.front.take_many()]
        assert at_once == [0, 1]
        assert at_once + await ring.answers() == list(range(8))


async def test_a_store_that_waits_serves_many_at_once_and_answers_as_they_end() -> None:
    store = GatedStore(config())
    async with served(store) as ring:
        ring.put(*(request(READ, index, index * 8, index) for index in range(10)))
        assert await ring.answers() == []
        assert len(store.begun) == 10
        store.gate.set()
        assert sorted(await ring.answers()) == list(range(10))


async def test_a_barrier_waits_for_all_before_it_and_all_behind_it_wait() -> None:
    store = GatedStore(config())
    async with served(store) as ring:
        ring.put(
            request(WRITE, 1, 0, 0),
            request(WRITE, 2, 8, 1),
            request(BARRIER, 3, 16, 2),
            request(WRITE, 4, 24, 3),
            request(BARRIER, 5),
            request(READ, 6, 0, 4),
        )
        ring.put(request(READ, 7, 0, 5))
        assert await ring.answers() == []
        assert sorted(store.begun) == ["write 0", "write 4096"]
        store.gate.set()
        assert await ring.answers() in ([1, 2, 3, 4, 5, 6, 7], [2, 1, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 7, 6])
        ended = [call for call in store.ended if not call.startswith("read")]
        assert sorted(ended[:2]) == ["write 0", "write 4096"]
        assert ended[2:] == ["flush", "write 8192", "flush", "write 12288", "flush"]
        assert ring.stats.requests == {"read": 2, "write": 3, "barrier": 2}


async def test_what_is_behind_a_barrier_waits_even_if_it_is_quick() -> None:
    store = SlowFlush(config())
    async with served(store) as ring:
        ring.put(request(WRITE, 1, 80, 0), request(WRITE, 2, 88, 1))  # maps the pages
        assert await ring.answers() == [1, 2]
        store.calls.clear()
        ring.put(
            request(BARRIER, 3, 0, 0), request(WRITE, 4, 8, 1), request(FLUSH, 5), request(WRITE, 6, 16, 0)
        )
        assert await ring.answers() == []
        assert store.calls == ["flush"]
        store.gate.set()
        assert sorted(await ring.answers()) == [3, 4, 5, 6]
        assert store.calls[:5] == ["flush", "flushed", "write 0", "flush", "flushed"]


async def test_a_plain_barrier_waits_for_what_is_in_flight() -> None:
    class SlowReads(MemoryStore):
        async def read(self, offset: int, buffers: Sequence[memoryview]) -> None:  # type: ignore[override]
            await gate.wait()

    gate = anyio.Event()
    async with served(SlowReads(config())) as ring:
        ring.put(
            request(READ, 1, 0, 0), request(BARRIER, 2), request(BARRIER, 3, 0, 1), request(WRITE, 4, 8, 2)
        )
        assert await ring.answers() == []
        gate.set()
        assert await ring.answers() == [1, 2, 3, 4]


async def test_what_comes_between_the_last_look_and_sleep_is_seen() -> None:
    """The frontend publishes while the backend arms its bell: without the final check nobody would ever ring."""
    async with served(MemoryStore(config())) as ring:
        await anyio.wait_all_tasks_blocked()
        rearm = ring.queue.ring.rearm
        slots = [request(READ, 2, 0, 0)]

        def late() -> bool:
            if slots:
                ring.front.put(slots.pop())
                ring.front.publish()
            return rearm()

        ring.queue.ring = cast(BackRing, _Watched(ring.queue.ring, rearm=late))
        ring.put(request(READ, 1, 0, 0))
        assert await ring.answers() == [1, 2]


async def test_a_flush_holds_nothing_up() -> None:
    """Reads and writes go on while it lasts, and it is answered when it has ended."""
    store = SlowFlush(config())
    async with served(store) as ring:
        ring.put(request(WRITE, 1, 0, 0), request(FLUSH, 2), request(WRITE, 3, 8, 1), request(READ, 4, 0, 2))
        assert sorted(await ring.answers()) == [1, 3, 4]
        assert store.calls in (["write 0", "flush", "write 4096"], ["write 0", "write 4096", "flush"])
        store.gate.set()
        assert await ring.answers() == [2]


async def test_a_flush_with_data_is_a_write_that_lasts() -> None:
    store = SlowFlush(config())
    async with served(store) as ring:
        ring.put(request(FLUSH, 1, 0, 3))
        assert await ring.answers() == []
        store.gate.set()
        assert await ring.answers() == [1]
        assert store.calls == ["flush", "flushed", "write 0", "flush", "flushed"]


async def test_it_asks_for_a_bell_before_it_sleeps_and_needs_none_while_it_looks() -> None:
    async with served(MemoryStore(config())) as ring:
        await anyio.wait_all_tasks_blocked()
        assert ring.put(request(READ, 1, 0, 0))
        assert not ring.put(request(READ, 2, 0, 0))
        for _ in range(3):
            await checkpoint()
        assert not ring.put(request(READ, 3, 0, 0))
        assert await ring.answers() == [1, 2, 3]
        assert ring.put(request(READ, 4, 0, 0))
        assert await ring.answers() == [4]


async def test_transient_pages_are_unmapped_before_the_answer_is_shown() -> None:
    async with served(MemoryStore(config()), limit=0) as ring:
        mapped: list[int] = []
        publish = ring.queue.ring.publish

        def watched() -> bool:
            mapped.append(len(ring.grants.mapped))
            return publish()

        ring.queue.ring = cast(BackRing, _Watched(ring.queue.ring, publish=watched))
        ring.put(*(request(READ, index, 0, index) for index in range(9)), request(WRITE, 9, 0, *range(11)))
        assert len(await ring.answers()) == 10
        assert mapped == [0]
        assert [kind for kind, _ in ring.grants.calls] == ["map", "map", "unmap"]


class _Watched:
    """A ring some of whose methods are others."""

    def __init__(self, ring: BackRing, **methods: object) -> None:
        self._ring = ring
        self.__dict__ |= methods

    def __getattr__(self, name: str) -> object:
        return getattr(self._ring, name)


async def test_a_violation_stops_the_queue_and_is_told_once() -> None:
    async with served(MemoryStore(config())) as ring:
        ring.words[0] = 1000
        ring.queue.notified()
        ring.queue.notified()
        assert await ring.answers() == []
        (violation,) = ring.broken
        assert isinstance(violation, PeerViolation)


async def test_a_bug_of_ours_ends_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(MemoryStore(config())) as ring:

        def broken(run: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(ring.queue, "_serve", broken)
        ring.put(request(READ, 1, 0, 0))
        await anyio.wait_all_tasks_blocked()
        assert [type(error) for error in ring.broken] == [ZeroDivisionError]


async def test_closing_waits_for_what_is_in_flight() -> None:
    store = GatedStore(config())
    async with served(store) as ring:
        ring.put(request(READ, 1, 0, 0))
        await anyio.wait_all_tasks_blocked()
        closed = anyio.Event()

        async def close() -> None:
            await ring.queue.close()
            closed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            assert not closed.is_set()
            assert ring.grants.mapped
            store.gate.set()
        assert ring.grants.mapped == {}
        assert await ring.answers() == [1]


async def test_plain_methods_that_return_awaitables_are_found_out() -> None:
    class Liar(MemoryStore):
        def flush(self):  # type: ignore[no-untyped-def, override]
            return checkpoint()

    async with served(Liar(config())) as ring:
        ring.put(request(FLUSH, 1))
        assert await ring.answers() == [1]
        assert ring.stats.errors == {"store broken": 1}


class Watched(MemoryStore):
    """seen: rsp_prod and the notifications so far when a part of a run is served. fails_at: the part that raises."""

    fails_at = 0

    def open(self) -> None:
        super().open()
        self.seen: list[tuple[int, int]] = []
        self.ring: Served | None = None

    def transfer_pages(
        self, transfers: Iterable[tuple[int, int, Sequence[memoryview]]]
    ) -> dict[int, Exception]:
        if self.ring is not None:
            self.seen.append((self.ring.words[2], self.ring.bells))
            if len(self.seen) == self.fails_at:
                raise ZeroDivisionError
        return super().transfer_pages(transfers)


async def full_ring_served(store: Watched, ring: Served) -> None:
    """A ring full of quick requests, of which the frontend waits for the first answer."""
    ring.put(*(request(READ, number, 0, number % 8) for number in range(32)))  # maps the pages
    assert len(await ring.answers()) == 32
    assert not ring.front.rearm()
    ring.bells, store.ring = 0, ring
    ring.put(*(request(READ, number, 0, number % 8) for number in range(32)))


async def test_a_full_ring_is_answered_in_parts_and_who_sleeps_is_woken_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "_SMALLEST_PART", 16)
    store = Watched(config())
    async with served(store) as ring:
        await full_ring_served(store, ring)
        assert await ring.answers() == list(range(32))
        assert store.seen == [(32, 0), (48, 0)]
        assert ring.bells == 1


async def test_a_ring_that_breaks_leaves_nobody_asleep_over_answers_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "_SMALLEST_PART", 16)
    store = Watched(config())
    store.fails_at = 2
    async with served(store) as ring:
        await full_ring_served(store, ring)
        assert await ring.answers() == list(range(16))
        assert [type(error) for error in ring.broken] == [ZeroDivisionError]
        assert ring.bells == 1
