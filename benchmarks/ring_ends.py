"""The two ends of a bare ring as drivers would use it, for `benchmarks.ring`: no domain, no grant, no disk.

Both ends work in runs, judge every value that they read as the block drivers do, and before they sleep on an
eventfd they look at the ring for a while: the longer, the more often that was worth while.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final

from ringbuffers.protocols.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY
from ringbuffers.protocols.blkif_columns import (
    READ_HEAD,
    pack_page_requests,
    pack_successes,
    page_word,
    unpack_responses,
    whole_page_requests,
)
from ringbuffers.protocols.blkif_runs import pack_rw1_run, unpack_response_run, unpack_rw1_run
from ringbuffers.ring import BackRing, FrontRing

GREFS: Final = range(8, 8 + 1024)
DISK_SECTORS: Final = 1 << 21
MOST_LOOKS: Final = 256  # they cost about what sleeping and being woken costs
_WORTH_WHILE_NS: Final = 300_000  # whoever slept for less would better have looked for longer
_ENDED: Final = 1 << 32  # what an end that is gone adds to the other's eventfd


class Unexpected(Exception):
    """The other end wrote something else than it should have, or it is gone."""


class Bell:
    """How one end hears of the other. mine: the eventfd it sleeps on; theirs: the one that it wakes.

    looks: at the ring, in vain, before it sleeps; None: as many as are worth while.
    """

    def __init__(self, mine: int, theirs: int, looks: int | None = None) -> None:
        self._mine = mine
        self._theirs = theirs
        self._alone = False
        self._adaptive = looks is None
        self._looks = MOST_LOOKS if looks is None else looks

    def ring(self) -> None:
        """Wakes the other end."""
        os.eventfd_write(self._theirs, 1)

    def leave(self) -> None:
        """Tells the other end that nobody is here any more."""
        os.eventfd_write(self._theirs, _ENDED)

    def next_run(self, ring: FrontRing | BackRing, limit: int) -> bytes:
        """The next slots of `ring`, at most `limit`, as soon as there are any. Raises Unexpected if the other
        end has left.
        """
        take = ring.take_run
        while True:
            for _ in repeat(None, self._looks + 1):
                if run := take(limit):
                    return run
            if not ring.rearm():
                self._sleep()

    def _sleep(self) -> None:
        if self._alone:
            raise Unexpected("the other end has left")
        slept = time.perf_counter_ns()
        self._alone = os.eventfd_read(self._mine) >= _ENDED  # it may have published before
        if self._adaptive:
            short = time.perf_counter_ns() - slept < _WORTH_WHILE_NS
            self._looks = min(self._looks * 2 + 1, MOST_LOOKS) if short else self._looks // 2


class Frontend:
    """Sends requests and takes their answers. share: how much of the ring one run may be."""

    def __init__(self, ring: FrontRing, bell: Bell, share: int) -> None:
        self._ring = ring
        self._bell = bell
        self._most = max(ring.size // share, 1)
        self._flying: dict[int, int] = {}
        self._next_id = 0

    def exchange(self, sectors: Sequence[int]) -> None:
        """Sends a read for each of `sectors`, and returns when all are answered."""
        ring, flying = self._ring, self._flying
        sent = answered = 0
        while answered < len(sectors):
            while count := min(ring.free, len(sectors) - sent, self._most):
                ids = range(self._next_id, self._next_id + count)
                ring.put_run(self._packed(ids, sectors[sent : sent + count]))
                flying.update(zip(ids, repeat(BLKIF_OP_READ)))
                self._next_id = ids.stop
                sent += count
                if ring.publish():
                    self._bell.ring()
            answered += self._land(self._bell.next_run(ring, self._most))

    def _packed(self, ids: range, sectors: Sequence[int]) -> bytes:
        grefs = GREFS[: len(ids)]
        return pack_rw1_run(
            zip(repeat(BLKIF_OP_READ), repeat(1), repeat(0), ids, sectors, grefs, repeat(0), repeat(7))
        )

    def _land(self, run: bytes) -> int:
        flying, before = self._flying, len(self._flying)
        for request_id, operation, status in unpack_response_run(run):
            if flying.pop(request_id, None) != operation or status != BLKIF_RSP_OKAY:
                raise Unexpected(f"response {request_id, operation, status}")
        return before - len(flying)


class ColumnsFrontend(Frontend):
    """The same with the columns that the block frontend uses for runs of whole pages."""

    _heads: Final = (READ_HEAD,) * 512
    _words: Final = tuple(map(page_word, GREFS))

    def _packed(self, ids: range, sectors: Sequence[int]) -> bytes:
        return pack_page_requests(self._heads[: len(ids)], ids, sectors, self._words[: len(ids)])

    def _land(self, run: bytes) -> int:
        ids, codes = unpack_responses(run)
        operations = [self._flying.pop(request_id, None) for request_id in ids]
        if not operations.count(BLKIF_OP_READ) == codes.count(BLKIF_OP_READ) == len(ids):
            raise Unexpected(f"responses {codes}")
        return len(ids)


Answer = Callable[[bytes], tuple[bytes | bytearray, int]]
"""Judges a run of requests; returns their answers and the sum of their sectors."""

_PAGES: Final = dict.fromkeys(GREFS, True)


def answer_fields(run: bytes) -> tuple[bytearray, int]:
    """Unpacks every field of every request."""
    pages, total = _PAGES, 0
    for operation, count, handle, _, sector, gref, first, last in unpack_rw1_run(run):
        if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE) or count != 1 or handle or not first <= last < 8:
            raise Unexpected(f"request {operation, count, handle, first, last}")
        if gref not in pages or sector + last - first >= DISK_SECTORS:
            raise Unexpected(f"request {gref, sector}")
        total += sector
    return pack_successes(run), total


def answer_columns(run: bytes) -> tuple[bytearray, int]:
    """Unpacks what the block backend does on its quick path."""
    requests = whole_page_requests(run)
    if requests is None:
        raise Unexpected("requests of other kinds")
    if max(requests.sectors) > DISK_SECTORS - 8 or None in map(_PAGES.get, requests.grefs):
        raise Unexpected("requests out of bounds")
    return pack_successes(run), sum(requests.sectors)


def serve(ring: BackRing, bell: Bell, share: int, answer: Answer, requests: int) -> int:
    """Answers so many requests; the sum of their sectors."""
    most = max(ring.size // share, 1)
    served = total = 0
    while served < requests:
        answers, sectors = answer(bell.next_run(ring, most))
        ring.put_run(answers)
        if ring.publish():
            bell.ring()
        served += len(answers) // ring.slot_size
        total += sectors
    return total
