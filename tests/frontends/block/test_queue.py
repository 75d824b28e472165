"""The queue: what goes out together, what comes back, and what a lying backend gets."""

from typing import cast

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontends.block.submissions import Caller, Pages, Slots
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import READ_HEAD, WRITE_HEAD, page_word
from ringbuffers.ring import FrontRing
from tests.frontends.block.rings import Played, waiter

pytestmark = pytest.mark.anyio

READ, WRITE = blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE


def pages(count: int, operation: int = READ, first: int = 0) -> tuple[Caller, Pages]:
    """A caller with requests of whole pages: sectors are 8 apart, grefs count up from 100."""
    caller = Caller(operation, count, waiter())
    sectors = range(first * 8, (first + count) * 8, 8)
    words = [page_word(100 + first + index) for index in range(count)]
    return caller, Pages(caller, operation | 1 << 8, sectors, words)


async def test_a_batch_fills_the_ring_and_follows_as_answers_make_room() -> None:
    played = Played()
    played.connect()
    caller, batch = pages(100)
    played.queue.submit(batch)
    seen: list[blkif.AnyRequest] = []
    assert played.bells == 1
    while not caller.ended:
        requests = played.answer_all()
        assert len(requests) <= 32
        seen += requests
    assert [request.id for request in seen] == list(range(100))
    for index, request in enumerate(seen):
        assert request == blkif.Request(READ, 0, index, index * 8, (blkif.Segment(100 + index, 0, 7),))
    assert played.stats.requests == {"read": 100}
    assert played.stats.high_water == 32
    assert played.queue.is_settled
    await caller.waiter.wait()


async def test_what_tasks_submit_in_one_pass_goes_out_together() -> None:
    played = Played()
    played.connect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queue.run)
        callers = [Caller(index % 2, 1, waiter()) for index in range(10)]
        for index, caller in enumerate(callers):
            head = WRITE_HEAD if index % 2 else READ_HEAD
            played.queue.submit_page(caller, head, index, page_word(7, 1 + index % 8))
        assert played.back.unconsumed == 0
        await anyio.wait_all_tasks_blocked()
        assert (played.back.unconsumed, played.bells) == (10, 1)
        requests = played.answer_all()
        for index, request in enumerate(requests):
            assert request == blkif.Request(index % 2, 0, index, index, (blkif.Segment(7, 0, index % 8),))
        assert all(caller.ended for caller in callers)
        assert played.stats.requests == {"read": 5, "write": 5}
        tasks.cancel_scope.cancel()


async def test_it_sleeps_with_the_bell_armed_and_without_missing_anything() -> None:
    """Answers are taken without a bell while the queue looks; once it sleeps, the backend is asked for one."""
    played = Played()
    played.connect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queue.run)
        caller, batch = pages(2)
        played.queue.submit(batch)
        await anyio.wait_all_tasks_blocked()
        first, second = played.taken()
        played.back.put(blkif.Response(first.id, READ, 0).pack())
        assert played.back.publish()  # it sleeps: ring the bell
        played.queue.notified()
        assert caller.remaining == 1
        played.back.put(blkif.Response(second.id, READ, 0).pack())
        assert not played.back.publish()  # it has been woken, and looks by itself
        with anyio.fail_after(5):
            await caller.waiter.wait()
        tasks.cancel_scope.cancel()


async def test_a_refused_request_is_told_from_the_others() -> None:
    played = Played()
    played.connect()
    caller, batch = pages(40)
    played.queue.submit(batch)
    while not caller.ended:
        played.answer_all(lambda request: -1 if request.id in (3, 35) else -2 if request.id == 7 else 0)
    assert caller.failures is not None
    assert [(slot[8], status) for slot, status in caller.failures] == [(3, -1), (7, -2), (35, -1)]
    assert [slot[16:18] for slot, _ in caller.failures] == [bytes([n & 255, n >> 8]) for n in (24, 56, 280)]
    assert played.stats.errors == 3


async def test_an_indirect_request_may_be_answered_under_either_name() -> None:
    played = Played()
    played.connect()
    for operation in (WRITE, blkif.BLKIF_OP_INDIRECT):
        caller = Caller(WRITE, 1, waiter())
        pack = [lambda request_id: blkif.IndirectRequest(WRITE, 20, request_id, 0, 0, (9,)).pack()]
        played.queue.submit(Slots(caller, pack))
        (request,) = played.taken()
        played.answer((request.id, operation, 0))
        assert caller.ended
        assert caller.failures is None
    assert played.broken == []


@pytest.mark.parametrize(
    ("what", "lies"),
    [
        ("id of a response", [(99, READ, 0)]),
        ("id of a response", [(1 << 63, READ, 0)]),
        ("id of a response", [(0, READ, 0), (0, READ, 0)]),
        ("id of a response", [(0, READ, 0), (1, READ, 0), (1, READ, 0), (2, READ, 0)]),
        ("operation of a response", [(0, WRITE, 0)]),
        ("operation of a response", [(0, READ, 0), (1, 77, 0), (2, READ, 0)]),
        ("status of a response", [(0, READ, 1)]),
        ("status of a response", [(0, READ, -3)]),
        ("status of a response", [(2, READ, 0), (1, READ, -32768)]),
    ],
)
async def test_an_answer_to_nothing_of_ours_ends_the_connection_once(
    what: str, lies: list[tuple[int, int, int]]
) -> None:
    played = Played()
    played.connect()
    caller, batch = pages(10)
    played.queue.submit(batch)
    played.taken()
    played.answer(*lies)
    assert [violation.what for violation in played.broken] == [what]
    played.answer((5, READ, 0))
    assert len(played.broken) == 1
    assert not caller.ended
    # Every request that was not answered rightly is still known, and can be sent again or failed.
    left = caller.remaining
    played.connect()
    again = played.answer_all()
    assert len(again) == left
    assert caller.ended


