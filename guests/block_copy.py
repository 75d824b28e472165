"""Copies one disk to another, many requests in flight, and says the hash of what it copied."""

import hashlib

from pydantic import BaseModel, ConfigDict, Field

from frontends.block.disk import SECTOR_BYTES
from frontends.console.attach import attached_console
from guests.disks import opened_disk
from kernel.kernel import Kernel


class Args(BaseModel):
    """From where to where."""

    model_config = ConfigDict(extra="forbid")

    source: str = "xvda"
    target: str = "xvdb"
    chunk_sectors: int = Field(2048, ge=8, le=65536, description="sectors read and written at a time")


async def main(kernel: Kernel, args: Args) -> int:
    """0 if the whole source is on the target, durably; 1 if the target is too small."""
    async with (
        attached_console(kernel) as console,
        opened_disk(kernel, args.source) as source,
        opened_disk(kernel, args.target) as target,
    ):
        if target.sectors < source.sectors:
            console.write(f"{args.target} has {target.sectors} sectors, {args.source} {source.sectors}\n")
            await console.drain()
            return 1
        digest = hashlib.sha256()
        for sector in range(0, source.sectors, args.chunk_sectors):
            data = await source.read(sector, min(args.chunk_sectors, source.sectors - sector))
            digest.update(data)
            await target.write(sector, data)
        if target.can_flush:
            await target.flush()
        copied = f"copied {source.sectors * SECTOR_BYTES} bytes from {args.source} to {args.target}"
        console.write(f"{copied}, sha256 {digest.hexdigest()}\n")
        await console.drain()
    return 0
