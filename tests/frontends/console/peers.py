"""A console page without a machine: the driver at one end, a daemon played by the test at the other."""

from typing import cast

from frontends.console.hvc import HvcConsole
from kernel.events import EventPort
from ringbuffers.protocols.console import INTERFACE, OUT_SIZE, ConsolePage

WORDS = {name: INTERFACE.offsets[name] // 4 for name in ("in_cons", "in_prod", "out_cons", "out_prod")}


class FakePort:
    """An event port whose other end counts."""

    def __init__(self) -> None:
        self.on_event: object = None
        self.notified = 0
        self.closed = False

    def notify(self) -> None:
        assert not self.closed
        self.notified += 1

    def close(self) -> None:
        self.closed = True
        self.on_event = None


class Collector:
    """A console that keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: str | bytes) -> None:
        self.written += data.encode() if isinstance(data, str) else data


class Pair:
    """A driver and the daemon's end of its page, whose indices all begin at `start`."""

    def __init__(self, start: int = 0) -> None:
        self.page = memoryview(bytearray(4096))
        self.words = self.page.cast("I")
        for word in WORDS.values():
            self.words[word] = start
        self.port = FakePort()
        self.fallback = Collector()
        self.console = HvcConsole(self.page, cast(EventPort, self.port), self.fallback)
        self.printed, self.typed = ConsolePage(self.page).daemon_side()

    def event(self) -> None:
        """The daemon notifies."""
        if callable(self.port.on_event):
            self.port.on_event()

    def take(self, limit: int = OUT_SIZE) -> bytes:
        """The daemon reads and notifies."""
        data = self.printed.read(limit)
        self.event()
        return data

    def type(self, data: bytes) -> int:
        """The daemon types and notifies."""
        count = self.typed.write(data)
        self.event()
        return count
