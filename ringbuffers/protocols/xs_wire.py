"""Messages of XenStore and how they travel: public/io/xs_wire.h, docs/misc/xenstore.txt, xenstore-ring.txt.

Each message is a header and a payload. Guests send and receive them through two byte rings in a page that the
guest owns; a Unix socket carries the same bytes. `Parser` cuts messages out of whatever pieces arrive.
"""

from typing import Final, NamedTuple, cast

from ringbuffers.bytering import ByteChannel, ByteRing
from ringbuffers.errors import ProtocolViolation, RingMisuse
from ringbuffers.layout import Layout
from ringbuffers.slots import Detached

# enum xsd_sockmsg_type
XS_CONTROL: Final = 0
XS_DEBUG: Final = XS_CONTROL
XS_DIRECTORY: Final = 1
XS_READ: Final = 2
XS_GET_PERMS: Final = 3
XS_WATCH: Final = 4
XS_UNWATCH: Final = 5
XS_TRANSACTION_START: Final = 6
XS_TRANSACTION_END: Final = 7
XS_INTRODUCE: Final = 8
XS_RELEASE: Final = 9
XS_GET_DOMAIN_PATH: Final = 10
XS_WRITE: Final = 11
XS_MKDIR: Final = 12
XS_RM: Final = 13
XS_SET_PERMS: Final = 14
XS_WATCH_EVENT: Final = 15
XS_ERROR: Final = 16
XS_IS_DOMAIN_INTRODUCED: Final = 17
XS_RESUME: Final = 18
XS_SET_TARGET: Final = 19
XS_RESET_WATCHES: Final = XS_SET_TARGET + 2
XS_DIRECTORY_PART: Final = 22
XS_TYPE_COUNT: Final = 23
XS_INVALID: Final = 0xFFFF

XS_WRITE_NONE: Final = "NONE"
XS_WRITE_CREATE: Final = "CREATE"
XS_WRITE_CREATE_EXCL: Final = "CREATE|EXCL"

# enum xs_watch_type: the order of the strings in an event.
XS_WATCH_PATH: Final = 0
XS_WATCH_TOKEN: Final = 1

# Errors travel by name. The order is the header's; the numbers are Linux's.
XSD_ERRORS: Final[dict[str, int]] = {
    "EINVAL": 22,
    "EACCES": 13,
    "EEXIST": 17,
    "EISDIR": 21,
    "ENOENT": 2,
    "ENOMEM": 12,
    "ENOSPC": 28,
    "EIO": 5,
    "ENOTEMPTY": 39,
    "ENOSYS": 38,
    "EROFS": 30,
    "EBUSY": 16,
    "EAGAIN": 11,
    "EISCONN": 106,
    "E2BIG": 7,
    "EPERM": 1,
}

# Bytes. A longer payload ends the connection; a longer path is an error.
XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048

XENSTORE_RING_SIZE: Final = 1024

# Bits of server_features.
XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
XENSTORE_SERVER_FEATURE_ERROR: Final = 2

# Values of connection.
XENSTORE_CONNECTED: Final = 0
XENSTORE_RECONNECT: Final = 1

# Values of error.
XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1
XENSTORE_ERROR_RINGIDX: Final = 2
XENSTORE_ERROR_PROTO: Final = 3

SOCKMSG: Final = Layout("xsd_sockmsg", 16, type="I", req_id="I", tx_id="I", len="I")
INTERFACE: Final = Layout(
    "xenstore_domain_interface",
    2076,
    req=f"{XENSTORE_RING_SIZE}s",
    rsp=f"{XENSTORE_RING_SIZE}s",
    req_cons="I",
    req_prod="I",
    rsp_cons="I",
    rsp_prod="I",
    server_features="I",
    connection="I",
    error="I",
)
LAYOUTS: Final = (SOCKMSG, INTERFACE)

HEADER: Final = SOCKMSG.struct
"""type, req_id, tx_id, len."""


