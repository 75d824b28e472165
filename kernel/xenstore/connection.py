"""The transport: requests and replies by id over the ring page, watch events by token.

Everything happens in the event port's callback and in `request`; there is no task. Requests that find the
ring full wait in a buffer for the daemon's next event. The daemon is trusted to be slow, not to be wrong: an
id that was never given out, a reply of another kind than its request, an index out of bounds or a message
that is too long ends the connection, and everybody who waits is told.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kernel.events import EventPort
from kernel.parking import NewWaiter, Waiter, waiter_factory
from kernel.xenstore.errors import StoreConnectionBroken, StoreError
from kernel.xenstore.wire import NAMES, decode, split
from ringbuffers.atomics import fence
from ringbuffers.errors import RingError
from ringbuffers.protocols.xs_wire import (
    XENSTORE_ERROR_NONE,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_SERVER_FEATURE_ERROR,
    XS_ERROR,
    XS_WATCH_EVENT,
    Message,
    Parser,
    XenstorePage,
)

_ID_LIMIT: Final = 1 << 32
_MAX_ERROR_NAME: Final = 32

OnEvent = Callable[[str, str], None]
"""Called with the path and the token of a watch event."""


class Reply:
    """A request on its way."""

    __slots__ = ("kind", "path", "waiter")

    def __init__(self, kind: int, path: str, waiter: Waiter[bytes]) -> None:
        self.kind = kind
        self.path = path
        self.waiter = waiter

    async def wait(self) -> bytes:
        """The payload of the reply. Raises StoreError, StoreConnectionBroken."""
        return await self.waiter.wait()


class Connection:
    """One end of the ring page. `broken` says why it is beyond use; `on_event` and `on_broken` are the
    client's.
    """

    def __init__(
        self, page: memoryview, port: EventPort, on_event: OnEvent, on_broken: Callable[[], None]
    ) -> None:
        self.broken: StoreConnectionBroken | None = None
        self._page = XenstorePage(page)
        self._incoming, self._outgoing = self._page.guest_side()
        self._port = port
        self._on_event = on_event
        self._on_broken = on_broken
        self._parser = Parser()
        self._unsent: deque[bytes] = deque()
        self._replies: dict[int, Reply] = {}
        self._next_id = 1
        self._corked = False
        self._new_waiter: NewWaiter[bytes] | None = None
        port.on_event = self._serve

    @property
    def in_flight(self) -> int:
        """Requests that have no reply yet."""
        return len(self._replies)

    def request(self, kind: int, payload: bytes, path: str, tx_id: int = 0) -> Reply:
        """Send a request; many may be under way. Raises StoreConnectionBroken, StoreError (E2BIG) if it is
        too long.
        """
        if self.broken is not None:
            raise self.broken
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise StoreError("E2BIG", NAMES[kind], path)
        if self._new_waiter is None:
            self._new_waiter = waiter_factory()
        req_id = self._fresh_id()
        reply = self._replies[req_id] = Reply(kind, path, self._new_waiter())
        self._unsent.append(Message(kind, req_id, tx_id, payload).pack())
        if not self._corked:
            self._guarded(self._flush)
        return reply

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Requests made inside the block leave at its end, with one notification. The block does not wait."""
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
            if self.broken is None:
                self._guarded(self._flush)

    def _fresh_id(self) -> int:
        """Ids count up and are not used again while their request is under way; 0 belongs to watch events."""
        while True:
            req_id, self._next_id = self._next_id, self._next_id % (_ID_LIMIT - 1) + 1
            if req_id not in self._replies:
                return req_id

    def _serve(self) -> None:
        """The daemon has written replies, or has read requests."""
        if self.broken is None:
            self._guarded(self._drain)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except RingError as violation:
            self._break(str(violation))
        except StoreConnectionBroken as error:
            self._break(error.why)

    def _drain(self) -> None:
        incoming = self._incoming
        while data := incoming.read():
            # A daemon that found the ring full waits to be told; it looked before our store of the consumer
            # index, or after.
            fence()
            if len(data) + incoming.readable >= incoming.size:
                self._port.notify()
            for message in self._parser.feed(data):
                self._take(message)
        self._flush()
        page = self._page
        if page.server_features & XENSTORE_SERVER_FEATURE_ERROR and page.error != XENSTORE_ERROR_NONE:
            raise StoreConnectionBroken(f"the daemon reports error {page.error}")

    def _flush(self) -> None:
        """Write as much as fits; what does not waits for the daemon's next event."""
        unsent = self._unsent
        written = False
        while unsent:
            data = unsent[0]
            accepted = self._outgoing.write(data)
            written = written or accepted > 0
            if accepted < len(data):
                unsent[0] = data[accepted:]
                break
            unsent.popleft()
        if written:
            self._port.notify()

    def _take(self, message: Message) -> None:
        if message.type == XS_WATCH_EVENT:
            self._take_event(message)
            return
        reply = self._replies.pop(message.req_id, None)
        if reply is None:
            raise StoreConnectionBroken(f"a reply to request {message.req_id}, which was not made")
        if message.type == XS_ERROR:
            name = decode(message.payload.rstrip(b"\0"))[:_MAX_ERROR_NAME]
            reply.waiter.fail(StoreError(name, NAMES[reply.kind], reply.path))
        elif message.type == reply.kind:
            reply.waiter.wake(message.payload)
        else:
            self._replies[message.req_id] = reply  # so that it is told, with all the others
            found = NAMES.get(message.type, str(message.type))
            raise StoreConnectionBroken(f"a reply of kind {found} to {NAMES[reply.kind]}")

    def _take_event(self, message: Message) -> None:
        parts = split(message.payload)
        if len(parts) < 2:
            raise StoreConnectionBroken("a watch event without path and token")
        self._on_event(parts[0], parts[1])

    def violated(self, what: str) -> StoreConnectionBroken:
        """End the connection because of what a reply says; returns the error to raise."""
        self._break(what)
        return self.broken or StoreConnectionBroken(what)

    def _break(self, why: str) -> None:
        self.broken = error = StoreConnectionBroken(why)
        replies, self._replies = self._replies, {}
        self._unsent.clear()
        for reply in replies.values():
            reply.waiter.fail(error)
        self._on_broken()
