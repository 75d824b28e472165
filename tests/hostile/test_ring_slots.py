"""A peer that changes slots while they are looked at (XSA-155), and what a ring shows a peer (XSA-216)."""

import pytest

from ringbuffers.protocols.blkif import (
    BLKIF_OP_READ,
    BLKIF_RSP_OKAY,
    REQUEST_SLOT_SIZE,
    RESPONSE,
    Response,
    unpack_request,
)
from ringbuffers.protocols.blkif_runs import pack_response_run, pack_rw1_run, unpack_rw1_run
from ringbuffers.ring import BackRing, FrontRing
from ringbuffers.testing import Access, watch
from tests.ringbuffers.pairs import SHAPES, STARTS, new_pair, run, shared_pages, slot

TAKES = {
    "take": lambda ring: [ring.take() for _ in range(8)],
    "take_many": lambda ring: ring.take_many(),
    "take_run": lambda ring: [run_of.tobytes() for run_of in _slots(ring.take_run())],
}


def _slots(data: bytes) -> list[memoryview]:
    return [memoryview(data)[i : i + REQUEST_SLOT_SIZE] for i in range(0, len(data), REQUEST_SLOT_SIZE)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("start", STARTS, ids=hex)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_each_slot_is_copied_once(start: int, shape: tuple[int, ...], take: object) -> None:
    assert callable(take)
    front, back, _ = new_pair(start, shape)
    front.put_run(run(0, 8))
    front.publish()
    log = watch(back)
    assert take(back) == [slot(n) for n in range(8)]
    assert set(log.copied.values()) == {1}
    assert len(log.copied) == 8
    assert not log.filled


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_what_was_taken_does_not_change_any_more(start: int) -> None:
    pages = shared_pages((1, 1))
    front = FrontRing(pages, REQUEST_SLOT_SIZE)
    back = BackRing.attach(pages, REQUEST_SLOT_SIZE)
    front.put_run(run(0, 64))
    front.publish()
    single, several, rest = back.take(), back.take_many(40), back.take_run()
    for page in pages:
        page[64:] = b"\xff" * (len(page) - 64)
    assert single == slot(0)
    assert several == [slot(n) for n in range(1, 41)]
    assert rest == run(41, 23)


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_a_request_is_unpacked_from_the_copy_alone(start: int) -> None:
    """The frontend flips operation, count, sector and grant whenever the backend comes near."""
    front, back, _ = new_pair(start)
    request = (BLKIF_OP_READ, 1, 51712, 77, 4096, 9, 0, 7)
    front.put_run(pack_rw1_run([request]))
    front.publish()
    log = watch(back)
    taken = back.take_run()
    flipped = front._memory

    def flip(_: Access) -> None:
        flipped.copy_in(start, b"\xff" * REQUEST_SLOT_SIZE)

    log.before = flip
    flip(Access("copy", 0))
    accesses = len(log.order)
    unpacked = unpack_request(taken)
    assert unpacked.id == 77
    assert unpacked.operation == BLKIF_OP_READ
    assert list(unpack_rw1_run(taken)) == [request]
    assert len(log.order) == accesses


@pytest.mark.parametrize("how", ["one by one", "many", "run"])
def test_responses_carry_nothing_but_themselves(how: str) -> None:
    """Pages, and the slots that requests were in, are poisoned: padding and the rest of the slot must be
    zero.
    """
    pages = shared_pages((1, 1), filler=0xAA)
    front = FrontRing(pages, REQUEST_SLOT_SIZE)
    back = BackRing.attach(pages, REQUEST_SLOT_SIZE)
    front.put_run(b"\xaa" * REQUEST_SLOT_SIZE * front.size)
    front.publish()
    back.take_run()
    responses = [(n << 40 | n, BLKIF_OP_READ, BLKIF_RSP_OKAY) for n in range(front.size)]
    if how == "run":
        back.put_run(pack_response_run(responses))
    elif how == "many":
        back.put_many([RESPONSE.struct.pack(*fields) for fields in responses])
    else:
        for fields in responses:
            back.put(Response(*fields).pack())
    back.publish()
    memory = b"".join(bytes(page) for page in pages)
    for number in range(front.size):
        at = 64 + number * REQUEST_SLOT_SIZE
        shown = memory[at : at + REQUEST_SLOT_SIZE]
        assert shown[:11] == (number << 40 | number).to_bytes(8, "little") + bytes(3)
        assert not any(shown[9:])
    assert memory[64 + front.size * REQUEST_SLOT_SIZE :] == b"\xaa" * (
        8192 - 64 - front.size * REQUEST_SLOT_SIZE
    )


def test_a_new_ring_shows_the_backend_nothing_of_the_pages_past() -> None:
    """In its header; the slots are the allocator's to zero (XSA-403)."""
    pages = shared_pages(filler=0xAA)
    FrontRing(pages, REQUEST_SLOT_SIZE)
    assert b"\xaa" not in bytes(pages[0][:64])
