"""A toy device, whose drivers write down what the shells ask of them, and a toolstack that attaches it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from kernel.kernel import Kernel
from kernel.xenbus import BackendBus, BackendDevice, FrontendDevice, XenbusState
from tests.kernel.guests import RunningMachine, running_machine

KIND: Final = "vbd"
DEVID: Final = 51712
PATIENCE_S: Final = 10.0
"""A test that takes longer has hung."""


class Failure(Exception):
    """What a driver raises when a test tells it to."""


@dataclass
class ToyFrontend:
    """Records its calls; fails in those that `fail_in` names."""

    device: FrontendDevice
    keys: Mapping[str, str] = field(default_factory=lambda: {"ring-ref": "9", "event-channel": "10"})
    calls: list[str] = field(default_factory=list)
    seen: dict[str, Mapping[str, str]] = field(default_factory=dict)
    fail_in: set[str] = field(default_factory=set)

    def _note(self, call: str, keys: Mapping[str, str] | None = None) -> None:
        self.calls.append(call)
        if keys is not None:
            self.seen[call] = keys
        if call in self.fail_in:
            raise Failure(call)

    async def negotiate(self, backend_keys: Mapping[str, str]) -> Mapping[str, str]:
        self._note("negotiate", backend_keys)
        return self.keys

    async def connected(self, backend_keys: Mapping[str, str]) -> None:
        self._note("connected", backend_keys)

    async def changed(self, backend_keys: Mapping[str, str]) -> None:
        self._note("changed", backend_keys)

    async def closing(self) -> None:
        self._note("closing")

    async def forsaken(self) -> None:
        self._note("forsaken")


@dataclass
class ToyBackend:
    """Records its calls; fails in those that `fail_in` names."""

    device: BackendDevice
    offer: Mapping[str, str] = field(default_factory=lambda: {"max-ring-page-order": "4"})
    sizes: Mapping[str, str] = field(default_factory=lambda: {"sectors": "131072", "info": "0"})
    calls: list[str] = field(default_factory=list)
    seen: Mapping[str, str] = field(default_factory=dict)
    fail_in: set[str] = field(default_factory=set)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fail_in:
            raise Failure(call)

    async def features(self) -> Mapping[str, str]:
        self._note("features")
        return self.offer

    async def connect(self, frontend_keys: Mapping[str, str]) -> Mapping[str, str]:
        self.seen = frontend_keys
        self._note("connect")
        return self.sizes

    async def disconnect(self) -> None:
        self._note("disconnect")


@dataclass
class Attached:
    """One device between dom0 and a guest. `front` and `back` are the shells, once they run."""

    world: RunningMachine
    domid: int
    guest: Kernel
    bus: BackendBus
    front: FrontendDevice

    @property
    def dom0(self) -> Kernel:
        return self.world.dom0

    @property
    def front_path(self) -> str:
        return f"/local/domain/{self.domid}/device/{KIND}/{DEVID}"

    @property
    def back_path(self) -> str:
        return f"/local/domain/0/backend/{KIND}/{self.domid}/{DEVID}"

    @property
    def back(self) -> BackendDevice:
        return self.bus.devices[self.domid, DEVID]

    @property
    def front_driver(self) -> ToyFrontend:
        assert isinstance(self.front.driver, ToyFrontend)
        return self.front.driver

    @property
    def back_driver(self) -> ToyBackend:
        assert isinstance(self.back.driver, ToyBackend)
        return self.back.driver

    async def attach(self) -> None:
        """Write both folders in one transaction, as xl does it."""
        await attach(self.dom0, self.domid)

    async def detach(self) -> None:
        """online=0 and state=Closing in one transaction, as xl does it."""
        await self.dom0.store.transact(
            lambda transaction: transaction.write_many(
                {f"{self.back_path}/online": "0", f"{self.back_path}/state": "5"}
            )
        )

    async def states(self) -> tuple[str, str]:
        """What the store says: the frontend's state, and the backend's."""
        values = await self.dom0.store.read_many([f"{self.front_path}/state", f"{self.back_path}/state"])
        return values[0] or "-", values[1] or "-"

    async def reach(self, front: XenbusState | None, back: XenbusState | None) -> None:
        """Wait until the store says so; None means any state, Unknown that there is no node."""
        async with (
            self.dom0.store.watch(self.front_path) as fronts,
            self.dom0.store.watch(self.back_path) as backs,
            anyio.create_task_group() as tasks,
        ):
            wanted = tuple(None if s is None else ("-" if not s else str(int(s))) for s in (front, back))

            async def look(watch: object) -> None:
                async for _ in watch:  # type: ignore[attr-defined]
                    found = await self.states()
                    if all(want in (None, have) for want, have in zip(wanted, found)):
                        tasks.cancel_scope.cancel()

            tasks.start_soon(look, fronts)
            tasks.start_soon(look, backs)


async def attach(dom0: Kernel, domid: int, devid: int = DEVID) -> None:
    """What xl writes of a device, cut down to what the shells look at."""
    front = f"/local/domain/{domid}/device/{KIND}/{devid}"
    back = f"/local/domain/0/backend/{KIND}/{domid}/{devid}"

    async def write(transaction: object) -> None:
        t = transaction
        await t.mkdir(front)  # type: ignore[attr-defined]
        await t.set_perms(front, [f"n{domid}", "r0"])  # type: ignore[attr-defined]
        await t.write_many(  # type: ignore[attr-defined]
            {f"{front}/backend": back, f"{front}/backend-id": "0", f"{front}/state": "1"}
        )
        await t.mkdir(back)  # type: ignore[attr-defined]
        await t.set_perms(back, ["n0", f"r{domid}"])  # type: ignore[attr-defined]
        await t.write_many(  # type: ignore[attr-defined]
            {
                f"{back}/frontend": front,
                f"{back}/frontend-id": str(domid),
                f"{back}/online": "1",
                f"{back}/state": "1",
                f"{back}/mode": "w",
            }
        )

    await dom0.store.transact(write)


@asynccontextmanager
async def attached(*, serve: bool = True, use: bool = True) -> AsyncIterator[Attached]:
    """A device that the toolstack has attached; `serve` and `use`: whether a backend and a frontend run."""
    with anyio.fail_after(PATIENCE_S):
        async with running_machine() as world:
            domid, guest = await world.boot_guest()
            await attach(world.dom0, domid)
            bus = BackendBus(world.dom0, KIND, ToyBackend)
            front = FrontendDevice(guest, KIND, DEVID, ToyFrontend)
            if serve:
                world.dom0.tasks.start_soon(bus.run)
            if use:
                guest.tasks.start_soon(front.run)
            device = Attached(world, domid, guest, bus, front)
            if serve and use:
                await front.wait_connected()
                await device.reach(XenbusState.Connected, XenbusState.Connected)
            yield device
