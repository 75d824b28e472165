"""Works a disk hard and knows at every moment what each block must hold.

First it fills a part of the disk, then it mixes random reads and writes with many requests in flight,
checking what it reads, and at last it reads everything back and compares the hash with the one it expects.
"""

import hashlib
import random
from collections.abc import Iterator

import anyio
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from frontends.block.disk import SECTOR_BYTES, Disk, DiskOptions
from frontends.console.attach import attached_console
from frontends.console.hvc import HvcConsole
from guests.disks import opened_disk
from kernel.kernel import Kernel

BLOCK_BYTES = 4096
BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES
READ_BACK_BLOCKS = 256
SAID_WRONG = 5
"""So many wrong blocks are named on the console."""

_PIECES = BLOCK_BYTES // hashlib.blake2b().digest_size
_PLACES = int.from_bytes(b"".join(bytes([i]) * (BLOCK_BYTES // _PIECES) for i in range(_PIECES)), "little")


class Args(BaseModel):
    """What to do to which disk."""

    model_config = ConfigDict(extra="forbid")

    disk: str = "xvda"
    size: ByteSize | None = Field(
        default=None, ge=BLOCK_BYTES, description="how much of the disk to use; null: all of it"
    )
    requests: int = Field(default=4096, ge=0, description="random requests, after the disk is filled")
    depth: int = Field(default=32, ge=1, le=512, description="requests in flight")
    queues: int = Field(
        default=1, ge=1, le=16, description="rings to use, as far as the disk offers them; see `max_queues`"
    )
    write_share: float = Field(default=0.5, ge=0, le=1, description="how many of the random requests write")
    flush_every: int = Field(
        default=0, ge=0, description="writes of a worker between two flush points; 0: none but the last"
    )
    seed: int = Field(default=0, ge=-(1 << 63), lt=1 << 63)


class Expectation:
    """What each block must hold: version 0 is the first filling, each write makes the next version."""

    def __init__(self, seed: int, blocks: int) -> None:
        self._seed = seed.to_bytes(16, "little", signed=True)
        self.versions = [0] * blocks

    def content(self, block: int) -> bytes:
        """The bytes of `block` as it was last written: no two sectors, blocks or versions are alike."""
        name = block.to_bytes(8, "little") + self.versions[block].to_bytes(8, "little")
        repeated = hashlib.blake2b(name, key=self._seed).digest() * _PIECES
        return (int.from_bytes(repeated, "little") ^ _PLACES).to_bytes(BLOCK_BYTES, "little")

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
        self._wrong = 0
        self._flushes = disk.can_flush

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
        if self._flushes:
            await self._disk.flush()

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
                if self._flushes and self._args.flush_every and writes % self._args.flush_every == 0:
                    await self._disk.flush()
            elif await self._disk.read(block * BLOCK_SECTORS, BLOCK_SECTORS) != self._expected.content(block):
                self._is_wrong(block)

    def _is_wrong(self, block: int) -> None:
        """Says so of the first few; the exerciser goes on, to see how much is wrong."""
        self._wrong += 1
        if self._wrong <= SAID_WRONG:
            version = self._expected.versions[block]
            self._say(f"block {block} does not hold version {version}, which was written last")

    async def verify(self) -> bool:
        """Reads every block and says the hash of all. Whether this and every read before was right."""
        digest = hashlib.sha256()
        for first, count in self._runs():
            expected = self._expected.run(first, count)
            found = await self._disk.read(first * BLOCK_SECTORS, count * BLOCK_SECTORS)
            digest.update(found)
            if found != expected:
                for block in range(count):
                    here = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
                    if found[here] != expected[here]:
                        self._is_wrong(first + block)
        verdict = f"FAILED, {self._wrong} reads found wrong content" if self._wrong else "OK"
        self._say(f"verify {verdict}: sha256 {digest.hexdigest()}")
        return not self._wrong

    def _runs(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._blocks, READ_BACK_BLOCKS):
            yield first, min(READ_BACK_BLOCKS, self._blocks - first)

    def _say(self, line: str) -> None:
        self._console.write(f"{self._args.disk}: {line}\n")


async def main(kernel: Kernel, args: Args) -> int:
    """0 if every block held what it had to, 1 if not."""
    options = DiskOptions(queues=args.queues)
    async with attached_console(kernel) as console, opened_disk(kernel, args.disk, options) as disk:
        if disk.sectors < BLOCK_SECTORS or disk.read_only:
            what = "is read only" if disk.read_only else "has no whole block"
            console.write(f"{args.disk} {what}: nothing to exercise\n")
            return 1
        exerciser = Exerciser(disk, args, console)
        await exerciser.fill()
        await exerciser.mix()
        held = await exerciser.verify()
        await console.drain()
    return 0 if held else 1
