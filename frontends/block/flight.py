"""The requests of one disk that are in flight: sent, and without an answer.

Ids are numbers that are never used again, so that the requests of a run have consecutive ids and the run
itself, kept until its last request is answered, says what to send again to a backend that comes back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from frontends.block.stats import DiskStats
from frontends.block.submissions import Caller, Resent, Submission
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import unpack_responses
from ringbuffers.protocols.blkif_runs import unpack_response_run

_FORGET_AT: Final = 2048
_SLOT: Final = blkif.REQUEST_SLOT_SIZE
_STATUSES: Final = (blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP)


class _Run(NamedTuple):
    """Requests that were sent together: their ids and their slots."""

    ids: range
    slots: bytes

    def slot(self, request_id: int) -> bytes:
        start = (request_id - self.ids.start) * _SLOT
        return self.slots[start : start + _SLOT]


class Flight:
    """Who waits for which request."""

    __slots__ = ("_callers", "_forget_at", "_kept", "_next_id", "_runs", "_stats")

    def __init__(self, stats: DiskStats) -> None:
        self._stats = stats
        self._callers: dict[int, Caller] = {}  # by id, ascending
        self._runs: list[_Run] = []
        self._next_id = 0
        self._kept = 0  # slots in `_runs`
        self._forget_at = _FORGET_AT

    def __len__(self) -> int:
        return len(self._callers)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._callers

    @property
    def newest(self) -> int:
        """The id given out last."""
        return self._next_id - 1

    def launch(self, submission: Submission, room: int) -> tuple[bytes, int]:
        """The slots of the next requests of `submission`, at most `room`, and how many they are."""
        first = self._next_id
        ids = range(first, first + min(submission.left, room))
        slots, callers, counts = submission.take(ids)
        for operation, count in counts:
            self._stats.count(operation, count)
        self._next_id = ids.stop
        self._callers.update(zip(ids, callers))
        self._runs.append(_Run(ids, slots))
        self._kept += len(ids)
        if self._kept > self._forget_at:
            self._forget_landed()
        return slots, len(ids)

    def land(self, run: bytes) -> None:
        """Ends the requests that a run of responses answers.

        Raises PeerViolation for a response that answers nothing of ours; what was not ended stays in flight.
        """
        ids, codes = unpack_responses(run)
        callers = self._pop(ids)
        caller, count = callers[0], len(callers)
        if callers.count(caller) == count == codes.count(caller.operation):
            caller.remaining -= count  # one caller's requests, and all have succeeded
            if not caller.remaining:
                caller.end(None)
            return
        for index, (caller, code) in enumerate(zip(callers, codes)):
            if code != caller.operation:
                self._land_each(run[index * _SLOT :], callers[index:])
                return
            caller.remaining -= 1
            if not caller.remaining:
                caller.end(None)

    def slots(self) -> Iterator[bytes]:
        """The slot of each request in flight, in the order of sending."""
        return (slot for slot, _ in self._requests())

    def hand_over(self) -> list[Submission]:
        """Forgets all; returns what is to be sent elsewhere, under other ids."""
        requests = list(self._requests())
        self.clear()
        return [Resent(requests)] if requests else []

    def clear(self) -> list[Caller]:
        """Forgets all; returns who waited."""
        callers = list(dict.fromkeys(self._callers.values()))
        self._callers.clear()
        self._runs.clear()
        self._kept = 0
        return callers

    def _requests(self) -> Iterator[tuple[bytes, Caller]]:
        for run in self._runs:
            for request_id in run.ids:
                if request_id in self._callers:
                    yield run.slot(request_id), self._callers[request_id]

    def _pop(self, ids: array[int]) -> list[Caller]:
        """Takes the requests of `ids` out. Raises PeerViolation, and takes none, if one is not in flight."""
        callers: list[Caller] = []
        try:
            callers.extend(map(self._callers.pop, ids))
        except KeyError:
            unknown = ids[len(callers)]
            self._put_back(zip(ids, callers))
            raise PeerViolation("id of a response", unknown, "that of a request in flight") from None
        return callers

    def _put_back(self, popped: Iterable[tuple[int, Caller]]) -> None:
        self._callers = dict(sorted([*popped, *self._callers.items()], key=itemgetter(0)))

    def _land_each(self, run: bytes, callers: list[Caller]) -> None:
        """`land`, from the first answer on that may be a refusal."""
        responses = list(unpack_response_run(run))
        for index, (caller, (request_id, operation, status)) in enumerate(zip(callers, responses)):
            if operation != caller.operation or status:
                try:
                    self._examine(caller, request_id, operation, status)
                except PeerViolation:
                    self._put_back(
                        (response[0], who) for response, who in zip(responses[index:], callers[index:])
                    )
                    raise
            caller.remaining -= 1
            if not caller.remaining:
                caller.end(None)

    def _examine(self, caller: Caller, request_id: int, operation: int, status: int) -> None:
        """An answer that is not simply good: notes a refusal. Raises PeerViolation for what answers nothing
        of ours.
        """
        slot = self._slot(request_id)
        if operation not in _echoes(slot):
            raise PeerViolation("operation of a response", operation, f"{slot[0]}, as in the request")
        if status not in _STATUSES:
            raise PeerViolation("status of a response", status & 0xFFFF, "0, -1 or -2")
        if status:
            self._stats.errors += 1
            caller.failures = [*(caller.failures or ()), (slot, status)]

    def _slot(self, request_id: int) -> bytes:
        run = next(run for run in self._runs if request_id in run.ids)
        return run.slot(request_id)

    def _forget_landed(self) -> None:
        """Lets go of runs that were answered, once as many slots are kept as may be in flight several times
        over.
        """
        oldest = min(self._callers, default=self._next_id)
        self._runs = [
            run
            for run in self._runs
            if oldest < run.ids.stop and not self._callers.keys().isdisjoint(run.ids)
        ]
        self._kept = sum(len(run.ids) for run in self._runs)
        self._forget_at = max(_FORGET_AT, 2 * self._kept)


def _echoes(slot: bytes) -> tuple[int, ...]:
    """The operations under which a request may be answered: an indirect one also under what it stands for,
    as Linux's blkback does.
    """
    return (slot[0], slot[1]) if slot[0] == blkif.BLKIF_OP_INDIRECT else (slot[0],)
