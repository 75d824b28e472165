"""One ring of a block device at the backend: takes requests in runs, has them served, answers in runs.

A run of slots is copied once. Reads and writes of one whole page that is mapped already, nearly all there
are, go to the store straight from the walk over the run. All others are gathered, judged, have their pages
mapped together, are served in order and have their pages unmapped before any of them is answered. Requests
are begun in the order of the ring.

What must wait (a store's method is `async def`) becomes a task and is answered when it ends; the ring goes
on. A barrier is the exception: it is begun when nothing is in flight any more, and what comes behind it on
the ring waits for it. As in Linux's blkback, a barrier orders its own ring alone; what it and a flush make
durable is every write that the store has finished, whichever ring it came from.
"""

from collections.abc import Callable, Coroutine
from itertools import groupby
from typing import Any, Final

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from backends.block.pages import GrantedPages, Lease
from backends.block.requests import Discard, Judged, Listed, Refusal, judge, judge_segments
from backends.block.service import Operation, Service, pages_of
from backends.block.whole_pages import WholePages
from kernel.parking import Latch, Waiter, waiter_factory
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import is_whole_page
from ringbuffers.protocols.blkif_runs import ResponseFields, pack_response_run
from ringbuffers.ring import BackRing

MAX_INDIRECT_SEGMENTS: Final = 256
_SLOT: Final = blkif.REQUEST_SLOT_SIZE
_SMALLEST_PART: Final = 64  # slots; fewer cost more than is gained
_IDLE_POLLS: Final = 4  # looks at an empty ring before it sleeps
_PAGES_AT_ONCE: Final = 512  # mapped and served together; then others have their turn (XSA-300)

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


