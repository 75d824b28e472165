"""Copies one disk to another, several chunks in flight, and says the hash of what it copied."""

import hashlib

import anyio
from pydantic import BaseModel, ConfigDict, Field

from frontends.block.disk import SECTOR_BYTES, Disk
from frontends.console.attach import attached_console
from guests.disks import opened_disk
from kernel.kernel import Kernel


class Args(BaseModel):
    """From where to where."""

    model_config = ConfigDict(extra="forbid")

    source: str = "xvda"
    target: str = "xvdb"
    chunk_sectors: int = Field(default=512, ge=8, le=65536, multiple_of=8, description="sectors at a time")
    depth: int = Field(default=8, ge=1, le=64, description="chunks in flight")


async def copied(source: Disk, target: Disk, args: Args) -> str:
    """The SHA-256 of the source, in hexadecimal, once all of it is on the target."""
    digest = hashlib.sha256()
    window = args.chunk_sectors * args.depth
    for start in range(0, source.sectors, window):
        end = min(start + window, source.sectors)
        chunks = dict.fromkeys(range(start, end, args.chunk_sectors), b"")

        async def copy(sector: int, count: int, chunks: dict[int, bytes] = chunks) -> None:
            data = chunks[sector] = await source.read(sector, count)
            await target.write(sector, data)

        async with anyio.create_task_group() as tasks:
            for sector in chunks:
                tasks.start_soon(copy, sector, min(args.chunk_sectors, end - sector))
        for data in chunks.values():
            digest.update(data)
    return digest.hexdigest()


async def main(kernel: Kernel, args: Args) -> int:
    """0 if the whole source is on the target, durably; 1 if the target is too small."""
    async with (
        attached_console(kernel) as console,
        opened_disk(kernel, args.source) as source,
        opened_disk(kernel, args.target) as target,
    ):
        if target.sectors < source.sectors:
            console.write(f"{args.target} has {target.sectors} sectors, {args.source} {source.sectors}\n")
            return 1
        digest = await copied(source, target, args)
        if target.can_flush:
            await target.flush()
        size = source.sectors * SECTOR_BYTES
        console.write(f"copied {size} bytes from {args.source} to {args.target}, sha256 {digest}\n")
    return 0
