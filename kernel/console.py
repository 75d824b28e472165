"""Where a kernel's words go before, and without, a console driver: the hypervisor's own console
(CONSOLEIO_write).
"""

from typing import Final, Protocol

from kernel.hypercalls import HypercallError, Hypercalls
from kernel.platform import PAGE_SIZE

MAX_WRITE_BYTES: Final = PAGE_SIZE


class Console(Protocol):
    """What programs write to. A console driver puts itself in the place of the one below."""

    def write(self, data: str | bytes) -> object:
        """Write text."""


class HypervisorConsole:
    """The emergency console. What the hypervisor refuses (too much at once) is lost: it is no device."""

    def __init__(self, hypercalls: Hypercalls) -> None:
        self._hypercalls = hypercalls

    def write(self, data: str | bytes) -> None:
        """Write, a page at a time."""
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        for start in range(0, len(raw), MAX_WRITE_BYTES):
            try:
                self._hypercalls.console_write(raw[start : start + MAX_WRITE_BYTES])
            except HypercallError:
                return
