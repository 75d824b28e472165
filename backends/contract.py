"""The contract between a block device and whoever stores its bytes.

A store sees bytes at offsets, never a ring, a grant or a domain. The driver in front of it asks once, at
opening, how large it is and what it can do, and from then on calls it only within that: no offset beyond
the end, no write to a read-only store, no flush or discard that was not offered. So a store checks nothing
of this again.

Each of `read`, `write`, `flush` and `discard` is either a plain method, which must be quick because it runs
in line with the ring (a page cache, memory), or an `async def`, which runs as a task while the ring goes on.
Which of the two is asked once, at opening.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from pydantic import BaseModel

SECTOR_BYTES: Final = 512
"""The unit of every sector number in blkif, whatever the device's own sector size is."""

PAGE_BYTES: Final = 4096

MAX_BUFFERS: Final = 1024
"""How many buffers a store is given at once; as many as preadv(2) takes."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do beyond reading and writing.

    Attributes:
        flush: `flush` makes every finished write durable.
        discard: `discard` gives storage back; the range reads as zeroes afterwards.
        discard_granularity: bytes of the smallest piece that is really given back.
        discard_alignment: offset in bytes of the first such piece.
    """

    flush: bool = False
    discard: bool = False
    discard_granularity: int = SECTOR_BYTES
    discard_alignment: int = 0


class BlockStore(ABC):
    """A block device's bytes.

    The life of one: construct (no I/O), `open`, any number of requests, `close`. After `open` the attributes
    below are valid; they stay as they are but for `sectors`, which may change in `refresh`.

    Attributes:
        Config: the pydantic model of the settings; what a scenario's `config` is checked against.
        read_only: set by the constructor; such a store opens what is below it for reading only.
        sectors: size in units of 512 bytes; a multiple of the physical sector size.
        sector_size: bytes of the smallest addressable unit, a power of two of at least 512.
        physical_sector_size: bytes that the medium writes at once, a multiple of `sector_size`.
        capabilities: what else it can do.
    """

    Config: ClassVar[type[BaseModel]]

    sectors: int = 0
    sector_size: int = SECTOR_BYTES
    physical_sector_size: int = SECTOR_BYTES
    capabilities: Capabilities = Capabilities()

    def __init__(self, config: BaseModel, *, read_only: bool = False) -> None:
        self.config = config
        self.read_only = read_only

    def open(self) -> Awaitable[None] | None:  # noqa: B027 - nothing to open is a fair answer
        """Opens what is below.

        Raises:
            StoreError: it cannot be; the message names it. Nothing stays open.
        """

    @abstractmethod
    def read(self, offset: int, buffers: Sequence[memoryview]) -> Awaitable[None] | None:
        """Fills `buffers`, at most MAX_BUFFERS, one after the other, with the bytes from `offset` on.

        Raises:
            OSError, StoreError: not all of them could be filled.
        """

    @abstractmethod
    def write(self, offset: int, buffers: Sequence[memoryview]) -> Awaitable[None] | None:
        """Stores `buffers`, at most MAX_BUFFERS, one after the other, from `offset` on.

        The memory belongs to a guest, which may change it meanwhile: what is stored then is the guest's
        own affair, but nothing may be decided by looking at it twice.

        Raises:
            OSError, StoreError: not all of them could be stored; which ones were is undefined.
        """

    def transfer_pages(
        self, transfers: Iterable[tuple[int, int, Sequence[memoryview]]]
    ) -> dict[int, Exception]:
        """Many at once: triples of 0 to read or 1 to write, the offset, and one buffer of PAGE_BYTES.

        Used only if `read` and `write` are plain methods, which this one calls, one after the other. A
        store whose own calls are so quick that this one's cost counts puts a tighter loop in its place.

        Returns:
            What was raised, by the place of the transfer.
        """
        calls = self.read, self.write
        failed: dict[int, Exception] = {}
        for index, (writes, offset, buffers) in enumerate(transfers):
            try:
                calls[writes](offset, buffers)
            except Exception as error:
                failed[index] = error
        return failed

    def flush(self) -> Awaitable[None] | None:  # noqa: B027 - called only if capabilities.flush
        """Makes every write that has returned durable, and does not return before."""

    def discard(self, offset: int, length: int) -> Awaitable[None] | None:  # noqa: B027 - as flush
        """Gives `length` bytes from `offset` back; they read as zeroes from now on."""

    def refresh(self) -> Awaitable[None] | None:  # noqa: B027 - most stores never change their size
        """Looks again at the size of what is below and sets `sectors`."""

    def close(self) -> Awaitable[None] | None:  # noqa: B027 - nothing to close is a fair answer
        """Gives everything back. Called once, after the last request has ended."""
