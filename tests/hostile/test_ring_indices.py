"""A peer that lies in the header of a ring (XSA-38, XSA-39, XSA-155)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import PeerViolation
from ringbuffers.indices import distance, wrap
from ringbuffers.ring import BackRing
from ringbuffers.testing import Access, watch
from tests.ringbuffers.pairs import SLOT, STARTS, Pair, new_pair, run, shared_pages

SIZE = 32
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)

starts = st.sampled_from(STARTS)
u32 = st.integers(0, 2**32 - 1)
# Indices near the truth are where an off-by-one hides.
lies = st.one_of(u32, st.integers(-2 * SIZE, 2 * SIZE))


def busy_pair(start: int, asked: int, taken: int, answered: int, collected: int) -> Pair:
    """A ring in the midst of work: requests published, taken and answered, responses taken."""
    pair = new_pair(start)
    pair.front.put_run(run(0, asked))
    pair.front.publish()
    pair.back.take_run(taken)
    pair.back.put_run(run(0, answered))
    pair.back.publish()
    pair.front.take_run(collected)
    return pair


work = st.integers(0, SIZE).flatmap(
    lambda asked: st.integers(0, asked).flatmap(
        lambda taken: st.integers(0, taken).flatmap(
            lambda answered: st.tuples(
                st.just(asked), st.just(taken), st.just(answered), st.integers(0, answered)
            )
        )
    )
)


@given(starts, work, lies)
def test_a_frontends_producer_is_believed_only_within_its_room(
    start: int, work: tuple[int, int, int, int], lie: int
) -> None:
    _, _, answered, _ = work
    _, back, words = busy_pair(start, *work)
    seen = back.indices.consumed + back.unconsumed
    words[REQ_PROD] = claimed = wrap(start + lie)
    room = SIZE - distance(seen, start + answered)  # what the frontend may still have put
    if distance(claimed, seen) <= room:
        assert len(back.take_many()) == distance(claimed, start + work[1])
        return
    for take in (back.take, back.take_run, back.take_many, lambda: back.unconsumed):
        if take == back.take and work[1] < work[0]:
            continue  # slots seen before are still good
        with pytest.raises(PeerViolation) as caught:
            take()
        assert (caught.value.what, caught.value.found) == ("req_prod", claimed)
    assert back.rearm()  # do not sleep: look, and find the violation


@given(starts, work, lies)
def test_a_backends_producer_is_believed_only_up_to_what_was_asked(
    start: int, work: tuple[int, int, int, int], lie: int
) -> None:
    asked, _, answered, collected = work
    front, _, words = busy_pair(start, *work)
    assert front.pending == answered - collected
    words[RSP_PROD] = claimed = wrap(start + lie)
    if distance(claimed, start + answered) <= asked - answered:
        assert len(front.take_many()) == distance(claimed, start + collected)
        assert front.free <= SIZE
        return
    with pytest.raises(PeerViolation) as caught:
        front.take_run()
    assert (caught.value.what, caught.value.found) == ("rsp_prod", claimed)
    assert front.in_flight == asked - collected
    assert front.rearm()


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_a_response_to_a_request_not_published_is_a_violation(start: int) -> None:
    front, _, words = new_pair(start)
    front.put_run(run(0, 4))
    words[RSP_PROD] = wrap(start + 1)
    with pytest.raises(PeerViolation):
        front.take()
    front.publish()
    assert front.take() is not None


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_requests_over_responses_not_yet_published_are_a_violation(start: int) -> None:
    """RING_REQUEST_PROD_OVERFLOW counts from what the backend put; the frontend cannot know of that yet."""
    _, back, words = busy_pair(start, SIZE, SIZE, 0, 0)
    back.put_run(run(0, 8))
    words[REQ_PROD] = wrap(start + SIZE + 1)
    with pytest.raises(PeerViolation):
        back.take_run()


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_an_index_that_goes_back_is_a_violation_even_if_slots_were_left(start: int) -> None:
    front, back, words = busy_pair(start, 10, 4, 0, 0)
    words[REQ_PROD] = wrap(start + 9)
    with pytest.raises(PeerViolation):
        back.take_run()
    words[REQ_PROD] = wrap(start + 10)
    assert back.take_run() == run(4, 6)
    back.put_run(run(0, 10))
    back.publish()
    front.take_run(4)
    words[RSP_PROD] = wrap(start + 5)
    with pytest.raises(PeerViolation):
        front.take_run()


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_a_violation_takes_nothing(start: int) -> None:
    _, back, words = busy_pair(start, 5, 2, 1, 0)
    words[REQ_PROD] = wrap(start + 1000)
    for _ in range(3):
        with pytest.raises(PeerViolation):
            back.take_run()
    assert (back.taken, back.in_flight) == (2, 1)
    words[REQ_PROD] = wrap(start + 5)
    assert back.take_run() == run(2, 3)


@given(starts, work, st.lists(lies, min_size=4, max_size=4))
def test_an_index_is_read_once_and_bounded_as_read(
    start: int, work: tuple[int, int, int, int], later: list[int]
) -> None:
    """The peer changes it right after each look; what was checked is what counts."""
    _, back, words = busy_pair(start, *work)
    log = watch(back)
    changes = iter(later)

    def change(access: Access) -> None:
        if access.kind == "copy":
            words[REQ_PROD] = wrap(start + next(changes, 0))

    log.before = change
    assert len(back.take_many()) == work[0] - work[1]
    assert log.loads == {"req_prod": 1}


@given(starts, work, u32)
def test_an_event_index_decides_about_notifying_and_nothing_else(
    start: int, work: tuple[int, int, int, int], event: int
) -> None:
    asked, _, answered, collected = work
    front, _, words = busy_pair(start, *work)
    words[REQ_EVENT] = event
    count = min(3, SIZE - (asked - collected))
    front.put_run(run(0, count))
    crossed = {wrap(start + asked + i) for i in range(1, count + 1)}
    assert front.publish() == (event in crossed)
    assert front.in_flight == asked - collected + count
    assert front.pending == answered - collected


@given(u32, u32)
def test_a_backend_attaches_only_to_indices_that_can_be(requests: int, responses: int) -> None:
    pages = shared_pages()
    words = pages[0].cast("I")
    words[REQ_PROD], words[RSP_PROD] = requests, responses
    if distance(requests, responses) <= SIZE:
        ring = BackRing.attach(pages, SLOT, resume=True)
        assert ring.unconsumed == distance(requests, responses)
    else:
        with pytest.raises(PeerViolation, match="req_prod"):
            BackRing.attach(pages, SLOT, resume=True)
    if requests > SIZE:
        with pytest.raises(PeerViolation):
            BackRing.attach(pages, SLOT)


@given(starts, st.lists(st.tuples(st.integers(0, 3), lies, st.sampled_from("ptrb")), max_size=60))
def test_no_header_brings_either_end_out_of_its_bounds(
    start: int, attacks: list[tuple[int, int, str]]
) -> None:
    """Both ends work on while anybody scribbles on the header: nothing but PeerViolation, bounded work."""
    front, back, words = new_pair(start)
    for word, lie, step in attacks:
        words[word] = wrap(start + lie)
        try:
            if step == "p":
                front.put_run(run(0, min(front.free, 7)))
                front.publish()
            elif step == "t":
                assert len(back.take_many()) <= SIZE
            elif step == "r":
                back.put_run(run(0, min(7, back.taken - back.put_total)))
                back.publish()
            else:
                assert len(front.take_many()) <= SIZE
                front.rearm()
                back.rearm()
        except PeerViolation:
            pass
        assert 0 <= front.in_flight <= SIZE
        assert 0 <= front.free <= SIZE
        assert 0 <= back.in_flight <= SIZE
