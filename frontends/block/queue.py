"""One ring of a disk at the frontend: gives requests ids, puts them on the ring in runs, takes the
answers in runs.

Requests that several tasks submit in one pass of the event loop are published together, with one
notification (a plug): the first wakes the publisher, which runs when the pass is over. A batch that fills
the ring is published at once. When answers have made room, what waits for it is put on the ring from where
the answers are taken, with no task between.

A backend is distrusted: an answer must carry the id of a request that is in flight and its operation, and a
status that the protocol has; anything else ends the connection.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from anyio.lowlevel import checkpoint

from frontends.block.flight import Flight
from frontends.block.stats import DiskStats
from frontends.block.submissions import Caller, Plug, Submission
from kernel.parking import Broadcast, Latch
from ringbuffers.errors import PeerViolation
from ringbuffers.ring import FrontRing

_IDLE_POLLS: Final = 4  # looks for answers in vain before it sleeps


class RequestQueue:
    """The requests of one queue, over all its connections. slots: how many its ring has. plug: the last of what
    waits, while others may join it.

    now_ns: a clock, for the latencies. broken: called with the violation when the backend breaks the
    protocol; nothing is sent or taken after that until `connect`.
    """

    def __init__(
        self, stats: DiskStats, now_ns: Callable[[], int], broken: Callable[[PeerViolation], None]
    ) -> None:
        self._stats = stats
        self._now_ns = now_ns
        self._broken = broken
        self._ring: FrontRing | None = None
        self._notify: Callable[[], None] = _nobody
        self._waiting: deque[Submission] = deque()
        self.plug: Plug | None = None
        self.slots = 0
        self._flight = Flight(stats)
        self._again: deque[bytes] = deque()  # slots to be sent once more, on a new ring
        self._turn = Latch()
        self._settled = Broadcast()
        self._timed = -1  # the id of the request whose latency is measured
        self._timed_ns = 0

    @property
    def is_settled(self) -> bool:
        """Whether no request is without its answer."""
        return not (self._flight or self._waiting)

    async def settled(self) -> None:
        """Waits until every request has its answer."""
        while not self.is_settled:
            await self._settled.wait()

    def submit(self, submission: Submission) -> None:
        """Sends requests at once, as far as there is room."""
        self.plug = None
        self._waiting.append(submission)
        self.send()
        self._turn.set()

    def submit_page(self, caller: Caller, head: int, sector: int, page: int) -> None:
        """Sends a request of one page together with those of other tasks, when this pass of the loop is
        over.
        """
        plug = self.plug
        if plug is None:
            plug = self.plug = Plug()
            self._waiting.append(plug)
            self._turn.set()
        plug.add(caller, head, sector, page)

    async def run(self) -> None:
        """Sends what tasks have submitted, and takes the answers, until it is cancelled."""
        while True:
            await self._turn.wait()
            idle = 0
            while idle < _IDLE_POLLS and not self.is_settled:
                self.send()
                idle = 0 if self._take() else idle + 1
                await checkpoint()
            if not self.is_settled and self._rearmed():
                self._turn.set()

    def notified(self) -> None:
        """The backend has answered: take it now, and look for more. The event port's callback."""
        self._take()
        self._turn.set()

    def connect(self, ring: FrontRing, notify: Callable[[], None]) -> None:
        """Sends on `ring` from now on; first, in their order, the requests that have no answer yet."""
        self._ring = ring
        self._notify = notify
        self.slots = ring.size
        self._again.extend(self._flight.slots())
        self.send()

    def unanswered(self) -> int:
        """How many requests have no answer yet."""
        count = len(self._flight)
        for submission in self._waiting:
            count += submission.left
        return count

    def hand_over(self) -> list[Submission]:
        """Gives up all requests that have no answer, for another queue. To be called when not connected."""
        handed: list[Submission] = [*self._flight.hand_over(), *self._waiting]
        self._waiting.clear()
        self.plug = None
        self._settled.announce()
        return handed

    def disconnect(self) -> None:
        """Sends and takes nothing until the next `connect`. What has no answer is kept."""
        self._ring = None
        self._notify = _nobody
        self._again.clear()
        self._timed = -1

    def fail(self, error: Exception) -> None:
        """Ends every request that has no answer with `error`. To be called when not connected."""
        waiting = [caller for submission in self._waiting for caller in submission.callers()]
        self._waiting.clear()
        self.plug = None
        for caller in dict.fromkeys(self._flight.clear() + waiting):
            caller.end(error)
        self._settled.announce()

    def send(self) -> None:
        """Puts on the ring what waits and finds room, publishes it, and notifies the backend if it asked for
        that.
        """
        ring = self._ring
        if ring is None:
            return
        room = ring.free
        runs = [self._again.popleft() for _ in range(min(len(self._again), room))]
        room -= len(runs)
        while room and self._waiting:
            submission = self._waiting[0]
            slots, count = self._flight.launch(submission, room)
            runs.append(slots)
            room -= count
            if not submission.left:
                self._waiting.popleft()
            if submission is self.plug:
                self.plug = None
        if runs:
            ring.put_run(b"".join(runs))
            if self._timed < 0:
                self._timed, self._timed_ns = self._flight.newest, self._now_ns()
            if ring.publish():
                self._notify()

    def _take(self) -> bool:
        """Takes the answers that are there, and sends what has waited for room. Returns whether there were
        any.
        """
        ring = self._ring
        if ring is None:
            return False
        try:
            run = ring.take_run()
            if not run:
                return False
            self._settle(run)
        except PeerViolation as violation:
            self._break(violation)
            return False
        if self._waiting or self._again:
            self.send()
        return True

    def _rearmed(self) -> bool:
        """Asks to be notified of the next answer; whether one has come meanwhile."""
        try:
            return self._ring is not None and self._ring.rearm()
        except PeerViolation as violation:
            self._break(violation)
            return False

    def _break(self, violation: PeerViolation) -> None:
        self.disconnect()
        self._broken(violation)

    def _settle(self, run: bytes) -> None:
        self._flight.land(run)
        if self._timed >= 0 and self._timed not in self._flight:
            self._stats.latency.add(self._now_ns() - self._timed_ns)
            self._timed = -1
        if self.is_settled:
            self._settled.announce()


def _nobody() -> None:
    """Whom a queue notifies that is not connected."""
