"""A bus: which devices of one type there are. It watches their folder and runs a device for each, in a task
of its own.

A frontend's devices are `device/<type>/<devid>`, a backend's `backend/<type>/<domid>/<devid>`. A device
begins when its folder is there with state Initialising; when the bus itself begins, in any state, since a
driver before it may have left it so. What the bus does for an event depends on the store alone, never on how
many events there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

import anyio
from anyio.abc import TaskGroup

from kernel.parking import Broadcast
from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.device import Device
from kernel.xenbus.drivers import BackendDriver, FrontendDriver
from kernel.xenbus.folder import is_gone
from kernel.xenbus.frontend import FrontendDevice
from kernel.xenbus.states import XenbusState
from kernel.xenstore.errors import StoreConnectionBroken, StoreError

if TYPE_CHECKING:
    from kernel.kernel import Kernel
    from kernel.xenstore.watches import Watch

D = TypeVar("D", bound=Device)

Key = tuple[int, ...]
"""The numbers in a device's path: (devid,) at a frontend, (domid, devid) at a backend."""

_NEW = str(int(XenbusState.Initialising))


class DeviceBus(Generic[D]):
    """`devices`: those that run now. `depth`: how many numbers lead from `root` to a device's folder."""

    def __init__(self, kernel: Kernel, root: str, depth: int, make_device: Callable[[Key], D]) -> None:
        self.devices: dict[Key, D] = {}
        self._kernel = kernel
        self._root = root
        self._depth = depth
        self._make_device = make_device
        self._changed = Broadcast()
        self._replaced: set[Key] = set()
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Run the bus until it is cancelled, or the connection to XenStore breaks."""
        try:
            async with self._kernel.store.watch(self._root) as watch, anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self._follow(watch)
        except* StoreConnectionBroken as broken:
            self._kernel.log(f"xenbus: {self._root}: {broken.exceptions[0]}")

    async def _follow(self, watch: Watch) -> NoReturn:
        await watch.batch()
        await self._scan((), new_only=False)
        while True:
            for path in await watch.batch():
                await self._react(path)

    async def find(self, *key: int) -> D:
        """The device with this key; waits for it to appear."""
        while key not in self.devices:
            await self._changed.wait()
        return self.devices[key]

    async def _react(self, path: str) -> None:
        """Something at `path` has changed: begin or end the devices that this can concern."""
        names = path.removeprefix(self._root).strip("/").split("/")
        key = _numbers(names[: self._depth])
        below = names[self._depth :]
        if len(key) < self._depth:
            await self._scan(key, new_only=True)
        elif not below or (below == ["state"] and key not in self.devices):
            await self._look(key, new_only=True)
        elif below == ["online"] and key in self.devices:
            self.devices[key].own_folder_changed()

    async def _scan(self, prefix: Key, *, new_only: bool) -> None:
        """Look at every device below `prefix`, at those in the store and at those that run."""
        found = [prefix]
        for _ in range(self._depth - len(prefix)):
            found = [(*key, number) for key in found for number in await self._children(key)]
        running = [key for key in self.devices if key[: len(prefix)] == prefix]
        for key in dict.fromkeys(found + running):
            await self._look(key, new_only=new_only)

    async def _children(self, key: Key) -> Key:
        try:
            names = await self._kernel.store.directory(self._path(key))
        except StoreError as error:
            if is_gone(error):
                return ()
            raise
        return tuple(number for name in names for number in _numbers([name]))

    async def _look(self, key: Key, *, new_only: bool) -> None:
        """Compare one device with its folder. A folder that was removed and made anew is a new device."""
        state = (await self._kernel.store.read_many([f"{self._path(key)}/state"]))[0]
        device = self.devices.get(key)
        if device is None:
            if state is not None and (state == _NEW or not new_only):
                self._begin(key)
        elif state is None:
            device.removed()
        elif state == _NEW and (device.own > XenbusState.Initialising or device.closed is not None):
            self._replaced.add(key)
            device.removed()

    def _begin(self, key: Key) -> None:
        device = self.devices[key] = self._make_device(key)
        self._tasks.start_soon(self._run, key, device)
        self._changed.announce()

    async def _run(self, key: Key, device: D) -> None:
        try:
            await device.run()
        finally:
            del self.devices[key]
        if key in self._replaced:
            self._replaced.discard(key)
            await self._look(key, new_only=False)  # the old device may have written its state meanwhile

    def _path(self, key: Key) -> str:
        return "/".join([self._root, *map(str, key)])


class FrontendBus(DeviceBus[FrontendDevice]):
    """All devices of a type that this domain is given."""

    def __init__(
        self,
        kernel: Kernel,
        kind: str,
        make_driver: Callable[[FrontendDevice], FrontendDriver],
        *,
        peer_keys: Sequence[str] | None = None,
    ) -> None:
        def make(key: Key) -> FrontendDevice:
            return FrontendDevice(kernel, kind, key[0], make_driver, peer_keys=peer_keys)

        super().__init__(kernel, f"device/{kind}", 1, make)


class BackendBus(DeviceBus[BackendDevice]):
    """All devices of a type that this domain serves, of every frontend domain."""

    def __init__(
        self,
        kernel: Kernel,
        kind: str,
        make_driver: Callable[[BackendDevice], BackendDriver],
        *,
        peer_keys: Sequence[str] | None = None,
    ) -> None:
        def make(key: Key) -> BackendDevice:
            return BackendDevice(kernel, kind, key[0], key[1], make_driver, peer_keys=peer_keys)

        super().__init__(kernel, f"backend/{kind}", 2, make)


def _numbers(names: Sequence[str]) -> Key:
    """The leading names that are numbers."""
    numbers = []
    for name in names:
        if not (name.isascii() and name.isdigit()):
            break
        numbers.append(int(name))
    return tuple(numbers)
