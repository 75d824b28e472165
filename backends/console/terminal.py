"""A terminal that somebody has attached to a console: an async stream of output, and a way to type."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from kernel.parking import Latch

DEFAULT_LIMIT_BYTES: Final = 1 << 20


class ConsoleEnded(Exception):
    """The console's domain is gone; nothing comes from it any more."""

    def __init__(self, domid: int) -> None:
        super().__init__(f"the console of domain {domid} has ended")
        self.domid = domid


class Terminal:
    """One reader of a console's output. A reader that lags behind loses the oldest, as with xenconsoled.

    dropped: bytes lost so.
    """

    def __init__(self, domid: int, type_in: Callable[[bytes], None], limit_bytes: int) -> None:
        self.dropped = 0
        self._domid = domid
        self._type_in = type_in
        self._limit_bytes = limit_bytes
        self._output = bytearray()
        self._ended = False
        self._woken = Latch()

    def send(self, data: bytes) -> None:
        """Types `data`. Raises ConsoleEnded."""
        if self._ended:
            raise ConsoleEnded(self._domid)
        self._type_in(data)

    async def receive(self) -> bytes:
        """Output since the last call, at least a byte. Raises ConsoleEnded when there is no more."""
        while not self._output:
            if self._ended:
                raise ConsoleEnded(self._domid)
            await self._woken.wait()
        data = bytes(self._output)
        self._output.clear()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                yield await self.receive()
            except ConsoleEnded:
                return

    def feed(self, data: bytes) -> None:
        """The console has printed `data`."""
        self._output += data
        excess = len(self._output) - self._limit_bytes
        if excess > 0:
            self.dropped += excess
            del self._output[:excess]
        self._woken.set()

    def end(self) -> None:
        """The console is gone."""
        self._ended = True
        self._woken.set()
