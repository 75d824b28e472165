"""Devices of domains as the toolstack sees them: added, removed, and remembered where no guest can write.

What a device is called and where it lies comes from the toolstack's own record, never from a node that a
guest or a driver domain could have changed. A device is in the record from before it is written until after
it is removed, so that whatever happens in between leaves nothing behind.

A device is lost when the domain that served it has died: from then on nobody is asked about it or waited for,
and nothing is touched where that domain was, whose number may be another one's.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio

from backends.block.report import STATISTICS
from dom0.toolstack.errors import DeviceExists, NoSuchBackendDomain, NoSuchGuest
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

MAX_STATISTICS: Final = 32
PAST_DEVICES: Final = 4096

_INITIALISING: Final = str(int(XenbusState.Initialising))
_CLOSING: Final = str(int(XenbusState.Closing))
_CLOSED: Final = str(int(XenbusState.Closed))


@dataclass(slots=True)
class DeviceRecord:
    """One device of a domain.

    name: as its owner calls it. lost: the domain that served it has died. statistics: what a driver domain has
    counted of it, as it wrote that; by node, "" for the whole.
    """

    domid: int
    kind: str
    devid: int
    name: str = ""
    backend_domid: int = 0
    lost: bool = False
    statistics: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> DevicePaths:
        """Its folders."""
        return DevicePaths.of(self.kind, self.domid, self.devid, self.backend_domid)


class Devices:
    """All devices that this toolstack has added. ended: returns when a domain has ended."""

    def __init__(
        self, store: XenStoreClient, transact: OneAtATime, ended: Callable[[int], Awaitable[object]]
    ) -> None:
        self._store = store
        self._transact = transact
        self._ended = ended
        self._known: dict[int, dict[Device, DeviceRecord]] = {}
        self._past: deque[DeviceRecord] = deque(maxlen=PAST_DEVICES)

    def of(self, domid: int) -> list[Device]:
        """The devices of a domain."""
        return list(self._known.get(domid, ()))

    def of_driver_domains(self, domid: int) -> list[DeviceRecord]:
        """The devices that a domain has, and had, from other domains than dom0, the newest last."""
        return [record for record in self._all() if record.domid == domid and record.backend_domid]

    def served_by(self, backend_domid: int) -> list[DeviceRecord]:
        """The devices that a driver domain serves, or has served, the newest last."""
        return [record for record in self._all() if record.backend_domid == backend_domid]

    def _all(self) -> Iterator[DeviceRecord]:
        yield from self._past
        for known in self._known.values():
            yield from known.values()

    async def add(self, record: DeviceRecord, nodes: Iterable[Node]) -> None:
        """Writes both ends of a device in one transaction.

        Raises DeviceExists, NoSuchGuest, NoSuchBackendDomain, StoreError.
        """
        domid, device = record.domid, (record.kind, record.devid)
        known = self._known.setdefault(domid, {})
        if device in known:
            raise DeviceExists(domid, *device)
        kept = list(nodes)

        async def write(transaction: Transaction) -> None:
            if not await transaction.exists(domain_path(domid)):
                raise NoSuchGuest(domid)
            backend = record.backend_domid
            if backend and not await transaction.exists(domain_path(backend)):
                raise NoSuchBackendDomain(domid, record.name, backend)
            await write_nodes(transaction, kept)

        known[device] = record
        try:
            await self._transact(write)
        except (NoSuchGuest, NoSuchBackendDomain, StoreError):
            self._forget(record)
            raise

    async def detach(self, domid: int, device: Device) -> bool:
        """Asks both drivers to close, then removes the device; False if they did not close in time.

        Where the guest has no driver for it nobody could be asked: its folder goes at once.
        """
        record = self._known[domid][device]
        paths = record.paths

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

        if not record.lost and await self._transact(ask):
            closed = await self._closed(record)
        else:
            closed = await self._withdraw(record)
        await self._remove(record)
        return closed

    async def remove_all(self, domid: int) -> None:
        """Takes away every device of a domain that runs no more, once their backends have let go."""
        records = list(self._known.get(domid, {}).values())
        async with anyio.create_task_group() as tasks:
            for record in records:
                if record.kind != "console":  # the daemon of consoles watches the domain, not a state
                    tasks.start_soon(self._withdraw, record)
        for record in records:
            await self._remove(record)

    async def hear_out(self, backend_domid: int) -> None:
        """A driver domain is about to be removed: keeps what it has counted of the devices that are left."""
        for record in self.served_by(backend_domid):
            await self._hear(record)

    async def hear_all(self) -> None:
        """Takes what driver domains have counted so far of all devices. Raises StoreError."""
        for record in [record for known in self._known.values() for record in known.values()]:
            await self._hear(record)

    def lose(self, backend_domid: int) -> None:
        """A driver domain is gone, and with it all that it said of its devices."""
        for known in self._known.values():
            for record in known.values():
                record.lost = record.lost or record.backend_domid == backend_domid

    async def _withdraw(self, record: DeviceRecord) -> bool:
        """The frontend's folder goes first: its backend sees that nobody is left. Whether it closed in time."""
        paths = record.paths

        async def withdraw(transaction: Transaction) -> None:
            await remove_tree(transaction, paths.frontend)
            if not record.lost and await transaction.exists(paths.backend):
                await transaction.write(f"{paths.backend}/online", "0")

        await self._transact(withdraw)
        return await self._closed(record)

    async def _closed(self, record: DeviceRecord) -> bool:
        """Whether the backend has closed, or is gone, in time. A domain that has ended is not waited for."""
        closed = record.lost
        if not closed:
            with anyio.move_on_after(REMOVAL_TIMEOUT_S):
                async with anyio.create_task_group() as tasks:

                    async def look(what: Awaitable[object]) -> None:
                        nonlocal closed
                        await what
                        closed = True
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(look, self._says_closed(record.paths.backend))
                    if record.backend_domid:
                        tasks.start_soon(look, self._ended(record.backend_domid))
        return closed

    async def _says_closed(self, backend: str) -> None:
        """Returns when the backend is Closed, or its folder gone."""
        state = f"{backend}/state"
        async with self._store.watch(state) as watch:
            async for _ in watch:
                try:
                    if await self._store.read(state) == _CLOSED:
                        return
                except StoreError:
                    return

    async def _remove(self, record: DeviceRecord) -> None:
        await self._hear(record)
        paths = record.paths

        async def remove(transaction: Transaction) -> None:
            for path in (paths.frontend, paths.private):
                await remove_tree(transaction, path)
            for path in () if record.lost else (paths.backend, paths.error):
                await remove_tree(transaction, path)

        await self._transact(remove)
        if (
            record.backend_domid
            and self._known.get(record.domid, {}).get((record.kind, record.devid)) is record
        ):
            self._past.append(record)
        self._forget(record)

    async def _hear(self, record: DeviceRecord) -> None:
        """Takes what a driver domain has counted, if it said anything. It may have written what it likes."""
        if not record.backend_domid or record.lost:
            return
        folder = f"{record.paths.backend}/{STATISTICS}"
        try:
            names = ["", *(f"/{name}" for name in (await self._store.directory(folder))[:MAX_STATISTICS])]
        except StoreError:
            return
        values = await self._store.read_many([folder + name for name in names])
        if values[0] is None:
            return  # it was removed meanwhile
        record.statistics = {
            name.removeprefix("/"): value for name, value in zip(names, values) if value is not None
        }

    def _forget(self, record: DeviceRecord) -> None:
        known = self._known.get(record.domid, {})
        if known.get((record.kind, record.devid)) is record:
            del known[record.kind, record.devid]
        if not known:
            self._known.pop(record.domid, None)
