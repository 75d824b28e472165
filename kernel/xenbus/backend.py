"""The serving end of a split device: the shell that runs a BackendDriver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kernel.xenbus.device import Device
from kernel.xenbus.drivers import BackendDriver, Keys
from kernel.xenbus.folder import publish, read_folder
from kernel.xenbus.frontend import BadDeviceFolder, domid_of
from kernel.xenbus.state_node import read_state, write_state
from kernel.xenbus.states import Side, XenbusState
from kernel.xenbus.table import Action, Event

if TYPE_CHECKING:
    from kernel.kernel import Kernel
    from kernel.xenstore.transaction import Transaction


class BackendDevice(Device):
    """Our end of device `devid` of type `kind` for domain `frontend_domid`, in
    `backend/<kind>/<domid>/<devid>`.

    make_driver is called once, when the folder has been read: `device.keys` then holds what the toolstack
    wrote (mode, params, …). peer_keys: the frontend's nodes that the driver wants to be given, all of them if
    None.
    """

    side: ClassVar[Side] = Side.BACKEND
    driver: BackendDriver

    def __init__(
        self,
        kernel: Kernel,
        kind: str,
        frontend_domid: int,
        devid: int,
        make_driver: Callable[[BackendDevice], BackendDriver],
        *,
        peer_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(kernel, f"backend/{kind}/{frontend_domid}/{devid}", peer_keys)
        self.kind = kind
        self.frontend_domid = frontend_domid
        self.devid = devid
        self._factory = make_driver

    async def update(self, keys: Keys) -> None:
        """Write changed keys (a disk's new size) and the state Connected again, in one transaction: the
        frontend looks at them. Does nothing while the device is not connected.
        """
        path = f"{self.path}/state"
        connected = str(int(XenbusState.Connected))

        async def write(transaction: Transaction) -> None:
            if self.own is XenbusState.Connected and await transaction.read(path) == connected:
                await transaction.write_many({f"{self.path}/{name}": value for name, value in keys.items()})
                await transaction.write(path, connected)

        await self.kernel.store.transact(write)

    def _find_peer(self, keys: Keys) -> tuple[str, int]:
        frontend = keys.get("frontend", "")
        if not frontend.startswith("/"):
            raise BadDeviceFolder(self.path, "frontend", keys.get("frontend"), "an absolute path")
        domid = domid_of(self.path, keys, "frontend-id")
        if domid != self.frontend_domid:
            raise BadDeviceFolder(
                self.path, "frontend-id", str(domid), f"{self.frontend_domid}, as in its path"
            )
        return frontend, domid

    def _make_driver(self) -> None:
        self.driver = self._factory(self)

    async def _drive(self, action: Action) -> None:
        match action:
            case Action.ANNOUNCE:
                await self._announce()
            case Action.RESTART:
                await self._take_down()
                await self._announce()
            case Action.CONNECT:
                frontend_keys = await self._read_peer_keys()
                await publish(self.kernel.store, self.path, await self.driver.connect(frontend_keys))

    async def _announce(self) -> None:
        if self.own is not XenbusState.Initialising:
            self.keys = await read_folder(self.kernel.store, self.path)  # it may be another disk by now
        self._engaged = True
        features = await self.driver.features()
        await self.kernel.store.write_many({f"{self.path}/{name}": value for name, value in features.items()})

    async def _disengage(self) -> None:
        await self.driver.disconnect()

    async def _enter(self, state: XenbusState, *, write: bool) -> None:
        """The frontend's folder is gone (PEER_GONE) and nothing of it is held any more: say Closed before the
        device is forgotten, as Linux's backends do. A toolstack that destroys a domain waits for that.
        """
        if state is XenbusState.Unknown and self.own is not XenbusState.Closed:
            store = self.kernel.store
            if await read_state(store, self.path) is not XenbusState.Unknown:
                await write_state(store, self.path, self.own, XenbusState.Closed)
        await super()._enter(state, write=write)

    async def _rest(self) -> None:
        """online=0: the toolstack takes the device away and waits for Closed. It may have written Closing over
        the Closed that was just written.
        """
        store = self.kernel.store
        if await store.read_many([f"{self.path}/online"]) == ["0"]:
            if await read_state(store, self.path) is XenbusState.Closing:
                await write_state(store, self.path, XenbusState.Closed, XenbusState.Closed)
            await self._apply(Event.OFFLINE)
