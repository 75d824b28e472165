"""The ring of one disk at the frontend: gives requests ids, puts them on the ring in runs, takes the answers in runs.

Requests that several tasks submit in one pass of the event loop are published together, with one notification (a
plug): the first wakes the publisher, which runs when the pass is over. A batch that fills the ring is published at once.
When answers have made room, what waits for it is put on the ring from where the answers are taken, with no task between.

A backend is distrusted: an answer must carry the id of a request that is in flight and its operation, and a status that
the protocol has; anything else ends the connection.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final, cast

from frontends.block.stats import DiskStats
from frontends.block.submissions import Description, Submission
from kernel.parking import Broadcast, Latch
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_runs import RW1, pack_rw1_run, unpack_response_run
from ringbuffers.ring import FrontRing

_RUNS_A_TURN: Final = 4
_PLUG_UP_TO: Final = (
    8  # requests of one caller that wait for the end of the loop's pass, so that others join them
)
_STATUSES: Final = (blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP)


class RequestQueue:
    """The requests of one disk, over all its connections.

    now_ns: a clock, for the latencies. broken: called with the violation when the backend breaks the protocol; nothing
    is sent or taken after that until `connect`.
    """

    def __init__(
        self, stats: DiskStats, now_ns: Callable[[], int], broken: Callable[[PeerViolation], None]
    ) -> None:
        self._stats = stats
        self._now_ns = now_ns
        self._broken = broken
        self._ring: FrontRing | None = None
        self._notify: Callable[[], None] = _nobody
        self._free: list[int] = []  # ids
        self._waiting: deque[Submission] = deque()  # with requests that have no id yet
        self._owners: dict[int, Submission] = {}  # by id, of requests without an answer
        self._described: dict[int, Description] = {}  # by id, what was sent last
        self._again: deque[int] = deque()  # ids of requests to be sent once more, on a new ring
        self._turn = Latch()
        self._settled = Broadcast()
        self._timed: tuple[int, int] | None = None  # id and time of publishing

    @property
    def is_settled(self) -> bool:
        """Whether no request is without its answer."""
        return not (self._owners or self._waiting)

    async def settled(self) -> None:
        """Waits until every request has its answer."""
        while not self.is_settled:
            await self._settled.wait()

    def submit(self, submission: Submission) -> None:
        """Sends requests as soon as there is room: a batch at once, others when this pass of the loop is over."""
        self._waiting.append(submission)
        self._stats.count(submission.operation, submission.left)
        if submission.left > _PLUG_UP_TO:
            self.send()
        else:
            self._turn.set()

    async def publish_forever(self) -> None:
        """The publisher: sends what was submitted since its last turn, and goes on where `receive` stopped."""
        while True:
            await self._turn.wait()
            self.send()
            if self._ring is not None and self._ring.in_flight:
                self.receive()

    def connect(self, ring: FrontRing, notify: Callable[[], None]) -> None:
        """Sends on `ring` from now on; first what the ring before it left unanswered, in the order of the ids."""
        self._ring = ring
        self._notify = notify
        self._stats.enter(ring)
        self._again.extend(sorted(self._owners))
        self._free = [request_id for request_id in range(ring.size) if request_id not in self._owners]
        self.send()

    def disconnect(self) -> None:
        """Sends and takes nothing until the next `connect`. What has no answer is kept."""
        self._ring = None
        self._notify = _nobody
        self._again.clear()
        self._timed = None

    def fail(self, error: Exception) -> None:
        """Ends every request that has no answer with `error`. To be called when not connected."""
        submissions = dict.fromkeys((*self._owners.values(), *self._waiting))
        self._owners.clear()
        self._waiting.clear()
        for submission in submissions:
            submission.end(error)
        self._settled.announce()

    def send(self) -> None:
        """Puts on the ring what waits and finds room, publishes it, and notifies the backend if it asked for that."""
        ring = self._ring
        if ring is None:
            return
        room = ring.free
        again = min(len(self._again), room)
        descriptions = [self._described[self._again.popleft()] for _ in range(again)]
        room -= again
        packed = again > 0
        request_id = -1
        while room and self._waiting:
            submission = self._waiting[0]
            count = min(submission.left, room)
            ids = self._free[-count:]
            del self._free[-count:]
            taken = submission.take(ids)
            self._owners.update(zip(ids, repeat(submission)))
            self._described.update(zip(ids, taken))
            descriptions += taken
            packed |= submission.packed
            room -= count
            request_id = ids[0]
            if not submission.left:
                self._waiting.popleft()
        if descriptions:
            ring.put_run(_run(descriptions) if packed else pack_rw1_run(cast(list[RW1], descriptions)))
            if self._timed is None and request_id >= 0:
                self._timed = request_id, self._now_ns()
            if ring.publish():
                self._notify()

    def receive(self) -> None:
        """Takes the answers that are there, and sends what has waited for room. The event port's callback."""
        ring = self._ring
        if ring is None:
            return
        try:
            for _ in range(_RUNS_A_TURN):
                run = ring.take_run()
                if run:
                    self._settle(run)
                    if self._waiting or self._again:
                        self.send()
                elif not ring.rearm():
                    return
        except PeerViolation as violation:
            self.disconnect()
            self._broken(violation)
        else:
            self._turn.set()

    def _settle(self, run: bytes) -> None:
        """Ends the requests that a run of responses answers."""
        owners, described = self._owners, self._described
        freed = self._free.append
        for request_id, operation, status in unpack_response_run(run):
            submission = owners.get(request_id)
            if submission is None or described[request_id][0] != operation or status:
                self._examine(request_id, operation, status)
            submission = owners.pop(request_id)
            freed(request_id)
            submission.remaining -= 1
            if not submission.remaining:
                submission.end(None)
        if self._timed is not None and self._timed[0] not in owners:
            self._stats.latency.add(self._now_ns() - self._timed[1])
            self._timed = None
        if not (owners or self._waiting):
            self._settled.announce()

    def _examine(self, request_id: int, operation: int, status: int) -> None:
        """An answer that is not simply good: notes a refusal. Raises PeerViolation for what answers nothing of ours."""
        submission = self._owners.get(request_id)
        if submission is None:
            raise PeerViolation("id of a response", request_id, "that of a request in flight")
        description = self._described[request_id]
        if operation not in _echoes(description):
            raise PeerViolation("operation of a response", operation, f"{description[0]}, as in the request")
        if status not in _STATUSES:
            raise PeerViolation("status of a response", status & 0xFFFF, "0, -1 or -2")
        if status:
            self._stats.errors += 1
            submission.failures.append((description, status))


def _echoes(description: Description) -> tuple[int, ...]:
    """The operations under which a request may be answered: an indirect one under its own or what it stands for."""
    if description[0] == blkif.BLKIF_OP_INDIRECT:
        return description[0], description[1]
    return (description[0],)


def _run(descriptions: Sequence[Description]) -> bytes:
    """The slots of requests of all kinds, back to back."""
    return b"".join(item if isinstance(item, bytes) else pack_rw1_run((item,)) for item in descriptions)


def _nobody() -> None:
    """Whom a queue notifies that is not connected."""
