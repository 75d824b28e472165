"""How the ready-made guests come by their disks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from frontends.block.disk import Disk, DiskOptions, disk_name
from kernel.kernel import Kernel


class NoSuchDisk(Exception):
    """This domain was not given the disk that its program was told to use."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"there is no disk {name}; this domain has {', '.join(known) or 'none'}")
        self.name = name
        self.known = known


@asynccontextmanager
async def opened_disk(kernel: Kernel, name: str, options: DiskOptions | None = None) -> AsyncIterator[Disk]:
    """The disk called `name`, such as xvda, connected; closed at the end of the context.

    Raises:
        NoSuchDisk: the toolstack gave this domain no such disk.
        DeviceClosed: it could not be connected.
    """
    found = {disk_name(int(devid)): int(devid) for devid in await kernel.store.directory("device/vbd")}
    if name not in found:
        raise NoSuchDisk(name, sorted(found))
    disk = await Disk.open(kernel, found[name], options)
    try:
        yield disk
    finally:
        await disk.close()