class BlockQueue:
    """Serves one ring until `close`.

    notify: tells the frontend. spawn: starts a task that outlives this call. broken: called when the ring
    cannot be served any more, with the PeerViolation if the frontend has broken it; no request is taken
    after that.
    """

    def __init__(
        self,
        ring: BackRing,
        pages: GrantedPages,
        service: Service,
        *,
        notify: Callable[[], None],
        spawn: Spawn,
        broken: Callable[[Exception], None],
    ) -> None:
        self.ring = ring
        self.pages = pages
        self._service = service
        self._notify = notify
        self._spawn = spawn
        self._broken = broken
        self._answers: list[ResponseFields] = []
        self._ready: list[bytes | bytearray] = []  # slots of answers, before `_answers`
        self._owes_notification = False
        self._held = b""  # slots taken from the ring that wait for a barrier
        self._barrier: Operation | None = None
        self._in_flight = 0  # operations that are tasks now
        self._stopped = False
        self._whole_pages = WholePages(service, pages)
        # Answered in parts, a frontend elsewhere goes on with the first while the last is served.
        self._part = max(ring.size // 4, _SMALLEST_PART) * _SLOT
        self._idle: Waiter[None] | None = None
        self._turn = Latch()

    async def run(self) -> None:
        """Serves the ring until `close`. Looks at once: requests may be there already."""
        self._turn.set()
        while not self._stopped:
            await self._turn.wait()
            idle = 0
            while idle < _IDLE_POLLS and not self._stopped:
                idle = 0 if self._look() else idle + 1
                await checkpoint()
            if self._rearmed():
                self._turn.set()

    def notified(self) -> None:
        """The frontend has something on the ring: serve it now, and look for more. The event port's
        callback.
        """
        if not self._held:  # whoever has more on the ring than a turn may take waits for the next
            self._look()
        self._turn.set()

    def stop(self) -> None:
        """Takes no more requests; those in flight go on."""
        self._stopped = True
        self._turn.set()

    async def close(self) -> None:
        """Takes no more requests, lets those in flight end and be answered, and unmaps all pages."""
        self.stop()
        if self._in_flight:
            self._idle = waiter_factory()()
            await self._idle.wait()
        self.pages.close()

    def _look(self) -> bool:
        """Serves what is on the ring now, as much as one turn may take; the rest is held for the next.
        Returns whether there was anything.
        """
        if self._stopped or self._barrier is not None:
            return False
        try:
            run, self._held = self._held or self.ring.take_run(), b""
            if run:
                self._serve(run)
                self._push()
            return bool(run)
        except Exception as error:
            self._break(error)
            return False

    def _rearmed(self) -> bool:
        """Asks to be notified; whether something has come meanwhile."""
        try:
            return not self._stopped and self._barrier is None and self.ring.rearm()
        except PeerViolation as violation:
            self._break(violation)
            return False

    def _break(self, error: Exception) -> None:
        self._stopped = True
        if self._owes_notification:
            self._owes_notification = False
            self._notify()
        self._broken(error)

    def _serve(self, run: bytes) -> None:
        """Serves a run of slots in order, up to a barrier that must wait, or the end of this turn."""
        start = 0
        while start < len(run) and run[start] == blkif.BLKIF_OP_INDIRECT:
            start += _SLOT
        if start:
            self._serve_together([run[at : at + _SLOT] for at in range(0, start, _SLOT)])
            if self._barrier is not None or self._held:
                self._held += run[start:]
                return
        while start < len(run) and self._serve_pages(run[start : start + self._part]):
            start += self._part
            if start < len(run):
                self._show()
        if start < len(run):
            self._serve_mixed(run[start:])

    def _serve_mixed(self, run: bytes) -> None:
        others: list[bytes] = []
        end = 0
        for _, places in groupby(
            range(0, len(run), _SLOT), key=lambda at: is_whole_page(run[at : at + _SLOT])
        ):
            start, end = end, max(places) + _SLOT
            stretch = run[start:end]
            if others and self._whole_pages.find(stretch) is not None:
                self._serve_together(others)
                others = []
                if self._barrier is not None or self._held:
                    self._held += run[start:]
                    return
            if others or not self._serve_pages(stretch):
                others += [run[at : at + _SLOT] for at in range(start, end, _SLOT)]
        if others:
            self._serve_together(others)

    def _serve_pages(self, run: bytes) -> bool:
        """Serves a run of nothing but whole mapped pages; False, and nothing was done, if it is none."""
        answers = self._whole_pages.serve(run)
        if answers is None:
            return False
        self._flush_answers()
        self._ready.append(answers)
        return True

    def _serve_together(self, slots: list[bytes]) -> None:
        """Serves requests of any kind in order, as many as may have their pages mapped together. The rest is
        held: large requests of one guest do not keep the other disks waiting.
        """
        pages = 0
        for index, slot in enumerate(slots):
            pages += slot[2] | slot[3] << 8 if slot[0] == blkif.BLKIF_OP_INDIRECT else slot[1]
            if pages >= _PAGES_AT_ONCE or index == len(slots) - 1:
                self._serve_group(slots[: index + 1])
                self._held += b"".join(slots[index + 1 :])
                return

    def _serve_group(self, slots: list[bytes]) -> None:
        """Serves these requests with one mapping of all their pages; what must wait gets its own and
        becomes a task.
        """
        quick = next((index for index, slot in enumerate(slots) if not self._serve_list(slot)), len(slots))
        if slots := slots[quick:]:
            self._serve_mapped(slots)

    def _serve_list(self, slot: bytes) -> bool:
        """Serves a large request of nothing but whole mapped pages; False, and nothing was done, if it is
        none.
        """
        if slot[0] != blkif.BLKIF_OP_INDIRECT:
            return False
        judged = self._judge(slot)
        status = self._whole_pages.serve_list(judged) if isinstance(judged, Listed) else None
        if status is None:
            return False
        self._service.stats.count(slot[0])
        self._answer(judged, status)
        return True

    def _serve_mapped(self, slots: list[bytes]) -> None:
        judged = self._with_segments([self._judge(slot) for slot in slots])
        lease = self.pages.lease(pages_of(op for op in judged if self._is_at_once(op)))
        try:
            for index, operation in enumerate(judged):
                # Now, and not when it was judged: what a barrier holds up is judged again when its turn comes.
                self._service.stats.count(slots[index][0])
                if isinstance(operation, Refusal):
                    self._answer(operation, self._service.refuse(operation))
                elif self._is_at_once(operation):
                    self._answer(operation, self._service.at_once(operation, lease))
                elif _is_barrier(operation):
                    self._held += b"".join(slots[index + 1 :])
                    self._hold_for(operation)
                    return
                else:
                    self._start(operation)
        finally:
            lease.release()

    def _judge(self, slot: bytes) -> Judged:
        return judge(blkif.unpack_request(slot), self._service.disk, MAX_INDIRECT_SEGMENTS)

    def _with_segments(self, judged: list[Judged]) -> list[Operation | Refusal]:
        """Fetches the segments of indirect requests, once each."""
        lease = self.pages.lease(pages_of(op for op in judged if isinstance(op, Listed)))
        try:
            return [self._fetch(op, lease) if isinstance(op, Listed) else op for op in judged]
        finally:
            lease.release()

    def _fetch(self, request: Listed, lease: Lease) -> Operation | Refusal:
        segments: list[blkif.Segment] = []
        for gref in request.grefs:
            page = lease.page(gref, writes=True)
            if page is None:
                reason = "indirect page not granted"
                return Refusal(request.id, request.operation, blkif.BLKIF_RSP_ERROR, reason)
            count = min(request.nr_segments - len(segments), blkif.SEGMENTS_PER_INDIRECT_PAGE)
            segments += blkif.unpack_indirect_segments(page, count)
        return judge_segments(request, segments, self._service.disk)

    def _is_at_once(self, operation: Judged) -> bool:
        """Whether this is carried out in line. A barrier is, too, if nothing before it is still in flight."""
        if isinstance(operation, Refusal | Listed) or self._service.waits(operation):
            return False
        return not (_is_barrier(operation) and self._in_flight)

    def _start(self, operation: Operation) -> None:
        """Carries out in a task of its own what waits."""
        self._in_flight += 1
        self._spawn(lambda: self._in_task(operation))

    async def _in_task(self, operation: Operation) -> None:
        status: int | None = None  # stays so if this kernel ends: what became of the request nobody knows
        try:
            await checkpoint_if_cancelled()
            lease = self.pages.lease(pages_of((operation,)))
            try:
                status = await self._service.carry_out(operation, lease)
            finally:
                lease.release()
        except Exception as error:
            status = blkif.BLKIF_RSP_ERROR
            self._break(error)
        finally:
            if status is not None:
                self._answer(operation, status)
                self._push()
            self._ended(operation)

    def _ended(self, operation: Operation) -> None:
        self._in_flight -= 1
        if operation is self._barrier:
            self._barrier = None
            self._turn.set()
        elif self._barrier is not None and not self._in_flight:
            self._start(self._barrier)
        if self._idle is not None and not self._in_flight:
            self._idle.wake(None)

    def _hold_for(self, barrier: Operation) -> None:
        """What is behind `barrier` waits for it, and it waits for what is in flight."""
        self._barrier = barrier
        if not self._in_flight:
            self._start(barrier)

    def _answer(self, request: Operation | Listed | Refusal, status: int) -> None:
        self._answers.append((request.id, request.operation, status))

    def _flush_answers(self) -> None:
        if self._answers:
            self._ready.append(pack_response_run(self._answers))
            self._answers.clear()

    def _push(self) -> None:
        """Shows the frontend all answers, and notifies it if it asked for that."""
        self._show()
        if self._owes_notification:
            self._owes_notification = False
            self._notify()

    def _show(self) -> None:
        """Shows the frontend all answers. Who looks at the ring finds them; who sleeps is woken once, when the
        rest is there, too.
        """
        self._flush_answers()
        if self._ready:
            self.ring.put_run(b"".join(self._ready))
            self._ready.clear()
            self._owes_notification |= self.ring.publish()


def _is_barrier(operation: Operation) -> bool:
    return not isinstance(operation, Discard) and operation.barrier
