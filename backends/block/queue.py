"""The ring of one block device at the backend: takes requests in runs, has them served, answers in runs.

A run of slots is copied once. Reads and writes of one whole page that is mapped already, nearly all there are, go to the
store straight from the walk over the run. All others are gathered, judged, have their pages mapped together, are served
in order and have their pages unmapped before any of them is answered. Requests are begun in the order of the ring.

What must wait (a store's method is `async def`) becomes a task and is answered when it ends; the ring goes on. A barrier
is the exception: it is begun when nothing is in flight any more, and what comes behind it on the ring waits for it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from backends.block.pages import GrantedPages, Lease
from backends.block.requests import Discard, Judged, Listed, Refusal, judge, judge_segments
from backends.block.service import Operation, Service, pages_of
from backends.contract import SECTOR_BYTES
from kernel.parking import Waiter, waiter_factory
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_runs import ResponseFields, pack_response_run, unpack_rw1_run
from ringbuffers.ring import BackRing

MAX_INDIRECT_SEGMENTS: Final = 256
_SLOT: Final = blkif.REQUEST_SLOT_SIZE
_RUNS_A_TURN: Final = 4  # after so many the other devices and domains have their turn
_PAGES_AT_ONCE: Final = 1024  # mapped together for requests that are served together (XSA-300)
_SECTOR_SHIFT: Final = SECTOR_BYTES.bit_length() - 1

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


class BlockQueue:
    """Serves one ring until `close`.

    notify: tells the frontend. spawn: starts a task that outlives this call. broken: called once, with the violation,
    when the frontend breaks the ring; no request is taken after that.
    """

    def __init__(
        self,
        ring: BackRing,
        pages: GrantedPages,
        service: Service,
        *,
        notify: Callable[[], None],
        spawn: Spawn,
        broken: Callable[[PeerViolation], None],
    ) -> None:
        self.ring = ring
        self.pages = pages
        self._service = service
        self._notify = notify
        self._spawn = spawn
        self._broken = broken
        self._answers: list[ResponseFields] = []
        self._held = b""  # slots taken from the ring that wait for a barrier
        self._barrier: Operation | None = None
        self._in_flight = 0  # operations that are tasks now
        self._stopped = False
        self._idle: Waiter[None] | None = None

    def drain(self) -> None:
        """Serves what is on the ring. To be called when the frontend notifies, and once at the beginning."""
        try:
            for _ in range(_RUNS_A_TURN):
                if self._stopped or self._barrier is not None:
                    return
                run, self._held = self._held or self.ring.take_run(), b""
                if run:
                    self._serve(run)
                    self._push()
                elif not self.ring.rearm():
                    return
        except PeerViolation as violation:
            self._stopped = True
            self._broken(violation)
        else:
            self._spawn(self._next_turn)

    async def close(self) -> None:
        """Takes no more requests, lets those in flight end and be answered, and unmaps all pages."""
        self._stopped = True
        if self._in_flight:
            self._idle = waiter_factory()()
            await self._idle.wait()
        self.pages.close()

    async def _next_turn(self) -> None:
        self.drain()

    def _serve(self, run: bytes) -> None:
        """Serves a run of slots in order, up to a barrier that must wait."""
        service = self._service
        disk, recent = service.disk, self.pages.recent
        read, write = disk.store.read, disk.store.write
        last_page, unaligned = disk.sectors - blkif.SECTORS_PER_PAGE, disk.sector_size // SECTOR_BYTES - 1
        quick = self._quick_operations()
        answer = self._answers.append
        reads = writes = 0
        others: list[bytes] = []
        for index, slot in enumerate(unpack_rw1_run(run)):
            operation, segments, _, request_id, sector, gref, first, last = slot
            if (
                operation not in quick
                or segments != 1
                or last != 7
                or first
                or sector > last_page
                or sector & unaligned
                or gref not in recent
            ):
                others.append(run[index * _SLOT : (index + 1) * _SLOT])
                continue
            if others:
                self._serve_together(others)
                others = []
                if self._barrier is not None:
                    self._held += run[index * _SLOT :]
                    break
            try:
                if operation:
                    writes += 1
                    write(sector << _SECTOR_SHIFT, recent[gref])
                else:
                    reads += 1
                    read(sector << _SECTOR_SHIFT, recent[gref])
                answer((request_id, operation, 0))
            except Exception as error:
                answer((request_id, operation, service.failed(error)))
        service.stats.count_pages(reads, writes)
        if others:
            self._serve_together(others)

    def _quick_operations(self) -> tuple[int, ...]:
        """Operations that the walk over a run may hand to the store by itself."""
        disk = self._service.disk
        if "read" in disk.waits or "write" in disk.waits:
            return ()
        return (blkif.BLKIF_OP_READ,) if disk.read_only else (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE)

    def _serve_together(self, slots: list[bytes]) -> None:
        """Serves requests of any kind in order, as many at once as may have their pages mapped together."""
        start = pages = 0
        for index, slot in enumerate(slots):
            pages += slot[2] | slot[3] << 8 if slot[0] == blkif.BLKIF_OP_INDIRECT else slot[1]
            if pages >= _PAGES_AT_ONCE or index == len(slots) - 1:
                self._serve_group(slots[start : index + 1])
                if self._barrier is not None:
                    self._held += b"".join(slots[index + 1 :])
                    return
                start, pages = index + 1, 0

    def _serve_group(self, slots: list[bytes]) -> None:
        """Serves these requests with one mapping of all their pages; what must wait gets its own and becomes a task."""
        judged = self._with_segments([self._judge(slot) for slot in slots])
        lease = self.pages.lease(pages_of(op for op in judged if self._is_at_once(op)))
        try:
            for index, operation in enumerate(judged):
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
        request = blkif.unpack_request(slot)
        self._service.stats.count(request.operation)
        return judge(request, self._service.disk, MAX_INDIRECT_SEGMENTS)

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
        status = blkif.BLKIF_RSP_ERROR
        try:
            lease = self.pages.lease(pages_of((operation,)))
            try:
                status = await self._service.carry_out(operation, lease)
            finally:
                lease.release()
        finally:
            self._answer(operation, status)
            self._push()
            self._ended(operation)

    def _ended(self, operation: Operation) -> None:
        self._in_flight -= 1
        if operation is self._barrier:
            self._barrier = None
            self.drain()
        elif self._barrier is not None and not self._in_flight:
            self._start(self._barrier)
        if self._idle is not None and not self._in_flight:
            self._idle.wake(None)

    def _hold_for(self, barrier: Operation) -> None:
        """What is behind `barrier` waits for it, and it waits for what is in flight."""
        self._barrier = barrier
        if not self._in_flight:
            self._start(barrier)

    def _answer(self, request: Operation | Refusal, status: int) -> None:
        self._answers.append((request.id, request.operation, status))

    def _push(self) -> None:
        """Shows the frontend all answers at once."""
        if self._answers:
            self.ring.put_run(pack_response_run(self._answers))
            self._answers.clear()
            if self.ring.publish():
                self._notify()


def _is_barrier(operation: Operation) -> bool:
    return not isinstance(operation, Discard) and operation.barrier
