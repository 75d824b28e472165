"""The console page: struct xencons_interface of public/io/console.h; XenStore keys of docs/misc/console.txt.

The guest owns the page. `in` carries what is typed, `out` what the guest prints. The daemon that serves it is
xenconsoled's stand-in in dom0.
"""

from typing import Final

from ringbuffers.bytering import ByteChannel, ByteRing
from ringbuffers.layout import Field, Layout

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048

_FIELDS: Final[dict[str, Field]] = {
    "in": f"{IN_SIZE}s",
    "out": f"{OUT_SIZE}s",
    "in_cons": "I",
    "in_prod": "I",
    "out_cons": "I",
    "out_prod": "I",
}
INTERFACE: Final = Layout("xencons_interface", 3088, **_FIELDS)
LAYOUTS: Final = (INTERFACE,)

# Keys below console/ of a domain. The toolstack writes all but `tty`, which is the daemon's.
RING_REF: Final = "ring-ref"  # the page: its machine frame number, as libxl writes it, not a grant reference
PORT: Final = "port"  # the guest's event channel port
TYPE: Final = "type"  # who serves it: TYPE_XENCONSOLED or "ioemu"
LIMIT: Final = "limit"  # bytes of output kept for a reader that lags behind
OUTPUT: Final = "output"  # "pty"
TTY: Final = "tty"  # the terminal to attach to
TYPE_XENCONSOLED: Final = "xenconsoled"


class ConsolePage:
    """The shared page.

    Raises RingMisuse if `page` is not a writable view of 4096 bytes.
    """

    __slots__ = ("_in", "_out")

    def __init__(self, page: memoryview) -> None:
        at = INTERFACE.offsets
        self._in = ByteRing.in_page(page, at["in"], IN_SIZE, at["in_prod"], at["in_cons"])
        self._out = ByteRing.in_page(page, at["out"], OUT_SIZE, at["out_prod"], at["out_cons"])

    def guest_side(self) -> ByteChannel:
        """For the guest: reads `in`, writes `out`."""
        return ByteChannel(self._in, self._out)

    def daemon_side(self) -> ByteChannel:
        """For the daemon: reads `out`, writes `in`."""
        return ByteChannel(self._out, self._in)

    def detach(self) -> None:
        """Let go of the page, before it is unmapped or freed. Any later use of its rings is a RingMisuse."""
        self._in.detach()
        self._out.detach()
