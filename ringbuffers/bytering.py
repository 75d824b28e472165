"""One direction of a byte ring: a buffer of 2**n bytes and two indices, all in shared memory.

xencons_interface and xenstore_domain_interface have two each; `protocols.console` and `protocols.xs_wire` say
which end writes which. The writer owns the producer index and the bytes from it to the consumer index; the
reader owns the consumer index and the rest. Both indices are kept in the shared page only, as Xen does it, so
that a page is all the state there is. Each operation reads each index once. A peer that writes the other's
index spoils its own stream and reaches nothing outside the ring.

Nothing here suppresses notifications: whoever wrote or read something notifies the other end afterwards,
which is why no fence is needed.
"""

from typing import NamedTuple, Self, cast

from ringbuffers.errors import PeerViolation, RingMisuse
from ringbuffers.indices import distance, wrap
from ringbuffers.slots import PAGE_SIZE, BytesLike, Detached


class ByteRing:
    """One direction of a byte stream between two ends that share a page.

    size: bytes in the buffer. written, taken: bytes that went through this object.
    """

    __slots__ = ("_consumer", "_data", "_mask", "_producer", "_words", "size", "taken", "written")

    def __init__(self, data: memoryview, words: memoryview, producer: int, consumer: int) -> None:
        """A ring on the buffer `data`, a power of two of bytes; `words` is the page as u32.

        producer, consumer: where in `words` the indices are. Raises RingMisuse for a buffer of another size.
        """
        self.size = data.nbytes
        if not self.size or self.size & (self.size - 1):
            raise RingMisuse("bytes of a byte ring", self.size, "a power of two")
        self._mask = self.size - 1
        self._data = data
        self._words = words
        self._producer = producer
        self._consumer = consumer
        self.written = 0
        self.taken = 0

    @classmethod
    def in_page(cls, page: memoryview, start: int, size: int, producer: int, consumer: int) -> Self:
        """The ring whose buffer and indices are at these offsets, in bytes, of a shared page.

        Raises RingMisuse if `page` is not a writable view of 4096 bytes.
        """
        if page.readonly or not page.c_contiguous or page.nbytes != PAGE_SIZE:
            raise RingMisuse("page of byte rings", page, f"a writable, contiguous view of {PAGE_SIZE} bytes")
        octets = page.cast("B")
        return cls(octets[start : start + size], octets.cast("I"), producer // 4, consumer // 4)

    @property
    def readable(self) -> int:
        """Bytes to read. Raises PeerViolation if the indices are further apart than the ring is large."""
        return self._used(self._words[self._producer], self._words[self._consumer])

    @property
    def writable(self) -> int:
        """Bytes that fit now. Raises PeerViolation as `readable` does."""
        return self.size - self.readable

    def write(self, data: BytesLike) -> int:
        """Store as much of `data` as fits and show it to the reader; how many bytes that was.

        Raises PeerViolation as `readable` does; nothing is stored then. If it is not 0, the caller notifies.
        """
        words = self._words
        produced: int = words[self._producer]
        count = min(self.size - self._used(produced, words[self._consumer]), len(data))
        if not count:
            return 0
        start = produced & self._mask
        to_end = min(count, self.size - start)
        self._data[start : start + to_end] = data[:to_end]
        self._data[: count - to_end] = data[to_end:count]
        words[self._producer] = wrap(produced + count)  # after the bytes: x86-64 keeps stores in order
        self.written += count
        return count

    def read(self, limit: int | None = None) -> bytes:
        """A copy of the next bytes, at most `limit`, which are then the writer's to overwrite.

        Raises PeerViolation as `readable` does; nothing is taken then. If there are any, the caller notifies.
        """
        words = self._words
        consumed: int = words[self._consumer]
        count = self._used(words[self._producer], consumed)
        if limit is not None:
            count = min(count, max(limit, 0))
        if not count:
            return b""
        start = consumed & self._mask
        end = start + count
        data = self._data[start:end].tobytes()  # ends at the end of the buffer, and so does a first part
        if end > self.size:
            data += self._data[: end - self.size].tobytes()
        words[self._consumer] = wrap(consumed + count)  # after the copy: the writer may overwrite from now on
        self.taken += count
        return data

    def detach(self) -> None:
        """Let go of the shared page: this ring can never touch it again. Any later use raises RingMisuse."""
        self._data = self._words = cast(memoryview, Detached())

    def _used(self, produced: int, consumed: int) -> int:
        used = distance(produced, consumed)
        if used > self.size:
            raise PeerViolation("producer - consumer", used, f"at most {self.size:#x}")
        return used


class ByteChannel(NamedTuple):
    """Both directions as one end has them: it reads `incoming` and writes `outgoing`."""

    incoming: ByteRing
    outgoing: ByteRing
