import mmap

import pytest

from ringbuffers.errors import PeerViolation, RingFull, RingMisuse
from ringbuffers.ring import BackRing, FrontRing
from ringbuffers.shared_ring import PrivateIndices
from tests.ringbuffers.pairs import SHAPES, SLOT, STARTS, Pair, new_pair, run, shared_pages, slot


@pytest.fixture(params=STARTS, ids=hex)
def start(request: pytest.FixtureRequest) -> int:
    """The index that the ring stands at when the test begins."""
    value: int = request.param
    return value


@pytest.fixture(params=SHAPES, ids=str)
def pair(request: pytest.FixtureRequest, start: int) -> Pair:
    """A ring of every shape from every start."""
    return new_pair(start, request.param)


def ask(pair: Pair, count: int) -> None:
    """Put `count` requests, publish them, and have the backend take them."""
    pair.front.put_run(run(0, count))
    pair.front.publish()
    assert len(pair.back.take_many()) == count


def test_a_new_ring_has_the_header_of_ring_h() -> None:
    pages = shared_pages((2,), filler=0xAA)
    FrontRing(pages, SLOT)
    assert bytes(pages[0][:64]) == bytes([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]) + bytes(48)
    assert bytes(pages[0][64:]) == b"\xaa" * (8192 - 64)


def test_attaching_does_not_write() -> None:
    pages = shared_pages()
    FrontRing(pages, SLOT)
    before = bytes(pages[0])
    BackRing.attach(pages, SLOT)
    BackRing.attach(pages, SLOT, resume=True)
    FrontRing.attach(pages, SLOT, PrivateIndices(0, 0))
    assert bytes(pages[0]) == before


def test_slots_travel_both_ways_in_order(pair: Pair) -> None:
    size = pair.front.size
    for first in (0, size, 2 * size - 3):
        pair.front.put_run(run(first, size))
        pair.front.publish()
        assert pair.back.take_run() == run(first, size)
        pair.back.put_run(run(first + 1, size))
        pair.back.publish()
        assert pair.front.take_run() == run(first + 1, size)


def test_single_slots_and_runs_are_the_same_slots(pair: Pair) -> None:
    front, back = pair.front, pair.back
    for number in range(front.size):
        front.put(slot(number))
    front.publish()
    assert back.take_run(5) == run(0, 5)
    assert [back.take() for _ in range(front.size - 5)] == [slot(n) for n in range(5, front.size)]
    assert back.take() is None
    back.put_many([slot(n) for n in range(front.size - 1)])
    back.put(slot(front.size - 1))
    back.publish()
    assert front.take() == slot(0)
    assert front.take_many(3) == [slot(1), slot(2), slot(3)]
    assert front.take_many() == [slot(n) for n in range(4, front.size)]
    assert front.take_many() == []
    assert front.take_run() == b""


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_takes_nothing(start: int, limit: int) -> None:
    pair = new_pair(start)
    pair.front.put(slot(1))
    pair.front.publish()
    assert pair.back.take_run(limit) == b""
    assert pair.back.take_many(limit) == []
    assert pair.back.take() == slot(1)


def test_nothing_is_visible_before_it_is_published(start: int) -> None:
    pair = new_pair(start)
    pair.front.put(slot(1))
    assert pair.back.take() is None
    assert pair.back.unconsumed == 0
    pair.front.publish()
    assert pair.back.unconsumed == 1
    assert pair.back.take() == slot(1)
    pair.back.put(slot(2))
    assert pair.front.take() is None
    assert pair.front.pending == 0
    pair.back.publish()
    assert pair.front.pending == 1


def test_a_full_ring_takes_no_request_and_stores_none(pair: Pair) -> None:
    front, size = pair.front, pair.front.size
    front.put_run(run(0, size - 2))
    assert front.free == 2
    with pytest.raises(RingFull) as caught:
        front.put_many([slot(9)] * 3)
    assert (caught.value.wanted, caught.value.free) == (3, 2)
    front.put_run(run(size - 2, 2))
    with pytest.raises(RingFull):
        front.put(slot(9))
    assert front.free == 0
    front.publish()
    assert pair.back.take_run() == run(0, size)


