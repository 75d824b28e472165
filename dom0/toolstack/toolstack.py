"""What `xl` does on a real Xen: create, attach, detach, shut down, destroy.

The toolstack is a client like any other: hypercalls of the control domain and XenStore are all it uses.
"""

import json
import uuid as uuids
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from pydantic import BaseModel

from backends.params import params_of
from dom0.toolstack.builder import CONSOLE_GFN, STORE_GFN, BuiltDomain, build_domain
from dom0.toolstack.devices import Devices
from dom0.toolstack.endings import Endings
from dom0.toolstack.layout import Node, StoreDescription, console, description, disk, domain_path, skeleton
from dom0.toolstack.store_nodes import remove_tree, write_nodes
from dom0.vdev import vdev_number
from kernel.errors import KernelError
from kernel.hypercalls import HypercallNoSuchDomain
from kernel.kernel import Kernel
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

CONSOLE_LOG_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A disk to attach: its name in the guest, its backend by name, and the backend's checked settings."""

    vdev: str
    backend: str
    config: BaseModel
    mode: str = "w"

    def keys(self) -> dict[str, str]:
        """The backend's part of the device's nodes."""
        return {"params": params_of(self.config), "type": self.backend}


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain to create. `program` and `arguments` are for whoever looks into the store."""

    name: str
    memory_bytes: int
    program: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    disks: tuple[DiskConfig, ...] = ()


class NoSuchDisk(KernelError):
    """There is no such disk to detach."""

    def __init__(self, domid: int, vdev: str) -> None:
        super().__init__(f"domain {domid} has no disk {vdev}")
        self.domid = domid
        self.vdev = vdev


class Toolstack:
    """The toolstack of dom0. `now` gives Unix time in seconds, for the record of a domain's start."""

    def __init__(self, kernel: Kernel, now: Callable[[], float]) -> None:
        self._kernel = kernel
        self._store = kernel.store
        self._now = now
        self._uuids: dict[int, str] = {}
        self.devices = Devices(kernel.store)
        self.endings = Endings(kernel)

    async def run(self) -> None:
        """Notices domains that end. Runs until it is cancelled."""
        await self.endings.run()

    async def create(self, config: DomainConfig) -> int:
        """Builds a domain and describes it and its devices in XenStore; it stays paused. Returns its id.

        Raises:
            BuildError: the machine refused; nothing is left of the domain.
            StoreError: XenStore refused; nothing is left of the domain.
        """
        uuid = uuids.uuid4()
        built = build_domain(self._kernel, config.name, uuid.bytes, config.memory_bytes)
        self._uuids[built.domid] = str(uuid)
        self.endings.expect(built.domid)
        try:
            await self._describe(built, str(uuid), config)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.destroy(built.domid)
            raise
        return built.domid

    async def _describe(self, built: BuiltDomain, uuid: str, config: DomainConfig) -> None:
        domid = built.domid
        told = StoreDescription(
            domid=domid,
            name=config.name,
            uuid=uuid,
            program=config.program,
            arguments=json.dumps(dict(config.arguments), separators=(",", ":"), default=str),
            memory_kib=config.memory_bytes >> 10,
            store_port=built.store_port,
            store_gfn=STORE_GFN,
            start_time=f"{self._now():.2f}",
        )
        await self._write(skeleton(domid, config.name, uuid))
        await self._write(description(told))
        await self._store.introduce(domid, STORE_GFN, built.store_port)
        for disk_config in config.disks:
            await self.attach_disk(domid, disk_config)
        nodes = console(domid, built.console_port, CONSOLE_GFN, CONSOLE_LOG_LIMIT_BYTES)
        await self.devices.add(domid, "console", 0, nodes)

    async def _write(self, nodes: Iterable[Node]) -> None:
        kept = list(nodes)
        await self._store.transact(lambda transaction: write_nodes(transaction, kept))

    def start(self, domid: int) -> None:
        """Lets a domain run that was created."""
        self._kernel.hypercalls.unpausedomain(domid)

    async def attach_disk(self, domid: int, config: DiskConfig) -> None:
        """Adds a disk to a domain, running or not; the two drivers find it and connect."""
        nodes = disk(domid, config.vdev, mode=config.mode, backend_keys=config.keys())
        await self.devices.add(domid, "vbd", vdev_number(config.vdev), nodes)

    async def detach_disk(self, domid: int, vdev: str) -> bool:
        """Takes a disk away; False if a driver did not let go of it in time, and it was removed all the same.

        Raises:
            NoSuchDisk: this toolstack has attached none of that name.
        """
        if ("vbd", vdev_number(vdev)) not in self.devices.of(domid):
            raise NoSuchDisk(domid, vdev)
        return await self.devices.detach(domid, "vbd", vdev_number(vdev))

    async def request_shutdown(self, domid: int, reason: str = "poweroff") -> None:
        """Asks a domain's kernel to shut down; whether it does is its own affair."""
        await self._store.write(f"{domain_path(domid)}/control/shutdown", reason)

    async def exit_code(self, domid: int) -> int | None:
        """What the domain's program returned, as its kernel has written it; None if it said nothing."""
        try:
            text = await self._store.read(f"{domain_path(domid)}/data/exit-code")
        except StoreError:
            return None
        return int(text) if text.lstrip("-").isdecimal() and len(text) <= 20 else None

    async def wait_end(self, domid: int) -> str:
        """Waits until a domain has shut down, crashed or been destroyed; says which."""
        return await self.endings.wait(domid)

    async def destroy(self, domid: int) -> None:
        """Ends a domain whatever it does, and removes it from XenStore. Harmless if it is gone."""
        hypercalls = self._kernel.hypercalls
        with suppress(HypercallNoSuchDomain):
            hypercalls.pausedomain(domid)
        await self.devices.remove_all(domid)
        with suppress(HypercallNoSuchDomain):
            hypercalls.destroydomain(domid)
        uuid = self._uuids.pop(domid, None)

        async def remove(transaction: Transaction) -> None:
            for path in (f"/vm/{uuid}", domain_path(domid), f"/libxl/{domid}"):
                await remove_tree(transaction, path)

        await self._store.transact(remove)
        self.endings.forget(domid)
