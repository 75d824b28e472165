"""All queues of one disk at the frontend: which requests go on which ring, and what becomes of them when the
next connection has fewer.

What goes out together stays together. A batch, whatever its size, goes whole to one queue, and so do the
requests of single pages that tasks ask for in one pass of the event loop: each costs one notification, as it
would on a disk with one queue. It is the queue with the fewest unanswered requests, the first of equals. So
whoever asks for one thing after the other uses the first queue alone, where the backend is awake and has the
pages mapped, and the others are used as soon as there is something to be done beside that. To go round the
queues instead would wake them all for what one can do; to cut batches into parts would cost a notification for
each part; and an order by place on the disk helps a disk with heads.

Nothing is promised about the order of requests on different queues; a barrier orders its own queue alone.
"""

from collections.abc import Callable, Sequence

import anyio

from frontends.block.queue import RequestQueue
from frontends.block.stats import DiskStats
from frontends.block.submissions import Caller, Submission
from ringbuffers.errors import PeerViolation
from ringbuffers.ring import FrontRing

Connection = tuple[FrontRing, Callable[[], None]]
"""A ring, and what notifies the backend of it."""


class RequestQueues:
    """The queues of one disk, over all its connections.

    count: how many there are at most. now_ns, broken: as for each queue.
    submit, submit_page: as those of `RequestQueue`, which they are while there is only one.
    """

    submit: Callable[[Submission], None]
    submit_page: Callable[[Caller, int, int, int], None]

    def __init__(
        self,
        count: int,
        stats: DiskStats,
        now_ns: Callable[[], int],
        broken: Callable[[PeerViolation], None],
    ) -> None:
        self._stats = stats
        self._broken = broken
        self.all = [RequestQueue(stats, now_ns, self._break) for _ in range(count)]
        self._use(1)

    @property
    def is_settled(self) -> bool:
        """Whether no request is without its answer."""
        return all(queue.is_settled for queue in self.all)

    async def settled(self) -> None:
        """Waits until every request has its answer."""
        while not self.is_settled:
            for queue in self.all:
                await queue.settled()

    async def run(self) -> None:
        """Sends what tasks have submitted, and takes the answers, until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            for queue in self.all:
                tasks.start_soon(queue.run)

    def connect(self, connections: Sequence[Connection]) -> None:
        """Sends on as many queues as there are `connections` from now on; first what has no answer yet, that
        of queues which are not connected any more included.
        """
        self._stats.enter([ring for ring, _ in connections])
        self._use(len(connections))
        for queue, (ring, notify) in zip(self._used, connections):
            queue.connect(ring, notify)
        for queue in self.all[len(connections) :]:
            for submission in queue.hand_over():
                self.submit(submission)

    def disconnect(self) -> None:
        """Sends and takes nothing until the next `connect`. What has no answer is kept."""
        for queue in self.all:
            queue.disconnect()

    def fail(self, error: Exception) -> None:
        """Ends every request that has no answer with `error`. To be called when not connected."""
        for queue in self.all:
            queue.fail(error)

    def _use(self, count: int) -> None:
        self._used = self.all[:count]
        self._plugged = self._used[0]
        if count == 1:
            self.submit, self.submit_page = self._plugged.submit, self._plugged.submit_page
        else:
            self.submit, self.submit_page = self._submit, self._submit_page

    def _submit(self, submission: Submission) -> None:
        self._least_busy().submit(submission)

    def _submit_page(self, caller: Caller, head: int, sector: int, page: int) -> None:
        queue = self._plugged
        if queue.plug is None or queue.plug.left >= queue.slots:  # it would not go out in one run any more
            queue = self._plugged = self._least_busy()
        queue.submit_page(caller, head, sector, page)

    def _least_busy(self) -> RequestQueue:
        return min(self._used, key=RequestQueue.unanswered)

    def _break(self, violation: PeerViolation) -> None:
        self.disconnect()
        self._broken(violation)
