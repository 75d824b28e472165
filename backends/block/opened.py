"""A store that was opened, with what it said of itself: asked once, checked once, held to from then on."""

import inspect
from collections.abc import Awaitable
from typing import Any, Final

from backends.block.geometry import is_sector_size
from backends.contract import SECTOR_BYTES, BlockStore, Capabilities
from backends.errors import BrokenStore

_REQUESTS: Final = ("read", "write", "flush", "discard")


async def settled(outcome: Awaitable[Any] | None) -> None:
    """Waits for what a method of a store returned, if it was one of those that wait."""
    if outcome is not None:
        await outcome


class OpenedStore:
    """What a driver knows of the store that it serves from.

    Attributes:
        sectors, sector_size, physical_sector_size, read_only, capabilities: as the store said at opening; a
            read-only store has no capabilities.
        waits: names of those of read, write, flush and discard that are `async def`.
    """

    __slots__ = (
        "capabilities",
        "physical_sector_size",
        "read_only",
        "sector_size",
        "sectors",
        "store",
        "waits",
    )

    def __init__(self, store: BlockStore) -> None:
        """Takes note of a store whose `open` has returned. Raises BrokenStore; the store is still open
        then.
        """
        self.store = store
        self.read_only = bool(store.read_only)
        self.sector_size = store.sector_size
        self.physical_sector_size = store.physical_sector_size
        self.capabilities = Capabilities() if self.read_only else store.capabilities
        self.waits = frozenset(
            name for name in _REQUESTS if inspect.iscoroutinefunction(getattr(store, name))
        )
        self._check_geometry()
        self.sectors = self._sectors()

    @classmethod
    async def open(cls, store: BlockStore) -> "OpenedStore":
        """Opens `store` and takes note of it.

        Raises:
            StoreError, OSError: as `BlockStore.open`; or BrokenStore. The store is closed then.
        """
        await settled(store.open())
        try:
            return cls(store)
        except BrokenStore:
            await settled(store.close())
            raise

    async def refresh(self) -> bool:
        """Asks for the size again. Returns whether it changed. Raises StoreError; the old size stays."""
        await settled(self.store.refresh())
        before, self.sectors = self.sectors, self._sectors()
        return self.sectors != before

    async def close(self) -> None:
        """Closes the store."""
        await settled(self.store.close())

    def _check_geometry(self) -> None:
        if not is_sector_size(self.sector_size):
            raise BrokenStore(type(self.store), f"sector_size is {self.sector_size}")
        if self.physical_sector_size <= 0 or self.physical_sector_size % self.sector_size:
            raise BrokenStore(
                type(self.store),
                f"physical_sector_size {self.physical_sector_size} of sector_size {self.sector_size}",
            )
        granularity = self.capabilities.discard_granularity
        if self.capabilities.discard and (granularity <= 0 or granularity % self.sector_size):
            raise BrokenStore(type(self.store), f"discard_granularity is {granularity}")

    def _sectors(self) -> int:
        sectors = self.store.sectors
        if sectors <= 0 or sectors * SECTOR_BYTES % self.sector_size:
            raise BrokenStore(type(self.store), f"sectors is {sectors!r} with sector_size {self.sector_size}")
        return sectors
