"""Several queues: where requests go, and that none is lost when there are fewer queues than before."""

from collections import Counter

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.block.queues import RequestQueues
from frontends.block.stats import DiskStats
from frontends.block.submissions import Caller, Pages, Slots
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import READ_HEAD, page_word
from ringbuffers.ring import BackRing, FrontRing
from tests.frontends.block.rings import SLOT, waiter

pytestmark = pytest.mark.anyio

READ, WRITE = blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE
RING = 32


class Played:
    """queues: under test, with the backend played by the test. backs: its ends. bells: notifications by ring."""

    def __init__(self, count: int) -> None:
        self.stats = DiskStats()
        self.broken: list[PeerViolation] = []
        self.queues = RequestQueues(count, self.stats, lambda: 0, self.broken.append)
        self.backs: list[BackRing] = []
        self.bells: Counter[int] = Counter()

    def connect(self, count: int) -> None:
        """New rings, as after a handshake."""
        memory = [memoryview(bytearray(4096)) for _ in range(count)]
        rings = [FrontRing([page], SLOT) for page in memory]
        self.backs = [BackRing.attach([page], SLOT) for page in memory]
        self.queues.connect(
            [(ring, lambda index=index: self.bells.update([index])) for index, ring in enumerate(rings)]
        )

    def reconnect(self, count: int) -> None:
        """A backend that has gone and come back."""
        self.queues.disconnect()
        self.connect(count)

    def taken(self, index: int) -> list[blkif.AnyRequest]:
        """What the frontend has published on a ring since."""
        return [blkif.unpack_request(slot) for slot in self.backs[index].take_many()]

    def answer(self, index: int, *responses: tuple[int, int, int]) -> None:
        """Ids, operations and statuses, published and notified."""
        for response in responses:
            self.backs[index].put(blkif.Response(*response).pack())
        self.backs[index].publish()
        self.queues.all[index].notified()

    def answer_all(self, index: int) -> list[blkif.AnyRequest]:
        """Answers what was taken from a ring, and wants to be told of more; returns it."""
        requests = self.taken(index)
        self.backs[index].rearm()
        self.answer(index, *((request.id, request.operation, 0) for request in requests))
        return requests

    def submit(self, count: int, first: int = 0) -> Caller:
        """A batch of reads of whole pages: sectors are 8 apart, references count up from 100."""
        caller = Caller(READ, count, waiter())
        sectors = range(first * 8, (first + count) * 8, 8)
        words = [page_word(100 + first + index) for index in range(count)]
        self.queues.submit(Pages(caller, READ_HEAD, sectors, words))
        return caller

    def submit_page(self, sector: int = 0) -> Caller:
        """What a task asks for."""
        caller = Caller(READ, 1, waiter())
        self.queues.submit_page(caller, READ_HEAD, sector, page_word(100))
        return caller

    @property
    def waiting(self) -> list[int]:
        """How many requests wait on each ring for the backend to take them."""
        return [back.unconsumed for back in self.backs]


async def test_whoever_asks_for_one_thing_after_the_other_stays_on_the_first_queue() -> None:
    played = Played(4)
    played.connect(4)
    for turn in range(5):
        caller = played.submit(3)
        assert played.waiting == [3, 0, 0, 0]
        assert len(played.answer_all(0)) == 3
        assert caller.ended, turn
    assert played.bells[0] > 0
    assert not played.bells.keys() - {0}


async def test_a_batch_stays_together_and_goes_where_the_fewest_are() -> None:
    played = Played(3)
    played.connect(3)
    for count, expected in ((5, [5, 0, 0]), (3, [5, 3, 0]), (9, [5, 3, 9]), (4, [5, 7, 9]), (1, [6, 7, 9])):
        before = sum(played.bells.values())
        played.submit(count)
        assert played.waiting == expected
        assert sum(played.bells.values()) - before <= 1
    played.answer_all(2)
    played.submit(100)
    assert played.waiting == [6, 7, RING]
    played.submit(1)  # there are 68 more that wait for room on the last
    assert played.waiting == [7, 7, RING]
    assert played.stats.notifications_sent == sum(played.bells.values())
    assert (played.stats.high_water, played.stats.ring_size) == (RING, RING)
    before = played.stats.notifications_sent, played.stats.notifications_suppressed
    played.reconnect(2)
    assert played.stats.notifications_sent == sum(played.bells.values()) > before[0]
    assert played.stats.notifications_suppressed >= before[1]


async def test_what_tasks_ask_for_in_one_pass_costs_one_notification() -> None:
    played = Played(4)
    played.connect(4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queues.run)
        for turn in range(3):
            played.submit(2)
            callers = [played.submit_page(sector) for sector in range(10)]
            await anyio.wait_all_tasks_blocked()
            assert played.waiting == [2, 10, 0, 0]
            assert (played.bells[0], played.bells[1]) == (turn + 1, turn + 1)
            for index in (0, 1):
                played.answer_all(index)
            assert all(caller.ended for caller in callers)
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_more_than_a_ring_holds_is_shared_out() -> None:
    """What would have to wait for room goes to the next queue."""
    played = Played(3)
    played.connect(3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queues.run)
        for sector in range(2 * RING + 5):
            played.submit_page(sector)
        await anyio.wait_all_tasks_blocked()
        assert played.waiting == [RING, RING, 5]
        tasks.cancel_scope.cancel()