class Message(NamedTuple):
    """One message.

    type: an XS_*, or whatever number the peer sent. payload: at most XENSTORE_PAYLOAD_MAX bytes.
    """

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def pack(self) -> bytes:
        """Header and payload. Raises RingMisuse if the payload is too long for the peer to survive it."""
        if len(self.payload) > XENSTORE_PAYLOAD_MAX:
            raise RingMisuse("bytes of a payload", len(self.payload), f"at most {XENSTORE_PAYLOAD_MAX}")
        return HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class MessageTooLong(ProtocolViolation):
    """A header announces more than XENSTORE_PAYLOAD_MAX bytes. The connection cannot be followed any further.

    messages: those that were complete before it and were not returned yet.
    """

    def __init__(self, length: int, messages: list[Message]) -> None:
        super().__init__("xsd_sockmsg.len", length, f"at most {XENSTORE_PAYLOAD_MAX:#x}")
        self.messages = messages


class Parser:
    """Cuts messages out of the byte stream of one peer. It holds at most one unfinished message."""

    __slots__ = ("_buffer", "_excess")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._excess: int | None = None

    @property
    def buffered(self) -> int:
        """Bytes of the unfinished message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take in bytes as they came, cut anywhere, and return the messages that are complete now.

        Raises MessageTooLong at a header that announces too much, and from then on at every call: what
        follows cannot be told apart (XSA-420).
        """
        if self._excess is not None:
            raise MessageTooLong(self._excess, [])
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            kind, req_id, tx_id, length = HEADER.unpack_from(buffer, start)
            if length > XENSTORE_PAYLOAD_MAX:
                self._excess = length
                buffer.clear()
                raise MessageTooLong(length, messages)
            end = start + HEADER.size + length
            if end > len(buffer):
                break
            messages.append(Message(kind, req_id, tx_id, bytes(buffer[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return messages

    def reset(self) -> None:
        """Forget the stream so far: the next byte begins a message, as after a reconnection of the ring."""
        self._buffer.clear()
        self._excess = None


class XenstorePage:
    """The page shared by a guest and the XenStore daemon: a ring of requests, a ring of replies, three words.

    The daemon owns server_features and error. The guest sets connection to XENSTORE_RECONNECT, the daemon
    sets it back (see `reconnect`). Raises RingMisuse if `page` is not a writable view of 4096 bytes.
    """

    __slots__ = ("_req", "_rsp", "_words")

    def __init__(self, page: memoryview) -> None:
        at = INTERFACE.offsets
        self._req = ByteRing.in_page(page, at["req"], XENSTORE_RING_SIZE, at["req_prod"], at["req_cons"])
        self._rsp = ByteRing.in_page(page, at["rsp"], XENSTORE_RING_SIZE, at["rsp_prod"], at["rsp_cons"])
        self._words = page.cast("B").cast("I")

    def guest_side(self) -> ByteChannel:
        """For the guest: reads replies and events, writes requests."""
        return ByteChannel(self._rsp, self._req)

    def daemon_side(self) -> ByteChannel:
        """For the daemon: reads requests, writes replies and events."""
        return ByteChannel(self._req, self._rsp)

    @property
    def server_features(self) -> int:
        """XENSTORE_SERVER_FEATURE_* bits, set by the daemon and never cleared."""
        return self._word("server_features")

    @server_features.setter
    def server_features(self, features: int) -> None:
        self._words[INTERFACE.offsets["server_features"] // 4] = features

    @property
    def connection(self) -> int:
        """XENSTORE_CONNECTED or XENSTORE_RECONNECT; meaningful with XENSTORE_SERVER_FEATURE_RECONNECTION."""
        return self._word("connection")

    @connection.setter
    def connection(self, state: int) -> None:
        self._words[INTERFACE.offsets["connection"] // 4] = state

    @property
    def error(self) -> int:
        """XENSTORE_ERROR_*, why the daemon gave the connection up; with XENSTORE_SERVER_FEATURE_ERROR."""
        return self._word("error")

    @error.setter
    def error(self, reason: int) -> None:
        self._words[INTERFACE.offsets["error"] // 4] = reason

    def reconnect(self) -> None:
        """The daemon's answer to XENSTORE_RECONNECT: empty both rings, then say that they are connected."""
        words, at = self._words, INTERFACE.offsets
        for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod", "error"):
            words[at[name] // 4] = 0
        self.connection = XENSTORE_CONNECTED  # last: the guest looks at this alone until it changes

    def detach(self) -> None:
        """Let go of the page, before it is unmapped or freed. Any later use raises RingMisuse."""
        self._req.detach()
        self._rsp.detach()
        self._words = cast(memoryview, Detached())

    def _word(self, name: str) -> int:
        value: int = self._words[INTERFACE.offsets[name] // 4]
        return value
