"""Stores that misbehave or wait, as tests tell them to."""

from collections.abc import Sequence
from typing import ClassVar

import anyio

from backends.block.memory import MemoryStore


class GatedStore(MemoryStore):
    """Every call waits until its gate is open. last: the instance that was opened last. begun: calls, in order."""

    last: ClassVar["GatedStore"]

    def open(self) -> None:
        super().open()
        GatedStore.last = self
        self.gate = anyio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.closed = False

    async def _pass(self, call: str) -> None:
        self.begun.append(call)
        await self.gate.wait()
        self.ended.append(call)

    async def read(self, offset: int, buffers: Sequence[memoryview]) -> None:  # type: ignore[override]
        await self._pass(f"read {offset}")
        MemoryStore.read(self, offset, buffers)

    async def write(self, offset: int, buffers: Sequence[memoryview]) -> None:  # type: ignore[override]
        await self._pass(f"write {offset}")
        MemoryStore.write(self, offset, buffers)

    async def flush(self) -> None:  # type: ignore[override]
        await self._pass("flush")

    def close(self) -> None:
        self.closed = True
        super().close()


class FailingStore(MemoryStore):
    """Reads of the first page fail as a disk would, those of the second as a bug would."""

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset < 4096:
            raise OSError(5, "Input/output error")
        if offset < 8192:
            raise ZeroDivisionError("a bug in a plug-in")
        super().read(offset, buffers)

    async def flush(self) -> None:  # type: ignore[override]
        raise OSError(28, "No space left on device")
