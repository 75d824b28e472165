"""A client on a Unix socket, such as the xenstore-* tools: the same bytes as on a ring.

It speaks for the control domain, so whoever may open the socket may do everything.
"""

from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

from dom0.xenstore.connection import Failure
from dom0.xenstore.core import XenStore
from dom0.xenstore.output import Output
from kernel.parking import Latch

_CHUNK_BYTES: Final = 8192
_SEND_BYTES: Final = 65536
# A client that takes nothing for so long, with the socket's own buffers full, is closed: the guests whose
# changes it is told of are held up until it reads.
_SLOW_READER_SECONDS: Final = 20.0
# How long what was answered is still sent to a client that said it would send no more.
_LAST_WORDS_SECONDS: Final = 1.0


class SocketClient:
    """One accepted socket, as a transport and as the two tasks that move its bytes."""

    def __init__(self, core: XenStore, stream: SocketStream) -> None:
        self._core = core
        self._stream = stream
        # anyio's own stream fails in asyncio when it is cancelled in the moment in which bytes arrive.
        self._socket = stream.extra(SocketAttribute.raw_socket)
        self._to_send = Latch()
        self._served = Latch()
        self._scope = anyio.CancelScope()
        self._ended = False
        self._connection = core.connect(transport=self)

    async def run(self) -> None:
        """Serve the client until it closes, breaks the protocol or reads nothing."""
        try:
            async with self._stream:
                with self._scope:
                    await self._talk()
        finally:
            self._core.disconnect(self._connection)

    async def _talk(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send)
            await self._receive()
            self._ended = True
            self._to_send.set()
            tasks.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS_SECONDS

    async def _receive(self) -> None:
        """Hand over requests, no faster than they are served."""
        while data := await self._arrived():
            self._core.receive(self._connection, data)
            while self._connection.inbox or self._connection.queued:
                await self._served.wait()

    async def _arrived(self) -> bytes:
        """The next bytes; none if the client has closed."""
        while True:
            try:
                return self._socket.recv(_CHUNK_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError:
                return b""

    async def _send(self) -> None:
        """Send the output whenever there is some."""
        output = self._connection.output
        while True:
            while output:
                data = output.take(_SEND_BYTES)
                self._connection.relieved()
                if not await self._deliver(data):
                    self._scope.cancel()
                    return
            if self._ended:
                return
            await self._to_send.wait()

    async def _deliver(self, data: bytes) -> bool:
        """Whether the client took it in time."""
        rest = memoryview(data)
        with anyio.move_on_after(_SLOW_READER_SECONDS):
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
                except OSError:
                    return False
        return not rest

    # As the connection's transport

    def attach(self, wake: Callable[[], None]) -> None:
        """What arrives is handed over by `_receive`, which wakes the connection itself."""

    def restarted(self) -> bool:
        return False

    def fill(self) -> bytes:
        return b""

    def flush(self, output: Output) -> bool:
        """A turn is over."""
        if output:
            self._to_send.set()
        self._served.set()
        return False

    def fail(self, _failure: Failure) -> None:
        """The core closes a socket whose client broke the protocol."""

    def close(self) -> None:
        self._scope.cancel()
