"""The console of one domain: takes what the guest prints to the log, the history and all terminals, and what
terminals send to the guest.
"""

from collections.abc import Callable

import anyio

from backends.console.errors import ConsoleClosed
from backends.console.history import History
from backends.console.link import ConsoleLink
from backends.console.log import ConsoleLog
from backends.console.terminal import Terminal
from kernel.errors import KernelError
from kernel.parking import Latch
from ringbuffers.errors import PeerViolation


class GuestConsole:
    """One console, from the domain's creation on; what it printed can be read after its end.

    identity: the domain's handle; numbers are used again, handles are not. port: the guest's. log: where
    its output goes. tell: takes a line for the operator. link: the ring, while it is served. closed: why it
    is not any more. bytes_out: printed by the guest. bytes_in: typed. queued: the daemon's mark that it waits
    for its turn.
    """

    def __init__(
        self, domid: int, identity: bytes, port: int, log: ConsoleLog, tell: Callable[[str], None]
    ) -> None:
        self.domid = domid
        self.identity = identity
        self.port = port
        self.log = log
        self.closed: str | None = None
        self.bytes_out = 0
        self.bytes_in = 0
        self.queued = False
        self._tell = tell
        self.link: ConsoleLink | None = None
        self._history = History()
        self._terminals: dict[Terminal, None] = {}
        self._room = Latch()
        self._sending = anyio.Lock()

    def turn(self) -> None:
        """Take what the guest has printed, a ring full at most, and let whoever types go on. A guest that
        lies about its ring loses its console.
        """
        self._take()
        self._room.set()

    def _take(self) -> None:
        if self.link is None:
            return
        try:
            data = self.link.take()
        except PeerViolation as error:
            self._abandon(error)
            return
        if data:
            self.bytes_out += len(data)
            self._history.append(data)
            for terminal in self._terminals:
                terminal.feed(data)
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Log, and tell the operator once if that begins to fail."""
        failed_before = self.log.failure is not None
        self.log.append(data)
        if self.log.failure is not None and not failed_before:
            self._tell(f"console of domain {self.domid} cannot be logged: {self.log.failure}")

    @property
    def last_line(self) -> str:
        """The last line that shows anything; harmless for any terminal."""
        return self._history.last_line

    @property
    def tail(self) -> bytes:
        """The last few KiB of output, as they were printed."""
        return self._history.tail

    def output(self) -> str:
        """All output that the log still has, what lies in the ring at this moment included."""
        self._take()
        return self.log.content().decode("utf-8", "replace")

    def attach(self) -> Terminal:
        """A terminal, to be used as an async context. Any number may be attached at a time."""
        return Terminal(self._send, self._enter, self._leave)

    def _enter(self, terminal: Terminal) -> None:
        terminal.feed(self.tail)
        if self.closed is None:
            self._terminals[terminal] = None
        else:
            terminal.end()

    def _leave(self, terminal: Terminal) -> None:
        self._terminals.pop(terminal, None)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            rest = memoryview(data)
            while rest:
                count = self._give(rest)
                rest = rest[count:]
                self.bytes_in += count
                if not count:
                    await self._room.wait()

    def _give(self, data: memoryview) -> int:
        if self.link is not None:
            try:
                return self.link.give(data)
            except PeerViolation as error:
                self._abandon(error)
        raise ConsoleClosed(self.domid, self.closed or "not connected")

    def _abandon(self, error: PeerViolation) -> None:
        self._close(f"broken by the guest: {error}")
        self._tell(f"console of domain {self.domid} closed: {self.closed}")

    def close(self, reason: str) -> None:
        """Take what is left in the ring, then unmap it. Terminals end; closing twice is the same as once."""
        self._take()
        self._close(reason)

    def _close(self, reason: str) -> None:
        if self.closed is not None:
            return
        self.closed = reason
        link, self.link = self.link, None
        if link is not None:
            try:
                link.close()
            except KernelError as error:
                self._tell(f"console of domain {self.domid}: {error}")
        for terminal in self._terminals:
            terminal.end()
        self._terminals.clear()
        self._room.set()
