"""Devices of domains as the toolstack sees them: added, removed, and remembered where no guest can write.

What a device is called and where it lies comes from the toolstack's own record, never from a node that a
guest or a driver domain could have changed. A device is in the record from before it is written until after
it is removed, so that whatever happens in between leaves nothing behind.
"""

from collections.abc import Iterable
from typing import Final

import anyio

from dom0.toolstack.errors import DeviceExists, NoSuchGuest
from dom0.toolstack.layout import DevicePaths, Node, domain_path
from dom0.toolstack.store_nodes import OneAtATime, remove_tree, write_nodes
from kernel.xenbus.states import XenbusState
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

REMOVAL_TIMEOUT_S: Final = 10.0
"""How long a backend may take to let go of a device."""

Device = tuple[str, int]
"""Kind and number, such as ("vbd", 51712)."""

_INITIALISING: Final = str(int(XenbusState.Initialising))
_CLOSING: Final = str(int(XenbusState.Closing))
_CLOSED: Final = str(int(XenbusState.Closed))


class Devices:
    """All devices that this toolstack has added."""

    def __init__(self, store: XenStoreClient, transact: OneAtATime) -> None:
        self._store = store
        self._transact = transact
        self._known: dict[int, dict[Device, DevicePaths]] = {}

    def of(self, domid: int) -> list[Device]:
        """The devices of a domain."""
        return list(self._known.get(domid, ()))

    async def add(self, domid: int, device: Device, nodes: Iterable[Node]) -> None:
        """Writes both ends of a device in one transaction. Raises DeviceExists, NoSuchGuest, StoreError."""
        known = self._known.setdefault(domid, {})
        if device in known:
            raise DeviceExists(domid, *device)
        kept = list(nodes)

        async def write(transaction: Transaction) -> None:
            if not await transaction.exists(domain_path(domid)):
                raise NoSuchGuest(domid)
            await write_nodes(transaction, kept)

        known[device] = DevicePaths.of(device[0], domid, device[1])
        try:
            await self._transact(write)
        except (NoSuchGuest, StoreError):
            self._forget(domid, device)
            raise

    async def detach(self, domid: int, device: Device) -> bool:
        """Asks both drivers to close, then removes the device; False if they did not close in time.

        Where the guest has no driver for it nobody could be asked: its folder goes at once.
        """
        paths = self._known[domid][device]

        async def ask(transaction: Transaction) -> bool:
            (state,) = await transaction.read_many([f"{paths.frontend}/state"])
            if state in (None, _INITIALISING):
                return False
            (backend,) = await transaction.read_many([f"{paths.backend}/state"])
            if backend is not None:
                await transaction.write(f"{paths.backend}/online", "0")
                if backend != _CLOSED:  # which is how it stays, as with libxl: nobody would say so again
                    await transaction.write(f"{paths.backend}/state", _CLOSING)
            return True

        if await self._transact(ask):
            closed = await self._closed(paths)
        else:
            closed = await self._withdraw(paths)
        await self._remove(domid, device, paths)
        return closed

    async def remove_all(self, domid: int) -> None:
        """Takes away every device of a domain that runs no more, once their backends have let go."""
        devices = list(self._known.get(domid, {}).items())
        async with anyio.create_task_group() as tasks:
            for (kind, _), paths in devices:
                if kind != "console":  # the daemon of consoles watches the domain, not a state
                    tasks.start_soon(self._withdraw, paths)
        for device, paths in devices:
            await self._remove(domid, device, paths)

    async def _withdraw(self, paths: DevicePaths) -> bool:
        """The frontend's folder goes first: its backend sees that nobody is left. Whether it closed in time."""

        async def withdraw(transaction: Transaction) -> None:
            await remove_tree(transaction, paths.frontend)
            if await transaction.exists(paths.backend):
                await transaction.write(f"{paths.backend}/online", "0")

        await self._transact(withdraw)
        return await self._closed(paths)

    async def _closed(self, paths: DevicePaths) -> bool:
        """Whether the backend has closed, or is gone, in time."""
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

    async def _remove(self, domid: int, device: Device, paths: DevicePaths) -> None:
        async def remove(transaction: Transaction) -> None:
            for path in (paths.frontend, paths.private, paths.backend, paths.error):
                await remove_tree(transaction, path)

        await self._transact(remove)
        self._forget(domid, device)

    def _forget(self, domid: int, device: Device) -> None:
        known = self._known.get(domid, {})
        known.pop(device, None)
        if not known:
            self._known.pop(domid, None)