@pytest.mark.parametrize("lie", [11, 12, 1 << 31, 0xFFFF_FFFF])
async def test_a_producer_index_out_of_bounds(lie: int) -> None:
    played = Played()
    played.connect()
    _, batch = pages(10)
    played.queue.submit(batch)
    played.words[2] = lie
    played.queue.notified()
    assert [violation.what for violation in played.broken] == ["rsp_prod"]
    played.queue.notified()
    assert len(played.broken) == 1


async def test_a_new_ring_gets_what_the_old_one_left_unanswered_in_its_order() -> None:
    played = Played(pages=2)
    played.connect()
    caller, batch = pages(100)
    one = Caller(WRITE, 1, waiter())
    played.queue.submit(batch)
    played.queue.submit_page(one, WRITE_HEAD, 5, page_word(1))
    first = played.taken()
    assert len(first) == 64
    played.answer(*((request.id, READ, 0) for request in first[:50:2]))
    played.taken()
    played.queue.disconnect()
    played.queue.notified()
    played.pages = 1  # the new backend takes a smaller ring
    played.connect()
    seen: list[blkif.AnyRequest] = []
    while not (caller.ended and one.ended):
        seen += played.answer_all()
    expected = [index for index in range(100) if index >= 50 or index % 2] + [100]
    assert [request.id for request in seen] == expected
    for request in seen[:-1]:
        assert isinstance(request, blkif.Request)
        assert (request.sector_number, request.segments[0].gref) == (request.id * 8, 100 + request.id)
    assert played.queue.is_settled
    assert played.stats.reconnections == 1


async def test_requests_can_be_ended_with_an_error() -> None:
    played = Played()
    played.connect()
    first, batch = pages(50)
    second = Caller(READ, 1, waiter())
    gave_back: list[str] = []
    first.abandoned = lambda: gave_back.append("first")
    played.queue.submit(batch)
    played.queue.submit_page(second, READ_HEAD, 0, page_word(1))
    played.queue.disconnect()
    played.queue.fail(ZeroDivisionError("gone"))
    assert gave_back == ["first"]
    with pytest.raises(ZeroDivisionError):
        await second.waiter.wait()
    assert played.queue.is_settled
    await played.queue.settled()


async def test_the_latency_is_of_one_request_in_each_run() -> None:
    played = Played()
    played.connect()
    for turn in range(5):
        caller, batch = pages(3)
        played.queue.submit(batch)
        played.now_ns += 1000 * (turn + 1)
        played.answer_all()
        assert caller.ended
    assert played.stats.latency.samples == 5
    assert played.stats.latency.max_ns == 5000


async def test_what_a_backend_never_answers_is_not_kept_for_ever_with_all_that_follows() -> None:
    """One request without an answer, and a hundred thousand others: the slots of the others are forgotten."""
    played = Played()
    played.connect()
    stuck, batch = pages(1)
    played.queue.submit(batch)
    (held,) = played.taken()
    for _ in range(3500):
        caller, batch = pages(30)
        played.queue.submit(batch)
        played.answer_all()
        assert caller.ended
    flight = played.queue._flight
    assert sum(len(run.ids) for run in flight._runs) <= 4096
    played.queue.disconnect()
    played.connect()
    assert played.answer_all() == [held]
    assert stuck.ended


async def test_what_comes_between_the_last_look_and_sleep_is_seen() -> None:
    """The backend answers while the frontend arms its bell: without the final check nobody would ever ring."""
    played = Played()
    played.connect()
    ring = played.queue._ring
    assert ring is not None

    class Late:
        """The ring, on which an answer appears at the last moment."""

        def __getattr__(self, name: str) -> object:
            return getattr(ring, name)

        def rearm(self) -> bool:
            for request in played.taken():
                played.back.put(blkif.Response(request.id, READ, 0).pack())
            played.back.publish()
            return ring.rearm()

    played.queue._ring = cast(FrontRing, Late())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queue.run)
        caller, batch = pages(1)
        played.queue.submit(batch)
        with anyio.fail_after(5):
            await caller.waiter.wait()
        tasks.cancel_scope.cancel()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
async def test_every_request_is_answered_once_whatever_the_order(data: st.DataObject) -> None:
    """Batches and single requests of all sizes; answers in any order and any portions; the ring is never overfilled."""
    played = Played()
    played.connect()
    callers: list[Caller] = []
    open_requests: list[blkif.AnyRequest] = []
    submitted = 0
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            count = data.draw(st.integers(1, 50))
            caller, batch = pages(count)
            played.queue.submit(batch)
        else:
            count = 1
            caller = Caller(WRITE, 1, waiter())
            played.queue.submit_page(caller, WRITE_HEAD, 1, page_word(1))
            played.queue.send()
        callers.append(caller)
        submitted += count
        open_requests += played.taken()
        portion = data.draw(st.integers(0, len(open_requests)))
        order = data.draw(st.permutations(open_requests))
        played.answer(*((request.id, request.operation, 0) for request in order[:portion]))
        open_requests = list(order[portion:])
    while open_requests or not played.queue.is_settled:
        open_requests += played.taken()
        played.answer(*((request.id, request.operation, 0) for request in open_requests))
        open_requests = []
    assert all(caller.ended and caller.remaining == 0 for caller in callers)
    assert sum(played.stats.requests.values()) == submitted
    assert played.broken == []


async def test_a_violation_is_reported_to_whoever_runs_the_device() -> None:
    played = Played()
    played.connect()
    played.words[2] = 5
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queue.run)
        _, batch = pages(1)
        played.queue.submit(batch)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert isinstance(played.broken[0], PeerViolation)
