"""The console driver: public/io/console.h, from the guest's end.

The page is this domain's own; the toolstack granted it to the daemon and opened the port. What the ring has
no room for waits in a backlog of bounded size. Bytes pass as they are: what "\\n" means on a screen is the
terminal's affair.

The daemon's indices are not believed. When they cannot be right the console is closed for good, and what is
written from then on goes where it went before there was a console. An event costs a bounded amount of work
however many come (XSA-391), and nothing here takes a lock (XSA-441).
"""

import re
from typing import Final

from kernel.console import Console
from kernel.events import EventPort
from kernel.parking import Broadcast
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols.console import IN_SIZE, ConsolePage

BACKLOG_BYTES: Final = 1 << 20
"""How much may be written ahead of the daemon. What is more is lost, and counted."""

MAX_LINE_BYTES: Final = 4096
"""A longer line is read in pieces."""

_LINE_END: Final = re.compile(rb"[\r\n]")


class HvcConsole:
    """Made by `attached_console`, which also puts it into the place of the kernel's console.

    broken: what the daemon did, if the console was closed for it. lost_bytes: written, but never sent.
    """

    def __init__(self, page: memoryview, port: EventPort, fallback: Console) -> None:
        self.broken: PeerViolation | None = None
        self.lost_bytes = 0
        self._page = ConsolePage(page)
        self._incoming, self._outgoing = self._page.guest_side()
        self._port = port
        self._fallback = fallback
        self._backlog = bytearray()
        self._input = bytearray()
        self._after_return = False
        self._is_open = True
        self._changed = Broadcast()
        port.on_event = self._on_event

    def write(self, data: str | bytes) -> None:
        """Send `data`, text as UTF-8. Never waits: whoever writes much should `drain` now and then."""
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        if not self._is_open:
            self._fallback.write(raw)
            return
        room = BACKLOG_BYTES - len(self._backlog)
        self.lost_bytes += max(len(raw) - room, 0)
        self._backlog += raw[:room]
        self._push()

    async def drain(self) -> None:
        """Return once the daemon has taken all that was written, or the console is closed."""
        while self._undelivered():
            await self._changed.wait()

    async def read(self, limit: int = IN_SIZE) -> bytes:
        """What was typed, at least one byte and at most `limit`; b"" when the console is closed."""
        while True:
            self._pull()
            if self._input or not self._is_open:
                self._after_return = False
                data = bytes(self._input[:limit])
                del self._input[:limit]
                return data
            await self._changed.wait()

    async def read_line(self) -> bytes:
        """A line that was typed, with a final b"\\n" whether it was ended by "\\r", "\\n" or both.

        Without one it is a piece of MAX_LINE_BYTES, or the rest when the console was closed; then b"".
        """
        while True:
            self._pull()
            line = self._take_line()
            if line is not None:
                return line
            await self._changed.wait()

    def detach(self) -> None:
        """Let go of the page and the port. They stay the domain's, and may be attached anew."""
        if self._is_open:
            self._port.on_event = None
            self._close()

    def _on_event(self) -> None:
        """The daemon has taken or sent something."""
        self._push()
        self._changed.announce()

    def _push(self) -> None:
        """Move what fits from the backlog to the ring."""
        if not self._backlog or not self._is_open:
            return
        try:
            count = self._outgoing.write(self._backlog)
        except PeerViolation as error:
            self._break(error)
            return
        if count:
            del self._backlog[:count]
            self._port.notify()

    def _pull(self) -> None:
        """Fetch what was typed, unless a line's worth waits here already: the rest stays with the daemon."""
        if len(self._input) >= MAX_LINE_BYTES or not self._is_open:
            return
        try:
            data = self._incoming.read()
        except PeerViolation as error:
            self._break(error)
            return
        if data:
            self._input += data
            self._port.notify()

    def _take_line(self) -> bytes | None:
        if self._after_return and self._input:
            self._after_return = False
            if self._input.startswith(b"\n"):
                del self._input[:1]
        found = _LINE_END.search(self._input, 0, MAX_LINE_BYTES)
        if found is not None:
            line = bytes(self._input[: found.start()]) + b"\n"
            self._after_return = found.group() == b"\r"
            del self._input[: found.end()]
            return line
        if len(self._input) < MAX_LINE_BYTES and self._is_open:
            return None
        piece = bytes(self._input[:MAX_LINE_BYTES])
        del self._input[:MAX_LINE_BYTES]
        return piece

    def _undelivered(self) -> bool:
        if not self._is_open:
            return False
        try:
            return bool(self._backlog) or self._outgoing.readable > 0
        except PeerViolation as error:
            self._break(error)
            return False

    def _break(self, error: PeerViolation) -> None:
        """The daemon cannot be talked to: close the port, so that it cannot even notify us any more."""
        self.broken = error
        self._port.close()
        self._fallback.write(f"console closed: {error}\n")
        self._close()

    def _close(self) -> None:
        self._is_open = False
        self._page.detach()
        rest, self._backlog = self._backlog, bytearray()
        if rest:
            self._fallback.write(bytes(rest))
        self._changed.announce()
