"""What waits to be read by one client: answers and watch events, in order, bounded.

All of it is charged to the client's domain. What a guest does not read stops its requests (`outstanding`),
events that it does not read in time are dropped, and so is an event that waits already (XSA-326).
"""

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from dom0.xenstore.domain import Domain
from dom0.xenstore.paths import SPECIAL
from ringbuffers.protocols.xs_wire import HEADER, XS_WATCH_EVENT

if TYPE_CHECKING:
    from dom0.xenstore.connection import Connection


class Ticket:
    """A guest's request, outstanding until its answer and all events that it caused were read or dropped."""

    __slots__ = ("_holders", "connection")

    def __init__(self, connection: "Connection") -> None:
        """The request is being handled; `release` once it was."""
        self.connection = connection
        self._holders = 1
        connection.outstanding += 1

    def hold(self) -> None:
        """One more message of it is queued."""
        self._holders += 1

    def release(self) -> None:
        """One message less."""
        self._holders -= 1
        if self._holders == 0:
            self.connection.outstanding -= 1
            self.connection.relieved()


class Queued(NamedTuple):
    """One message. event: the payload, if it is an event. deadline_ns: when an event has waited too long."""

    data: bytes
    ticket: Ticket | None
    event: bytes | None
    deadline_ns: int | None


class Output:
    """The queue of one connection. size: bytes in it."""

    __slots__ = ("_domain", "_events", "_queue", "_sent", "dropped", "size")

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._queue: deque[Queued] = deque()
        self._events: set[bytes] = set()
        self._sent = 0
        self.size = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def answer(self, kind: int, req_id: int, tx_id: int, payload: bytes, ticket: Ticket | None) -> None:
        """Queue an answer. The client asked for it, so that it is always kept."""
        self._add(Queued(HEADER.pack(kind, req_id, tx_id, len(payload)) + payload, ticket, None, None))

    def event(self, payload: bytes, ticket: Ticket | None, deadline_ns: int | None) -> bool:
        """Queue an event, unless the same one waits already or the client holds too much; whether it was
        queued.

        Events of special watches are never the same: each stands for another domain.
        """
        if payload in self._events:
            return False
        if self._domain.over_memory:
            self.dropped += 1
            return False
        if not payload.startswith(SPECIAL):
            self._events.add(payload)
        data = HEADER.pack(XS_WATCH_EVENT, 0, 0, len(payload)) + payload
        self._add(Queued(data, ticket, payload, deadline_ns))
        return True

    def _add(self, message: Queued) -> None:
        self._queue.append(message)
        self.size += len(message.data)
        self._domain.memory += len(message.data)
        if message.ticket is not None:
            message.ticket.hold()

    def take(self, limit: int) -> bytes:
        """Remove up to `limit` bytes from the front; they count as read."""
        queue = self._queue
        parts: list[bytes] = []
        room = limit
        while queue and room > 0:
            message = queue[0]
            rest = len(message.data) - self._sent
            if message.event is not None and self._sent == 0:
                self._events.discard(message.event)
            if rest > room:
                parts.append(message.data[self._sent : self._sent + room])
                self._sent += room
                break
            parts.append(message.data[self._sent :] if self._sent else message.data)
            room -= rest
            self._sent = 0
            queue.popleft()
            self._forget(message)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _forget(self, message: Queued) -> None:
        self.size -= len(message.data)
        self._domain.memory -= len(message.data)
        if message.ticket is not None:
            message.ticket.release()

    def clear(self) -> None:
        """Drop everything, also the rest of a message that was read in part."""
        self._sent = 0
        self._events.clear()
        while self._queue:
            self._forget(self._queue.popleft())

    def next_deadline_ns(self) -> int | None:
        """When the oldest event that can expire does; one that was read in part cannot."""
        unread = islice(self._queue, 1 if self._sent else 0, None)
        return next((m.deadline_ns for m in unread if m.deadline_ns is not None), None)

    def expire(self, now_ns: int) -> None:
        """Drop events that waited too long; one that was read in part stays."""
        started = self._queue[0] if self._sent else None
        keep: deque[Queued] = deque()
        late: list[Queued] = []
        for message in self._queue:
            overdue = message.deadline_ns is not None and message.deadline_ns <= now_ns
            (late if overdue and message is not started else keep).append(message)
        self._queue = keep
        for message in late:
            if message.event is not None:
                self._events.discard(message.event)
            self.dropped += 1
            self._forget(message)
