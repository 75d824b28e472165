"""Small guest programs that tests start by the dozen."""

import anyio

from frontends.block.disk import Disk
from kernel.kernel import Kernel

XVDA = 51712
XVDB = 51728


async def sleep(kernel: Kernel) -> int:
    """Sleeps until it is cancelled, as a shutdown request does."""
    await anyio.sleep_forever()
    return 0


async def deaf(kernel: Kernel) -> int:
    """Hears of no request to shut down."""
    with kernel.shutdown_requested.deferred():
        await anyio.sleep_forever()
    return 0


async def crash(kernel: Kernel) -> int:
    """Raises."""
    raise RuntimeError("on purpose")


async def five(kernel: Kernel) -> int:
    """Ends at once, with an exit code of its own."""
    return 5


async def with_disks(kernel: Kernel) -> int:
    """Connects all disks that it has, tells so, and sleeps."""
    for devid in await kernel.store.directory("device/vbd"):
        await Disk.open(kernel, int(devid))
    await kernel.store.write("data/connected", "1")
    await anyio.sleep_forever()
    return 0
