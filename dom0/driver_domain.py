"""The program of a driver domain: serves disks as dom0 does, with nothing of dom0's rights (as `xl devd` does).

It has its own kernel alone. The toolstack describes the devices that it is to serve below its `backend/vbd`;
their frontends grant it their pages, one by one. It ends when it is asked to, its devices first.
"""

from functools import partial

import anyio

from backends.block.backend import BlockBackend
from backends.block.driver_domain import ToldDevice
from frontends.console.attach import attached_console
from kernel.kernel import Kernel

STORE_LOST = 1


async def main(kernel: Kernel) -> int:
    """Serves until it is asked to shut down: 0. STORE_LOST if it cannot hear of devices any more."""
    request = kernel.shutdown_requested
    with request.deferred():
        async with attached_console(kernel) as console, anyio.create_task_group() as tasks:

            def tell(line: str) -> None:
                console.write(f"{line}\n")

            async def serve() -> None:
                await BlockBackend(kernel, make_device=partial(ToldDevice, tell=tell)).run()
                tasks.cancel_scope.cancel()

            tasks.start_soon(serve)
            tell(f"driver domain {await kernel.store.read('domid')} waits for devices")
            command = await request.wait()
            tell(f"asked to {command}: devices to close: {len(kernel.devices)}")
            await kernel.close_devices()
            tasks.cancel_scope.cancel()
            return 0
    return STORE_LOST
