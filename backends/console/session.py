"""The console of one domain: its ring, its log, its terminals."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from backends.console.keys import ConsoleKeys
from backends.console.log import ConsoleLog
from backends.console.terminal import ConsoleEnded, Terminal
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from ringbuffers.bytering import ByteChannel
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols.console import ConsolePage

TAIL_BYTES: Final = 4096
TYPED_BYTES: Final = 4096


class ConsoleSession:
    """Serves a domain's console from `connect` to `close`.

    log: takes the daemon's own messages. violation: how the guest broke its ring, if it did; it is not served since then.
    typed_dropped: bytes typed that found no room.
    """

    def __init__(self, kernel: Kernel, domid: int, output: ConsoleLog, log: Callable[[str], None]) -> None:
        self.domid = domid
        self.output = output
        self.violation: PeerViolation | None = None
        self.typed_dropped = 0
        self._kernel = kernel
        self._log = log
        self._log_works = True
        self._keys: ConsoleKeys | None = None
        self._mapping: Mapping | None = None
        self._page: ConsolePage | None = None
        self._channel: ByteChannel | None = None
        self._port: EventPort | None = None
        self._terminals: dict[Terminal, None] = {}
        self._typed: deque[bytes] = deque()
        self._typed_bytes = 0
        self._tail = b""
        self._ended = False

    def connect(self, keys: ConsoleKeys) -> None:
        """Serves the ring that `keys` name, in place of the one before, if it is another.

        Raises GrantError, HypercallError.
        """
        if keys == self._keys:
            return
        self._disconnect()
        (mapped,) = self._kernel.grants.map(self.domid, [GNTTAB_RESERVED_CONSOLE])
        if isinstance(mapped, GrantError):
            raise mapped
        self._mapping = mapped
        self._page = ConsolePage(mapped.page)
        self._channel = self._page.daemon_side()
        self._port = self._kernel.events.bind_interdomain(self.domid, keys.port)
        self._port.on_event = self.exchange
        self._keys = keys
        self.exchange()

    @contextmanager
    def attached(self, limit_bytes: int) -> Iterator[Terminal]:
        """A terminal on this console inside the block. It begins with what was printed last. Raises ConsoleEnded."""
        if self._ended:
            raise ConsoleEnded(self.domid)
        terminal = Terminal(self.domid, self._type, limit_bytes)
        if self._tail:
            terminal.feed(self._tail)
        self._terminals[terminal] = None
        try:
            yield terminal
        finally:
            self._terminals.pop(terminal, None)

    @property
    def last_line(self) -> str:
        """The last line printed that is not empty."""
        lines = self._tail.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def exchange(self) -> None:
        """Moves what is there both ways: one ring of output at the most. The event port's callback."""
        channel, port = self._channel, self._port
        if channel is None or port is None or self.violation is not None:
            return
        try:
            printed = channel.incoming.read()
            sent = self._send_typed(channel)
        except PeerViolation as violation:
            self.violation = violation
            self._log(f"console of domain {self.domid}: {violation}")
            return
        if printed:
            self._print(printed)
        if printed or sent:
            port.notify()

    def close(self) -> None:
        """Takes the last words, then gives everything back but the log's files."""
        if not self._ended:
            self._ended = True
            self.exchange()
            self._disconnect()
            self.output.close()
            for terminal in self._terminals:
                terminal.end()

    def _print(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        for terminal in self._terminals:
            terminal.feed(data)
        try:
            self.output.write(data)
        except OSError as error:
            if self._log_works:
                self._log(f"{self.output.path}: {error.strerror}")
            self._log_works = False

    def _type(self, data: bytes) -> None:
        room = TYPED_BYTES - self._typed_bytes
        self.typed_dropped += max(len(data) - room, 0)
        if data[:room]:
            self._typed.append(data[:room])
            self._typed_bytes += len(data[:room])
        self.exchange()

    def _send_typed(self, channel: ByteChannel) -> int:
        sent = 0
        while self._typed and (count := channel.outgoing.write(self._typed[0])):
            sent += count
            first = self._typed.popleft()
            if count < len(first):
                self._typed.appendleft(first[count:])
        self._typed_bytes -= sent
        return sent

    def _disconnect(self) -> None:
        self._keys = None
        if self._port is not None:
            self._port.close()
        if self._page is not None:
            self._page.detach()
        if self._mapping is not None:
            self._kernel.grants.unmap([self._mapping])
        self._port, self._page, self._channel, self._mapping = None, None, None, None
