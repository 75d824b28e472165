"""Devices of domains as the toolstack sees them: added, removed, and remembered where no guest can write.

What a device is called and where it lies comes from the toolstack's own record, never from a node that a
guest or a driver domain could have changed.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import anyio

from dom0.toolstack.layout import DevicePaths, Node
from dom0.toolstack.store_nodes import remove_tree, write_nodes
from kernel.xenbus.states import XenbusState
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

REMOVAL_TIMEOUT_S: Final = 10.0
"""How long a backend may take to let go of a device."""

_CLOSING: Final = str(int(XenbusState.Closing))
_CLOSED: Final = str(int(XenbusState.Closed))


class Devices:
    """All devices that this toolstack has added."""

    def __init__(self, store: XenStoreClient) -> None:
        self._store = store
        self._known: dict[int, dict[tuple[str, int], DevicePaths]] = {}

    def of(self, domid: int) -> Iterator[tuple[str, int]]:
        """Kind and number of each device of a domain."""
        return iter(list(self._known.get(domid, ())))

    async def add(self, domid: int, kind: str, devid: int, nodes: Iterable[Node]) -> None:
        """Writes both ends of a device in one transaction."""
        kept = list(nodes)
        await self._store.transact(lambda transaction: write_nodes(transaction, kept))
        self._known.setdefault(domid, {})[kind, devid] = DevicePaths.of(kind, domid, devid)

    async def detach(self, domid: int, kind: str, devid: int) -> bool:
        """Asks both drivers to close, then removes the device; False if they did not close in time."""
        paths = self._known[domid][kind, devid]

        async def ask(transaction: Transaction) -> None:
            await transaction.write(f"{paths.backend}/online", "0")
            await transaction.write(f"{paths.backend}/state", _CLOSING)

        await self._store.transact(ask)
        closed = await self._closed(paths)
        await self._remove(domid, kind, devid)
        return closed

    async def remove_all(self, domid: int) -> None:
        """Takes away every device of a domain that runs no more, once their backends have let go."""
        devices = list(self._known.get(domid, {}).items())
        async with anyio.create_task_group() as tasks:
            for (kind, _), paths in devices:
                tasks.start_soon(self._withdraw, kind, paths)
        for (kind, devid), _ in devices:
            await self._remove(domid, kind, devid)
        self._known.pop(domid, None)

    async def _withdraw(self, kind: str, paths: DevicePaths) -> None:
        """The frontend's folder goes first: its backend sees that nobody is left."""
        if kind == "console":
            return  # served by the console daemon, which watches the domain, not a state

        async def withdraw(transaction: Transaction) -> None:
            await remove_tree(transaction, paths.frontend)
            await transaction.write(f"{paths.backend}/online", "0")

        await self._store.transact(withdraw)
        await self._closed(paths)

    async def _closed(self, paths: DevicePaths) -> bool:
        with anyio.move_on_after(REMOVAL_TIMEOUT_S):
            state = f"{paths.backend}/state"
            async with self._store.watch(state) as watch:
                async for _ in watch:
                    try:
                        if await self._store.read(state) == _CLOSED:
                            return True
                    except StoreError:
                        return True
        return False

    async def _remove(self, domid: int, kind: str, devid: int) -> None:
        paths = self._known[domid][kind, devid]

        async def remove(transaction: Transaction) -> None:
            for path in (paths.frontend, paths.private, paths.backend):
                await remove_tree(transaction, path)

        await self._store.transact(remove)
        del self._known[domid][kind, devid]
