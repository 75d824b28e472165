"""A console on the page of xencons_interface, as Linux's hvc_xen drives it.

The ring holds 2048 bytes of output; what does not fit waits here, up to a bound, and follows as the daemon reads. Input
that nobody reads stays in the ring once a bound is reached, so that whoever types has to wait. A daemon that breaks the
ring ends the console, not the domain.
"""

from collections.abc import AsyncIterator
from typing import Final

from kernel.events import EventPort
from kernel.parking import Broadcast
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols.console import ConsolePage

BACKLOG_BYTES: Final = 1 << 20
INPUT_BYTES: Final = 4096


class HvcConsole:
    """The guest's end of a console.

    dropped: bytes of output that found no room. violation: how the daemon broke the ring, if it did; output is dropped
    and no input comes since then.
    """

    def __init__(self, page: memoryview, port: EventPort) -> None:
        self._page = ConsolePage(page)
        self._incoming, self._outgoing = self._page.guest_side()
        self._port = port
        self._backlog = bytearray()
        self._input = bytearray()
        self._changed = Broadcast()
        self.dropped = 0
        self.violation: PeerViolation | None = None
        port.on_event = self._on_event

    def write(self, data: str | bytes) -> None:
        """Sends text on its way; never waits. What goes beyond the backlog's bound is dropped and counted."""
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        room = BACKLOG_BYTES - len(self._backlog)
        if self.violation is not None:
            room = 0
        self.dropped += max(len(raw) - room, 0)
        self._backlog += raw[:room]
        self._exchange()

    async def drain(self) -> None:
        """Waits until the daemon has been given everything that was written."""
        while self._backlog and self.violation is None:
            await self._changed.wait()

    async def read(self) -> bytes:
        """What was typed since, at least a byte. Raises PeerViolation when the ring is broken."""
        while not self._input:
            if self.violation is not None:
                raise self.violation
            await self._changed.wait()
        data = bytes(self._input)
        self._input.clear()
        self._exchange()
        return data

    async def read_line(self) -> str:
        """A line of what was typed, without its end; a longer one than 4096 bytes comes in pieces."""
        while not (end := _line_end(self._input)):
            if self.violation is not None:
                raise self.violation
            await self._changed.wait()
        line = bytes(self._input[:end])
        del self._input[:end]
        self._exchange()
        return line.rstrip(b"\r\n").decode("utf-8", "replace")

    async def lines(self) -> AsyncIterator[str]:
        """Lines as they are typed, for ever."""
        while True:
            yield await self.read_line()

    def detach(self) -> None:
        """Lets go of the page and the port, which stay open for whoever attaches next."""
        self._port.on_event = None
        self._page.detach()

    def _on_event(self) -> None:
        self._exchange()
        self._changed.announce()

    def _exchange(self) -> None:
        """Moves what fits both ways, and tells the daemon if anything moved."""
        if self.violation is not None:
            return
        try:
            sent = self._outgoing.write(self._backlog)
            typed = self._incoming.read(INPUT_BYTES - len(self._input))
        except PeerViolation as violation:
            self.violation = violation
            self.dropped += len(self._backlog)
            self._backlog.clear()
            self._changed.announce()
            return
        del self._backlog[:sent]
        self._input += typed
        if sent or typed:
            self._port.notify()


def _line_end(text: bytearray) -> int:
    """How many bytes the first line has, its end included; 0 if it is not complete."""
    found = min((at for at in (text.find(b"\n"), text.find(b"\r")) if at >= 0), default=-1)
    if found >= 0:
        return found + (2 if text[found : found + 2] == b"\r\n" else 1)
    return len(text) if len(text) >= INPUT_BYTES else 0
