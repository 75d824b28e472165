"""console_io: the emergency console, for what a guest has to say before its console device works.

Follows xen/drivers/char/console.c. Unlike a release build of Xen, and like its debug build, every domain
may write. What an unprivileged one writes is stripped of what is not printable, and limited in rate; what
exceeds the rate is dropped and counted, and the guest is not told (as Xen does), so that it never has to
wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import CONSOLEIO_write
from hypervisor.abi.xen import __HYPERVISOR_console_io as console_io_number
from hypervisor.continuation import Continuation

if TYPE_CHECKING:
    from hypervisor.host import Host
    from hypervisor.vcpu.state import Vcpu

BYTES_PER_SLICE: Final = 4096
BURST_BYTES: Final = 64 * 1024
BYTES_PER_SECOND: Final = 16 * 1024
SECOND_NS: Final = 1_000_000_000

_NOT_PRINTABLE: Final = bytes(code for code in range(256) if not (32 <= code < 127 or code in b"\t\n"))


class ConsoleAllowance:
    """How many bytes a domain may still write: a bucket that fills with system time."""

    __slots__ = ("_at_ns", "_host", "_left")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._left = BURST_BYTES
        self._at_ns = host.now_ns()

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may be written now."""
        earned = (self._host.now_ns() - self._at_ns) * BYTES_PER_SECOND // SECOND_NS
        if earned > 0:
            self._left = min(BURST_BYTES, self._left + earned)
            self._at_ns = self._host.now_ns()
        taken = min(wanted, self._left)
        self._left -= taken
        return taken


def console_io(caller: Vcpu, operation: int, count: int, buffer: int) -> int | Continuation:
    """CONSOLEIO_write: `count` bytes at guest address `buffer`; 0. CONSOLEIO_read: there is no serial
    line, so nothing: 0.
    """
    if operation != CONSOLEIO_write:
        return 0
    domain = caller.domain
    data = caller.access.read(buffer, min(count, BYTES_PER_SLICE))
    size = len(data)
    if not domain.privileged:
        data = data.translate(None, _NOT_PRINTABLE)
        allowed = domain.console_allowance.take(len(data))
        domain.counters.console_bytes_dropped += len(data) - allowed
        data = data[:allowed]
    if data:
        domain.counters.console_bytes += len(data)
        domain.machine.host.console(domain, data)
    if size < count:
        return Continuation(console_io_number, (operation, count - size, buffer + size))
    return 0
