"""The requests that a client makes by itself and inside a transaction alike (docs/misc/xenstore.txt)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kernel.errors import KernelMisuse
from kernel.xenstore.connection import Connection, Reply
from kernel.xenstore.errors import StoreError
from kernel.xenstore.wire import decode, encode, split, strings
from ringbuffers.protocols.xs_wire import (
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_WRITE,
)

MAX_DIRECTORY_RESTARTS: Final = 16
MAX_DIRECTORY_BYTES: Final = 1 << 20
_GONE: Final = ("ENOENT", "EACCES")


class Operations:
    """Every method raises StoreError when the daemon refuses, and StoreConnectionBroken when there is no
    daemon to ask.

    Paths are absolute, or relative to the domain's own /local/domain/<domid>.
    """

    def __init__(self, connection: Connection, tx_id: int = 0) -> None:
        self._connection = connection
        self._tx_id = tx_id

    async def read(self, path: str) -> str:
        """The value of a node, as text."""
        return decode(await self.read_bytes(path))

    async def read_bytes(self, path: str) -> bytes:
        """The value of a node."""
        return await self._send(XS_READ, strings(path), path).wait()

    async def read_many(self, paths: Sequence[str]) -> list[str | None]:
        """The values of many nodes, asked for at once; None for those that are not there or not for us to
        see.
        """
        with self._connection.corked():
            replies = [self._send(XS_READ, strings(path), path) for path in paths]
        values: list[str | None] = []
        for reply in replies:
            try:
                values.append(decode(await reply.wait()))
            except StoreError as error:
                if error.name not in _GONE:
                    raise
                values.append(None)
        return values

    async def write(self, path: str, value: str | bytes) -> None:
        """Set the value of a node; makes it, and those above it, where missing."""
        await self._start_write(path, value).wait()

    async def write_many(self, values: Mapping[str, str]) -> None:
        """Write many nodes, in order, sent at once. Raises the first error, after all have been answered."""
        with self._connection.corked():
            replies = [self._start_write(path, value) for path, value in values.items()]
        await _all_answered(replies)

    async def write_nodes(self, nodes: Iterable[tuple[str, str, Sequence[str] | None]]) -> None:
        """Write many nodes, in order, sent at once: path, value, permissions (None: those of its parent).

        Raises the first error, after all have been answered.
        """
        replies: list[Reply] = []
        with self._connection.corked():
            for path, value, permissions in nodes:
                replies.append(self._start_write(path, value))
                if permissions is not None:
                    replies.append(self._start_set_perms(path, permissions))
        await _all_answered(replies)

    def _start_write(self, path: str, value: str | bytes) -> Reply:
        data = value if isinstance(value, bytes) else encode(value)
        return self._send(XS_WRITE, strings(path) + data, path)

    async def mkdir(self, path: str) -> None:
        """Make a node without a value; one that exists stays as it is."""
        await self._send(XS_MKDIR, strings(path), path).wait()

    async def rm(self, path: str) -> None:
        """Remove a node and all below it. One that is not there, below one that is, counts as removed."""
        await self._send(XS_RM, strings(path), path).wait()

    async def exists(self, path: str) -> bool:
        """Whether a node is there and for us to see."""
        try:
            await self.read_bytes(path)
        except StoreError as error:
            if error.name not in _GONE:
                raise
            return False
        return True

    async def directory(self, path: str) -> list[str]:
        """The names of a node's children."""
        try:
            return split(await self._send(XS_DIRECTORY, strings(path), path).wait())
        except StoreError as error:
            if error.name != "E2BIG":
                raise
        return await self._directory_in_parts(path)

    async def _directory_in_parts(self, path: str) -> list[str]:
        """A list that is too long for one reply; begun again when the node changes on the way."""
        for _ in range(MAX_DIRECTORY_RESTARTS):
            found = await self._read_parts(path)
            if found is not None:
                return split(found)
        raise StoreError("EAGAIN", "DIRECTORY_PART", path)

    async def _read_parts(self, path: str) -> bytes | None:
        """All parts, or None if the generation that each one carries has changed. An empty name ends the
        list.
        """
        found = b""
        generation = None
        while len(found) <= MAX_DIRECTORY_BYTES:
            reply = await self._send(XS_DIRECTORY_PART, strings(path, str(len(found))), path).wait()
            now, _, part = reply.partition(b"\0")
            if generation not in (None, now):
                return None
            generation = now
            found += part
            if found == b"\0" or found.endswith(b"\0\0"):
                return found[:-1]
            if not part:
                raise StoreError("EIO", "DIRECTORY_PART", path)
        raise StoreError("E2BIG", "DIRECTORY_PART", path)

    async def get_perms(self, path: str) -> list[str]:
        """Who may do what: the owner first, as `n0`, `r1`, `w2`, `b3`."""
        return split(await self._send(XS_GET_PERMS, strings(path), path).wait())

    async def set_perms(self, path: str, permissions: Sequence[str]) -> None:
        """Set who may do what; the first entry names the owner and what all others may."""
        await self._start_set_perms(path, permissions).wait()

    def _start_set_perms(self, path: str, permissions: Sequence[str]) -> Reply:
        if not permissions:
            raise KernelMisuse("permissions", permissions, "at least the owner's")
        return self._send(XS_SET_PERMS, strings(path, *permissions), path)

    def _send(self, kind: int, payload: bytes, path: str) -> Reply:
        return self._connection.request(kind, payload, path, self._tx_id)


async def _all_answered(replies: Iterable[Reply]) -> None:
    """Waits for all; raises the first error then."""
    failed: StoreError | None = None
    for reply in replies:
        try:
            await reply.wait()
        except StoreError as error:
            failed = failed or error
    if failed is not None:
        raise failed