def test_a_slot_is_free_when_its_response_is_taken(pair: Pair) -> None:
    front, back, size = pair.front, pair.back, pair.front.size
    ask(pair, size)
    back.put_run(run(0, 3))
    back.publish()
    assert front.free == 0
    front.take()
    assert front.free == 1
    front.take_many()
    assert front.free == 3
    assert front.in_flight == size - 3


def test_a_backend_answers_only_what_it_took(start: int) -> None:
    pair = new_pair(start)
    with pytest.raises(RingMisuse, match="number of responses"):
        pair.back.put(slot(0))
    ask(pair, 2)
    with pytest.raises(RingMisuse) as caught:
        pair.back.put_run(run(0, 3))
    assert caught.value.found == 3
    pair.back.put_run(run(0, 2))
    with pytest.raises(RingMisuse):
        pair.back.put(slot(0))
    pair.back.publish()
    assert pair.front.take_run() == run(0, 2)


def test_short_slots_are_padded_with_zeroes(pair: Pair) -> None:
    ask(pair, 3)  # the slots hold requests now
    pair.back.put(b"ab")
    pair.back.put_many([b"", b"cd"])
    pair.back.publish()
    assert pair.front.take_many() == [b"ab" + bytes(SLOT - 2), bytes(SLOT), b"cd" + bytes(SLOT - 2)]


def test_slots_may_come_in_any_bytes_like(start: int) -> None:
    pair = new_pair(start)
    pair.front.put(bytearray(slot(1)))
    pair.front.put(memoryview(slot(2)))
    pair.front.put(memoryview(b"short"))
    pair.front.put_many([bytearray(slot(3)), memoryview(slot(4))])
    pair.front.put_run(memoryview(run(5, 2)))
    pair.front.publish()
    assert pair.back.take_many() == [slot(1), slot(2), b"short".ljust(SLOT, b"\0"), *map(slot, range(3, 7))]


def test_what_is_no_slot_is_refused_and_nothing_is_put(start: int) -> None:
    front = new_pair(start).front
    with pytest.raises(RingMisuse, match="bytes of a slot"):
        front.put(bytes(SLOT + 1))
    with pytest.raises(RingMisuse, match="bytes of a slot"):
        front.put_many([slot(0), bytes(SLOT + 1)])
    with pytest.raises(RingMisuse, match="multiple of slot_size"):
        front.put_run(bytes(SLOT * 2 - 1))
    front.put_many([])
    front.put_run(b"")
    assert front.in_flight == front.put_total == 0
    assert not front.publish()


def test_the_first_slot_after_an_announced_sleep_notifies(start: int) -> None:
    front, back, _ = new_pair(start)
    for _ in range(2 * front.size):
        assert not back.rearm()
        front.put(slot(0))
        assert front.publish()  # the backend sleeps
        front.put(slot(0))
        assert not front.publish()  # it was told already
        assert back.rearm()  # there is work: it does not sleep
        assert not front.rearm()
        back.take_many()
        back.put(slot(0))
        assert back.publish()
        back.put(slot(0))
        assert not back.publish()
        front.take_many()
    assert front.notifications_sent == back.notifications_sent == 2 * front.size
    assert front.notifications_suppressed == back.notifications_suppressed == 2 * front.size


def test_a_batch_that_crosses_the_event_index_notifies(start: int) -> None:
    front, _, words = new_pair(start)
    words[1] = (start + 3) % 2**32  # the backend wants to hear of the third request
    front.put_run(run(0, 2))
    assert not front.publish()
    front.put_run(run(0, 5))
    assert front.publish()
    front.put_run(run(0, 5))
    assert not front.publish()


