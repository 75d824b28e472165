"""A guest's console on two descriptors: what it prints goes out, what comes in is typed.

A pipe is read no faster than the guest takes what is typed; its end means that nothing more will be typed, no more than
that. A terminal is read all the time, so that Ctrl-] is heard even if the guest listens to nothing.
"""

from contextlib import suppress
from typing import Final

import anyio

from backends.console.errors import ConsoleClosed
from backends.console.terminal import Terminal
from dom0.boot.streams import Sink, Source
from kernel.parking import Latch

DETACH: Final = b"\x1d"
"""Ctrl-], as with `xl console`"""

TYPED_AHEAD_BYTES: Final = 1 << 20
"""as much as may be typed on a terminal that the guest has not taken; the rest is lost"""


class Conversation:
    """`listen` shows, `talk` types; each is for a task of its own."""

    def __init__(self, terminal: Terminal, source: Source, sink: Sink, *, interactive: bool) -> None:
        self._terminal = terminal
        self._source = source
        self._sink = sink
        self._interactive = interactive

    @property
    def lost_bytes(self) -> int:
        """Printed, but not shown, because whoever reads was too slow."""
        return self._terminal.lost_bytes

    async def listen(self) -> None:
        """Returns when the console has ended and all was shown. Raises OSError if nobody takes it any more."""
        async for data in self._terminal:
            await self._sink.write(data)

    async def talk(self) -> bool:
        """Types until there is no more to type. Says whether somebody wants to leave (Ctrl-])."""
        with suppress(ConsoleClosed):
            if self._interactive:
                return await self._type_keys()
            while data := await self._source.read():
                await self._terminal.send(data)
        return False

    async def _type_keys(self) -> bool:
        ahead = bytearray()
        more = Latch()

        async def pass_on() -> None:
            with suppress(ConsoleClosed):
                while True:
                    while not ahead:
                        await more.wait()
                    data = bytes(ahead)
                    ahead.clear()
                    await self._terminal.send(data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on)
            while (data := await self._source.read()) and DETACH not in data:
                ahead += data[: TYPED_AHEAD_BYTES - len(ahead)]
                more.set()
            tasks.cancel_scope.cancel()
        return DETACH in data
