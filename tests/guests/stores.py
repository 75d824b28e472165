"""Stores that do not keep their word, to be found out by the guests that rely on them."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel

from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.contract import Capabilities


class LyingConfig(MemoryStoreConfig):
    """A disk in memory that lies about one of its blocks. how: the kind of lie."""

    how: Literal[
        "flips a bit", "flips a bit once", "loses writes", "writes elsewhere", "swaps sectors", "nothing"
    ] = "nothing"
    block: int = 5


class LyingStore(MemoryStore):
    """Does right by all blocks but one. It is meant for buffers that are whole blocks."""

    Config: ClassVar[type[BaseModel]] = LyingConfig

    def __init__(self, config: LyingConfig, *, read_only: bool = False) -> None:
        super().__init__(config, read_only=read_only)
        self._how = config.how
        self._at = config.block * 4096
        self._writes = 0

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """As asked, but for one bit."""
        super().read(offset, buffers)
        for index, buffer in enumerate(buffers):
            if self._how.startswith("flips a bit") and offset + index * 4096 == self._at:
                buffer[100] ^= 1
                if self._how == "flips a bit once":
                    self._how = "nothing"

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """As asked, but for one block."""
        for index, buffer in enumerate(buffers):
            at = offset + index * 4096
            if at == self._at:
                self._lie(at, bytes(buffer))
            else:
                super().write(at, [buffer])

    def _lie(self, at: int, data: bytes) -> None:
        self._writes += 1
        if self._how == "loses writes" and self._writes > 1:
            return
        if self._how == "writes elsewhere" and self._writes > 1:
            at += 4096
        if self._how == "swaps sectors":
            data = data[512:1024] + data[:512] + data[1024:]
        super().write(at, [memoryview(data)])


class UnflushedStore(MemoryStore):
    """A disk in memory that offers no flush."""

    Config: ClassVar[type[BaseModel]] = MemoryStoreConfig

    def open(self) -> None:
        """As its parent, without flush and discard."""
        super().open()
        self.capabilities = Capabilities()


class CountingStore(MemoryStore):
    """Counts flushes."""

    Config: ClassVar[type[BaseModel]] = MemoryStoreConfig
    flushes: ClassVar[list[int]] = []
    """How many bytes had been written at each flush."""

    _written = 0

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """As its parent."""
        super().write(offset, buffers)
        self._written += sum(map(len, buffers))

    def flush(self) -> None:
        """Takes note."""
        self.flushes.append(self._written)
