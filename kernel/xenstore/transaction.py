"""A transaction: requests that take effect together or not at all."""

from kernel.xenstore.connection import Connection, Reply
from kernel.xenstore.operations import Operations
from kernel.xenstore.wire import strings
from ringbuffers.protocols.xs_wire import XS_TRANSACTION_END, XS_TRANSACTION_START


class Transaction(Operations):
    """Handed to the function that XenStoreClient.transact runs; sees the store as it was at the start."""

    @classmethod
    async def start(cls, connection: Connection) -> "Transaction":
        """Ask the daemon for a transaction."""
        payload = await connection.request(XS_TRANSACTION_START, b"\0", "").wait()
        text = payload.rstrip(b"\0")
        if not text.isdigit() or not 0 < int(text) < 1 << 32:
            raise connection.violated(f"transaction id {text[:32]!r}")
        return cls(connection, int(text))

    async def commit(self) -> None:
        """Let all of it take effect. Raises StoreError; EAGAIN if others have changed what was seen."""
        await self._end("T").wait()

    def abandon(self) -> None:
        """Let nothing take effect. Nobody waits for the answer, so that a cancelled task can do this."""
        if self._connection.broken is None:
            self._end("F")

    def _end(self, how: str) -> Reply:
        return self._send(XS_TRANSACTION_END, strings(how), f"transaction {self._tx_id}")
