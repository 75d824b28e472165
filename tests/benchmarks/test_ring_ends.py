"""What `benchmarks.ring` measures is really done: each request arrives in another process and is judged there."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from benchmarks import ring, ring_ends
from benchmarks.ring import Case, PipePair, RingPair
from benchmarks.ring_ends import Bell, ColumnsFrontend, Frontend, Unexpected
from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing, FrontRing
from tests.ringbuffers.pairs import SLOT, shared_pages


@pytest.mark.parametrize("case", [*ring.RATES, *ring.ROUND_TRIPS], ids=lambda case: case.name)
def test_every_request_arrives(case: Case) -> None:
    small = replace(case, requests=600, looks=case.looks and min(case.looks, 1000))
    with closing(RingPair(small, 2)) as pair:  # which raises if the sum of what arrived is another
        assert pair.exchange(600) > 0
        assert pair.one_by_one(600) > 0


def test_messages_of_the_pipe_come_back() -> None:
    with closing(PipePair()) as pipe:
        assert pipe.send(10) > 0
        assert pipe.send(0) > 0


def test_a_backend_that_ends_is_noticed() -> None:
    case = replace(ring.FIELDS, requests=600, answer="no_such_answer")
    with pytest.raises(Unexpected, match="left"):
        RingPair(case, 1)


@pytest.fixture
def bell() -> Iterator[Bell]:
    mine, theirs = os.eventfd(0), os.eventfd(0)
    yield Bell(mine, theirs)
    os.close(mine)
    os.close(theirs)


@pytest.mark.parametrize("frontend", [Frontend, ColumnsFrontend])
@pytest.mark.parametrize(
    "answer",
    [(0, 0, -1), (0, 1, 0), (99, 0, 0)],
    ids=["an error", "another operation", "nobody's"],
)
def test_what_answers_no_request_is_refused(
    bell: Bell, frontend: type[Frontend], answer: tuple[int, int, int]
) -> None:
    pages = shared_pages()
    front = FrontRing(pages, SLOT)
    back = BackRing.attach(pages, SLOT)

    def backend() -> None:
        back.take_run()
        back.put_run(blkif.Response(*answer).pack())
        back.publish()

    bell.ring = backend  # type: ignore[method-assign]
    with pytest.raises(Unexpected):
        frontend(front, bell, 1).exchange([8])


@pytest.mark.parametrize("answer", [ring_ends.answer_fields, ring_ends.answer_columns])
@pytest.mark.parametrize(
    ("sector", "gref", "part"),
    [
        (ring_ends.DISK_SECTORS - 7, 8, (0, 7)),
        (0, 7, (0, 7)),
        (0, 8 + len(ring_ends.GREFS), (0, 7)),
        (0, 8, (0, 8)),
        (0, 8, (5, 4)),
    ],
)
def test_requests_out_of_bounds_are_refused(
    answer: ring_ends.Answer, sector: int, gref: int, part: tuple[int, int]
) -> None:
    good = blkif.Request(0, 0, 1, ring_ends.DISK_SECTORS - 8, (blkif.Segment(8, 0, 7),)).pack()
    assert answer(good * 2)[1] == 2 * (ring_ends.DISK_SECTORS - 8)
    bad = blkif.Request(0, 0, 1, sector, (blkif.Segment(gref, *part),)).pack()
    with pytest.raises(Unexpected):
        answer(good + bad)
