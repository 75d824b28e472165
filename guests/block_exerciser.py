"""Works a disk hard and knows at every moment what each block must hold.

First it fills a part of the disk, then it mixes random reads and writes with many requests in flight,
checking what it reads, and at last it reads everything back and compares the hash with the one it expects.
"""

import hashlib
import random
from collections.abc import Iterator

import anyio
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from frontends.block.disk import SECTOR_BYTES, Disk
from frontends.console.attach import attached_console
from frontends.console.hvc import HvcConsole
from guests.disks import opened_disk
from kernel.kernel import Kernel

BLOCK_BYTES = 4096
BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES
READ_BACK_BLOCKS = 256


class Args(BaseModel):
    """What to do to which disk."""

    model_config = ConfigDict(extra="forbid")

    disk: str = "xvda"
    size: ByteSize | None = Field(None, description="how much of the disk to use; null: all of it")
    requests: int = Field(4096, ge=0, description="random requests, after the disk is filled")
    depth: int = Field(32, ge=1, le=512, description="requests in flight")
    write_share: float = Field(0.5, ge=0, le=1, description="how many of the random requests write")
    flush_every: int = Field(
        0, ge=0, description="writes of a worker between two flush points; 0: none but the last"
    )
    seed: int = 0


class WrongContent(Exception):
    """A block does not hold what was last written to it."""

    def __init__(self, disk: str, block: int, version: int) -> None:
        super().__init__(f"{disk}: block {block} does not hold version {version}, which was written last")
        self.disk = disk
        self.block = block
        self.version = version


class Expectation:
    """What each block must hold: version 0 is the first filling, each write makes the next version."""

    def __init__(self, seed: int, blocks: int) -> None:
        self._seed = seed.to_bytes(16, "little", signed=True)
        self.versions = [0] * blocks

    def content(self, block: int) -> bytes:
        """The bytes of `block` as it was last written: no two versions of any two blocks are alike."""
        name = block.to_bytes(8, "little") + self.versions[block].to_bytes(8, "little")
        return hashlib.blake2b(name, key=self._seed).digest() * (BLOCK_BYTES // 64)

    def run(self, first: int, count: int) -> bytes:
        """The bytes of consecutive blocks."""
        return b"".join(self.content(block) for block in range(first, first + count))


class Exerciser:
    """One disk being exercised."""

    def __init__(self, disk: Disk, args: Args, console: HvcConsole) -> None:
        self._disk = disk
        self._args = args
        self._console = console
        whole = disk.sectors // BLOCK_SECTORS
        self._blocks = min(whole, int(args.size) // BLOCK_BYTES) if args.size is not None else whole
        self._expected = Expectation(args.seed, self._blocks)

    async def fill(self) -> None:
        """Writes version 0 of every block, in order."""
        for first, count in self._runs():
            await self._disk.write(first * BLOCK_SECTORS, self._expected.run(first, count))
        self._say(f"filled {self._blocks} blocks")

    async def mix(self) -> None:
        """Random reads and writes by as many workers as there shall be requests in flight."""
        depth = min(self._args.depth, self._blocks)
        async with anyio.create_task_group() as tasks:
            for worker in range(depth):
                share = self._args.requests // depth + (worker < self._args.requests % depth)
                tasks.start_soon(self._work, worker, depth, share)
        self._say(f"mixed {self._args.requests} random requests, {depth} in flight")

    async def _work(self, worker: int, depth: int, requests: int) -> None:
        """One worker owns every `depth`-th block: it knows what a block holds whatever the others do."""
        rng = random.Random(f"{self._args.seed} {worker}")
        own = range(worker, self._blocks, depth)
        writes = 0
        for _ in range(requests):
            block = rng.choice(own)
            if rng.random() < self._args.write_share:
                self._expected.versions[block] += 1
                await self._disk.write(block * BLOCK_SECTORS, self._expected.content(block))
                writes += 1
                if self._args.flush_every and writes % self._args.flush_every == 0:
                    await self._disk.flush()
            elif await self._disk.read(block * BLOCK_SECTORS, BLOCK_SECTORS) != self._expected.content(block):
                raise WrongContent(self._args.disk, block, self._expected.versions[block])

    async def verify(self) -> bool:
        """Reads every block and compares the whole by its hash."""
        expected, found = hashlib.sha256(), hashlib.sha256()
        for first, count in self._runs():
            expected.update(self._expected.run(first, count))
            found.update(await self._disk.read(first * BLOCK_SECTORS, count * BLOCK_SECTORS))
        held = expected.digest() == found.digest()
        self._say(f"verify {'OK' if held else 'FAILED'}: sha256 {found.hexdigest()}")
        return held

    def _runs(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._blocks, READ_BACK_BLOCKS):
            yield first, min(READ_BACK_BLOCKS, self._blocks - first)

    def _say(self, line: str) -> None:
        self._console.write(f"{self._args.disk}: {line}\n")


async def main(kernel: Kernel, args: Args) -> int:
    """0 if every block held what it had to, 1 if not."""
    async with attached_console(kernel) as console, opened_disk(kernel, args.disk) as disk:
        exerciser = Exerciser(disk, args, console)
        await exerciser.fill()
        await exerciser.mix()
        if disk.can_flush:
            await disk.flush()
        held = await exerciser.verify()
        await console.drain()
    return 0 if held else 1
