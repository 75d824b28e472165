"""A block device as a driver domain serves it: nobody can look into that domain, so that it says what it does.

It tells each disk that it begins and ends to serve, and leaves what it has counted in the device's own folder:
now and then, and before it says Closed, so that whoever waits for that can read it then.
"""

from collections.abc import Callable, Mapping
from typing import Final

import anyio

from backends.block.device import BlockDevice, OpenStore
from backends.block.pages import PageBudget
from backends.block.report import statistics_nodes
from kernel.kernel import Kernel
from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.drivers import Keys
from kernel.xenstore.errors import StoreConnectionBroken, StoreError
from kernel.xenstore.transaction import Transaction

TELL_SECONDS: Final = 1.0
"""How old what it has left may be while requests are served."""

KIB: Final = 1024


class ToldDevice(BlockDevice):
    """A block device. tell: takes a line about it."""

    def __init__(
        self,
        kernel: Kernel,
        device: BackendDevice,
        open_store: OpenStore,
        budget: PageBudget,
        *,
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(kernel, device, open_store, budget)
        self._tell = tell
        self._telling = anyio.CancelScope()
        self._name = f"{device.keys.get('dev', device.devid)} of domain {device.frontend_domid}"

    async def features(self) -> Keys:
        """As a block device's, and says what cannot be served."""
        try:
            return await super().features()
        except Exception as error:
            self._tell(f"cannot serve {self._name}: {error}")
            raise

    async def connect(self, frontend_keys: Keys) -> Keys:
        """As a block device's, and says what is served from now on."""
        keys = await super().connect(frontend_keys)
        assert self.disk is not None  # it is connected
        mode = "read only" if self.disk.read_only else "read and write"
        self._tell(f"serves {self._name}: {self.setup.type}, {self.disk.sectors // 2} KiB, {mode}")
        self._telling = anyio.CancelScope()
        self._kernel.tasks.start_soon(self._keep_telling, self._telling)
        return keys

    async def disconnect(self) -> None:
        """As a block device's, and leaves and says what was counted."""
        was_connected = bool(self.queues)
        self._telling.cancel()
        await super().disconnect()
        if was_connected:
            await self._leave(self._statistics())
            stats = self.stats
            self._tell(
                f"served {self._name}: {sum(stats.requests.values())} requests, "
                f"{stats.bytes_read // KIB} KiB read, {stats.bytes_written // KIB} KiB written, "
                f"{sum(stats.errors.values())} errors"
            )

    async def _keep_telling(self, scope: anyio.CancelScope) -> None:
        """Until the connection ends, or there is no room in the store: the last word is tried all the same."""
        told: Mapping[str, str] = {}
        with scope:
            try:
                while True:
                    await self._kernel.clock.sleep(TELL_SECONDS)
                    if (counted := self._statistics()) != told:
                        await self._leave(counted)
                        told = counted
            except (StoreError, StoreConnectionBroken):
                return

    def _statistics(self) -> Mapping[str, str]:
        return statistics_nodes(self.setup.type, self.stats)

    async def _leave(self, statistics: Mapping[str, str]) -> None:
        """Writes the nodes, unless the device was removed already."""
        path = self.device.path

        async def write(transaction: Transaction) -> None:
            if await transaction.exists(f"{path}/state"):
                await transaction.write_many({f"{path}/{name}": text for name, text in statistics.items()})

        await self._kernel.store.transact(write)