def test_publishing_nothing_neither_notifies_nor_counts(start: int) -> None:
    front, back, words = new_pair(start)
    front.put(slot(0))
    front.publish()
    before = bytes(words)
    assert not front.publish()
    assert not back.publish()
    assert bytes(words) == before
    assert front.notifications_sent + front.notifications_suppressed == 1


def test_the_ring_counts(start: int) -> None:
    front, back, _ = new_pair(start)
    front.put_run(run(0, 20))
    front.publish()
    back.take_run(12)
    back.put_run(run(0, 5))
    assert (front.in_flight, back.in_flight) == (20, 12)
    back.publish()
    assert (front.in_flight, back.in_flight) == (20, 7)
    front.take_run()
    front.put(slot(0))
    front.publish()
    back.take_run()
    assert (front.in_flight, back.in_flight) == (16, 16)
    back.put_run(run(0, 16))
    back.publish()
    assert (front.high_water, back.high_water) == (20, 16)
    assert (front.put_total, front.taken) == (21, 5)
    assert (back.put_total, back.taken) == (21, 21)


def test_a_frontend_attaches_again_with_its_saved_indices(pair: Pair) -> None:
    front, back = pair.front, pair.back
    ask(pair, 7)
    back.put_run(run(0, 5))
    back.publish()
    assert front.take_run(2) == run(0, 2)
    front.put(slot(50))  # never published, so not part of what is saved
    saved = front.indices
    again = FrontRing.attach(front._memory._extents, SLOT, saved)
    assert again.in_flight == 5
    assert again.indices == saved
    assert again.take_run() == run(2, 3)
    again.put(slot(60))
    again.publish()
    assert back.take_run() == slot(60)


def test_saved_indices_must_fit_the_ring() -> None:
    with pytest.raises(RingMisuse, match="saved indices"):
        FrontRing.attach(shared_pages(), SLOT, PrivateIndices(33, 0))


def test_a_backend_resumes_behind_the_last_response(pair: Pair) -> None:
    front, back = pair.front, pair.back
    front.put_run(run(0, 9))
    front.publish()
    back.take_run(6)
    back.put_run(run(0, 4))
    back.publish()
    again = BackRing.attach(back._memory._extents, SLOT, resume=True)
    assert again.unconsumed == 5
    assert again.take_run() == run(4, 5)  # two of them for the second time
    again.put_run(run(4, 5))
    again.publish()
    assert front.take_run() == run(0, 9)


def test_a_detached_ring_lets_its_pages_go_and_never_touches_them() -> None:
    mapping = mmap.mmap(-1, 4096)
    with memoryview(mapping) as page:
        front, back = FrontRing([page], SLOT), BackRing.attach([page], SLOT)
        front.put(slot(0))
        front.publish()
        back.take()
        front.put(slot(1))
        held = front._memory, back._memory, front._words, list(front._slot_views)  # as by a traceback
        for ring in (front, back):
            ring.detach()
    mapping.close()
    assert held
    for use in (front.publish, front.rearm, front.take_run, front.take, back.take_many, back.rearm):
        with pytest.raises(RingMisuse, match="detached"):
            use()
    with pytest.raises(RingMisuse, match="detached"):
        back.put(slot(1))
    with pytest.raises(RingMisuse, match="detached"):
        back.put_run(slot(1))
    assert (front.put_total, back.taken) == (2, 1)


def test_both_ends_may_detach_twice() -> None:
    front, back, _ = new_pair()
    for ring in (front, back):
        ring.detach()
        ring.detach()


def test_errors_carry_what_was_wrong(start: int) -> None:
    front, _, words = new_pair(start)
    words[2] = wrong = (start + 1) % 2**32
    with pytest.raises(PeerViolation) as caught:
        front.take()
    assert (caught.value.what, caught.value.found) == ("rsp_prod", wrong)
    assert caught.value.expected == f"{start:#x} to {start:#x}"
