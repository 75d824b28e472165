"""The client that a kernel hands to its drivers and programs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

from anyio.lowlevel import checkpoint

from kernel.events import EventPort
from kernel.xenstore.connection import Connection
from kernel.xenstore.errors import StoreConnectionBroken, StoreError, TransactionConflict
from kernel.xenstore.operations import Operations
from kernel.xenstore.transaction import Transaction
from kernel.xenstore.watches import Watch
from kernel.xenstore.wire import split, strings
from ringbuffers.protocols.xs_wire import (
    XS_GET_DOMAIN_PATH,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_RELEASE,
    XS_UNWATCH,
    XS_WATCH,
)

T = TypeVar("T")

MAX_ATTEMPTS: Final = 64
"""How often a transaction is tried before the store counts as too busy."""


class XenStoreClient(Operations):
    """XenStore over the ring in `page`, notified through `port`. Usable at once; requests wait for a daemon
    to appear.

    stray_events: watch events for no watch of ours; those on their way while a watch ends are among them.
    """

    def __init__(self, page: memoryview, port: EventPort) -> None:
        super().__init__(Connection(page, port, self._dispatch, self._end))
        self.stray_events = 0
        self._watches: dict[str, Watch] = {}
        self._next_token = 1

    @property
    def broken(self) -> StoreConnectionBroken | None:
        """Why no request will be answered any more, if so."""
        return self._connection.broken

    @property
    def in_flight(self) -> int:
        """Requests that have no reply yet."""
        return self._connection.in_flight

    def watch(
        self, path: str, callback: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[Watch]:
        """Watch `path` and everything below it while inside the context.

        The watch is an async iterator of changed paths; with `callback`, that is called for each event
        instead, in the middle of whatever happens then: it should only leave a note.
        """
        return self._watching(path, callback)

    @asynccontextmanager
    async def _watching(self, path: str, callback: Callable[[], None] | None) -> AsyncIterator[Watch]:
        token = f"{self._next_token:016X}"
        self._next_token += 1
        watch = self._watches[token] = Watch(path, token, callback)
        try:
            await self._send(XS_WATCH, strings(path, token), path).wait()
            yield watch
        finally:
            self._watches.pop(token, None)
            self._unwatch(path, token)

    def _unwatch(self, path: str, token: str) -> None:
        """End a watch. Nobody waits for the answer: events on their way are strays, and a kernel that ends
        has no upcalls any more that would bring it.
        """
        if self.broken is None:
            self._send(XS_UNWATCH, strings(path, token), path)

    async def transact(
        self, function: Callable[[Transaction], Awaitable[T]], *, attempts: int = MAX_ATTEMPTS
    ) -> T:
        """Run `function` in a transaction and commit; again from the start when others have changed what it
        saw.

        Raises what `function` raises, after abandoning the transaction, and TransactionConflict after
        `attempts` attempts.
        """
        for _ in range(attempts):
            transaction = await Transaction.start(self._connection)
            try:
                result = await function(transaction)
            except BaseException:
                transaction.abandon()
                raise
            try:
                await transaction.commit()
            except StoreError as error:
                if error.name != "EAGAIN":
                    raise
                await checkpoint()
            else:
                return result
        raise TransactionConflict(attempts)

    async def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Tell the daemon of a new domain: its ring page and the port that it holds open. The control domain
        only.
        """
        await self._send(XS_INTRODUCE, strings(str(domid), str(gfn), str(port)), str(domid)).wait()

    async def release(self, domid: int) -> None:
        """Tell the daemon to let go of a domain. The control domain only."""
        await self._send(XS_RELEASE, strings(str(domid)), str(domid)).wait()

    async def is_introduced(self, domid: int) -> bool:
        """Whether the daemon serves a domain. The control domain only."""
        reply = await self._send(XS_IS_DOMAIN_INTRODUCED, strings(str(domid)), str(domid)).wait()
        return split(reply) == ["T"]

    async def domain_path(self, domid: int) -> str:
        """The folder of a domain, whether it exists or not."""
        reply = await self._send(XS_GET_DOMAIN_PATH, strings(str(domid)), str(domid)).wait()
        return "".join(split(reply)[:1])

    def _dispatch(self, path: str, token: str) -> None:
        watch = self._watches.get(token)
        if watch is None:
            self.stray_events += 1
        else:
            watch.fire(path)

    def _end(self) -> None:
        """The connection is broken: whoever iterates a watch is told."""
        error = self.broken
        if error is not None:
            for watch in list(self._watches.values()):
                watch.end(error)