async def test_one_queue_is_used_without_a_step_between() -> None:
    """Nothing is paid for queues that there are not."""
    played = Played(4)
    for count in (1, 3, 1):
        played.reconnect(count)
        direct = played.queues.submit_page == played.queues.all[0].submit_page
        assert direct == (count == 1)


async def test_fewer_queues_than_before_take_over_what_has_no_answer() -> None:
    """In flight, waiting for room, gathered and not sent: each is sent again, once, and counted once."""
    played = Played(4)
    played.connect(4)
    callers = [played.submit(count, first) for count, first in ((40, 0), (10, 100), (33, 200), (20, 300))]
    played.answer(1, *((request.id, READ, 0) for request in played.taken(1)[:4]))
    flush = Caller(blkif.BLKIF_OP_FLUSH_DISKCACHE, 1, waiter())
    packer = lambda request_id: blkif.Request(3, 0, request_id, 0, ()).pack()  # noqa: E731
    played.queues.submit(Slots(flush, [packer]))
    callers += [flush, played.submit_page(4000)]
    assert played.stats.requests == {
        "read": 32 + 10 + 32 + 20,
        "flush": 1,
    }  # what was not sent is not counted
    played.reconnect(2)
    assert sum(played.waiting) > 0
    seen: list[blkif.AnyRequest] = []
    for _ in range(20):
        played.queues.all[0].send()
        seen += played.answer_all(0) + played.answer_all(1)
    assert all(caller.ended and caller.failures is None for caller in callers)
    reads = Counter(
        request.sector_number for request in seen if isinstance(request, blkif.Request) and request.segments
    )
    expected = [*range(40), *range(104, 110), *range(200, 233), *range(300, 320), 500]
    assert reads == Counter(sector * 8 for sector in expected)
    for request in seen:
        if isinstance(request, blkif.Request) and request.segments and request.sector_number < 4000:
            assert request.segments == (blkif.Segment(100 + request.sector_number // 8, 0, 7),)
    assert played.stats.requests == {"read": 40 + 10 + 33 + 20 + 1, "flush": 1}
    assert played.queues.is_settled
    assert (played.stats.queues, played.stats.reconnections) == (2, 1)


async def test_what_was_handed_over_is_refused_to_whom_it_belongs() -> None:
    played = Played(2)
    played.connect(2)
    callers = [played.submit(2), played.submit(2, 50)]
    played.reconnect(1)
    requests = played.taken(0)
    assert [request.id for request in requests] == [0, 1, 2, 3]
    played.answer(0, *((request.id, READ, -(request.id == 3)) for request in requests))
    assert callers[0].failures is None
    assert callers[1].failures is not None
    ((slot, status),) = callers[1].failures
    assert (int.from_bytes(slot[16:24], "little"), status) == (51 * 8, -1)


async def test_everybody_is_told_when_it_is_over() -> None:
    played = Played(3)
    played.connect(3)
    callers = [played.submit(40), played.submit(2), played.submit(50), played.submit_page()]
    played.reconnect(2)
    played.queues.disconnect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(played.queues.settled)
        await anyio.wait_all_tasks_blocked()
        played.queues.fail(KeyError("gone"))
    for caller in callers:
        with pytest.raises(KeyError):
            await caller.waiter.wait()
    assert played.queues.is_settled


async def test_an_answer_on_another_ring_answers_nothing() -> None:
    """And a backend that lies on one ring gets no more requests on any."""
    played = Played(2)
    played.connect(2)
    first, second = played.submit(1), played.submit(1)
    played.taken(0)
    (request,) = played.taken(1)
    played.answer(1, (request.id, READ, 0))
    assert second.ended
    assert not first.ended
    played.submit(1)
    played.taken(1)
    played.answer(1, (0, READ, 0))  # the id that is in flight on the other ring
    assert [violation.what for violation in played.broken] == ["id of a response"]
    for _ in range(2):
        played.submit(3)
    assert played.waiting == [0, 0]
    played.queues.all[0].notified()
    assert not first.ended


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.integers(1, 4),
    st.lists(
        st.one_of(
            st.tuples(st.just("batch"), st.integers(1, 70)),
            st.tuples(st.just("page"), st.just(1)),
            st.tuples(st.just("answer"), st.integers(0, 3)),
            st.tuples(st.just("reconnect"), st.integers(1, 4)),
        ),
        max_size=40,
    ),
)
def test_every_request_is_answered_once_whatever_happens(count: int, steps: list[tuple[str, int]]) -> None:
    """A model: what was asked for, less what was answered; connections come back with any number of queues."""

    async def play() -> None:
        played = Played(count)
        played.connect(count)
        callers: list[Caller] = []
        for what, number in steps:
            match what:
                case "batch":
                    callers.append(played.submit(number))
                case "page":
                    callers.append(played.submit_page())
                case "answer":
                    played.answer_all(number % len(played.backs))
                case "reconnect":
                    played.reconnect(min(number, count))
            asked = sum(caller.remaining for caller in callers)
            assert sum(queue.unanswered() for queue in played.queues.all) == asked
            assert played.queues.is_settled == (asked == 0)
        while not played.queues.is_settled:
            for index in range(len(played.backs)):
                played.queues.all[index].send()
                played.answer_all(index)
        assert all(caller.ended for caller in callers)
        assert played.stats.requests.get("read", 0) == sum(
            number for what, number in steps if what in ("batch", "page")
        )
        assert played.broken == []

    anyio.run(play)
