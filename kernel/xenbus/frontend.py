"""The guest's end of a split device: the shell that runs a FrontendDriver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kernel.errors import KernelError
from kernel.xenbus.device import Device
from kernel.xenbus.drivers import FrontendDriver, Keys
from kernel.xenbus.folder import publish
from kernel.xenbus.states import Side
from kernel.xenbus.table import Action

if TYPE_CHECKING:
    from kernel.kernel import Kernel


class BadDeviceFolder(KernelError):
    """What the toolstack wrote into a device's folder does not lead to the other end."""

    def __init__(self, path: str, key: str, found: str | None, expected: str) -> None:
        super().__init__(f"{path}/{key} is {found!r}, expected {expected}")
        self.path = path
        self.key = key
        self.found = found
        self.expected = expected


def domid_of(path: str, keys: Keys, key: str) -> int:
    """The domain id in `keys[key]`. Raises BadDeviceFolder."""
    text = keys.get(key)
    if text is None or not (text.isascii() and text.isdigit()) or int(text) >= 0x7FF0:
        raise BadDeviceFolder(path, key, text, "a domain id")
    return int(text)


class FrontendDevice(Device):
    """Device `devid` of type `kind`, in `device/<kind>/<devid>`.

    make_driver is called once, when the folder has been read. peer_keys: the backend's nodes that the driver
    wants to be given, all of them if None. Run it with `kernel.tasks.start_soon(device.run)`.
    """

    side: ClassVar[Side] = Side.FRONTEND
    driver: FrontendDriver

    def __init__(
        self,
        kernel: Kernel,
        kind: str,
        devid: int,
        make_driver: Callable[[FrontendDevice], FrontendDriver],
        *,
        peer_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(kernel, f"device/{kind}/{devid}", peer_keys)
        self.kind = kind
        self.devid = devid
        self._factory = make_driver

    def _find_peer(self, keys: Keys) -> tuple[str, int]:
        backend = keys.get("backend", "")
        if not backend.startswith("/"):
            raise BadDeviceFolder(self.path, "backend", keys.get("backend"), "an absolute path")
        return backend, domid_of(self.path, keys, "backend-id")

    def _make_driver(self) -> None:
        self.driver = self._factory(self)

    async def _drive(self, action: Action) -> None:
        if action is Action.GIVE_UP:
            await self.driver.forsaken()
            self._changed.announce()
            return
        backend_keys = await self._read_peer_keys()
        match action:
            case Action.NEGOTIATE:
                self._engaged = True
                await publish(self.kernel.store, self.path, await self.driver.negotiate(backend_keys))
            case Action.CONNECT:
                await self.driver.connected(backend_keys)
            case Action.REVISE:
                await self.driver.changed(backend_keys)

    async def _rest(self) -> None:
        """A frontend's device stays until its folder goes."""

    async def _disengage(self) -> None:
        await self.driver.closing()
