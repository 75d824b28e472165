"""Requests and replies as bytes (public/io/xs_wire.h, docs/misc/xenstore.txt).

Values are bytes to the daemon. As text they are UTF-8; bytes that are none survive a round trip
(surrogateescape), so that no peer can make reading its nodes fail.
"""

from typing import Final

from kernel.xenstore.errors import StoreError
from ringbuffers.protocols import xs_wire

NAMES: Final = {
    value: name.removeprefix("XS_")
    for name, value in vars(xs_wire).items()
    if name.startswith("XS_")
    and isinstance(value, int)
    and name not in ("XS_DEBUG", "XS_WATCH_PATH", "XS_WATCH_TOKEN")
}
"""The name of each kind of request, for errors."""


def encode(text: str) -> bytes:
    """Text as it travels."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """Bytes as text."""
    return data.decode("utf-8", "surrogateescape")


def strings(*parts: str) -> bytes:
    """A payload of strings that each end in NUL. Raises StoreError (EINVAL) for one with a NUL inside."""
    for part in parts:
        if "\0" in part:
            raise StoreError("EINVAL", "request", part)
    return b"".join(encode(part) + b"\0" for part in parts)


def split(payload: bytes) -> list[str]:
    """The strings of a reply; the last one need not be terminated."""
    parts = payload.split(b"\0")
    if parts[-1] == b"":
        parts.pop()
    return [decode(part) for part in parts]
