"""A person, or a program, that looks at a console and may type.

A terminal that does not keep up loses the oldest of what it has not seen yet, and knows how much: neither the
guest nor the other terminals wait for it.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from kernel.parking import Latch

BACKLOG_BYTES: Final = 256 * 1024


class Terminal:
    """Made by `GuestConsole.attach`; for one task to read.

        async with console.attach() as terminal:
            await terminal.send(b"ls\\r")
            async for data in terminal: ...

    It begins with the end of what was printed before. lost_bytes: printed, but gone before it was read.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        enter: Callable[["Terminal"], None],
        leave: Callable[["Terminal"], None],
    ) -> None:
        self.lost_bytes = 0
        self._backlog = bytearray()
        self._send = send
        self._enter = enter
        self._leave = leave
        self._ended = False
        self._arrived = Latch()

    async def __aenter__(self) -> Self:
        self._enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self)
        self.end()

    async def send(self, data: bytes) -> None:
        """Type `data`; returns when the guest has room for all of it. What several terminals send is not
        mixed. Cancelled, it may have sent a part. Raises ConsoleClosed.
        """
        await self._send(data)

    async def receive(self) -> bytes:
        """All that was printed since the last call, at least one byte; b"" when there will be no more."""
        while not self._backlog and not self._ended:
            await self._arrived.wait()
        data, self._backlog = bytes(self._backlog), bytearray()
        return data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive()
        if not data:
            raise StopAsyncIteration
        return data

    def feed(self, data: bytes) -> None:
        """The guest has printed `data`."""
        self._backlog += data
        excess = len(self._backlog) - BACKLOG_BYTES
        if excess > 0:
            del self._backlog[:excess]
            self.lost_bytes += excess
        self._arrived.set()

    def end(self) -> None:
        """Nothing will be printed any more."""
        self._ended = True
        self._arrived.set()
