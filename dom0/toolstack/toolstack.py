"""What `xl` does on a real Xen: create, attach, detach, shut down, destroy.

The toolstack is a client like any other: hypercalls of the control domain and XenStore are all it uses.
"""

import json
import re
import uuid as uuids
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import anyio
from pydantic import BaseModel

from backends.block.keys import DEFAULT_QUEUES, MAX_QUEUES_NODE
from backends.params import params_of
from dom0.toolstack.build_steps import BuiltDomain
from dom0.toolstack.builder import build_domain
from dom0.toolstack.devices import DeviceRecord, Devices
from dom0.toolstack.endings import Endings
from dom0.toolstack.errors import NoSuchBackendDomain, NoSuchDisk, NoSuchGuest
from dom0.toolstack.layout import Node, StoreDescription, console, description, disk, domain_path, skeleton
from dom0.toolstack.pv_builder import PvConfig, build_pv_domain
from dom0.toolstack.store_nodes import OneAtATime, remove_tree, write_nodes
from dom0.vdev import vdev_number
from hypervisor.credit import DEFAULT_WEIGHT
from kernel.hypercalls import HypercallNoSuchDomain
from kernel.hypercalls.control import SAME_CAP
from kernel.kernel import Kernel
from kernel.program import EXIT_CODE_PATH, REPORT_FOLDER
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

CONSOLE_LOG_LIMIT_BYTES: Final = 1 << 20
COMMAND_LINE_BYTES: Final = 2048
"""As long as Linux's; more of a program's arguments is not shown in the store."""

UNDO_TIMEOUT_S: Final = 30.0
"""How long it may take to remove a domain again whose creation was cancelled."""

VBD: Final = "vbd"
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A disk to attach: its name in the guest, its backend by name, the backend's checked settings, how many
    queues the guest may ask for, and the domain that serves it.
    """

    vdev: str
    backend: str
    config: BaseModel
    mode: str = "w"
    max_queues: int = DEFAULT_QUEUES
    backend_domid: int = 0

    def keys(self) -> dict[str, str]:
        """The backend's part of the device's nodes."""
        keys = {"params": params_of(self.config), "type": self.backend}
        # What is as usual is not said: the folder then looks as it does on a real Xen.
        return keys if self.max_queues == DEFAULT_QUEUES else keys | {MAX_QUEUES_NODE: str(self.max_queues)}


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain to create. `program` and `arguments` are for whoever looks into the store. files: those that its
    backends are to open, if it is a driver domain. pv: its kernel, if that is none of ours. weight, cap: its share of
    the processors, and the most percent of one that it gets, if not 0.
    """

    name: str
    memory_bytes: int
    program: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    disks: tuple[DiskConfig, ...] = ()
    files: tuple[Path, ...] = ()
    pv: PvConfig | None = None
    weight: int = DEFAULT_WEIGHT
    cap: int = 0

    def command_line(self) -> str:
        """A kernel's command line, or the arguments as text, cut where they are long."""
        if self.pv is not None:
            return self.pv.command_line
        text = json.dumps(dict(self.arguments), separators=(",", ":"), default=str)
        return text if len(text) <= COMMAND_LINE_BYTES else text[: COMMAND_LINE_BYTES - 3] + "..."


class Toolstack:
    """The toolstack of dom0. `now` gives Unix time in seconds, for the record of a domain's start."""

    def __init__(self, kernel: Kernel, now: Callable[[], float]) -> None:
        self._kernel = kernel
        self._store = kernel.store
        self._now = now
        self._uuids: dict[int, str] = {}
        self._p2m: dict[int, bytes] = {}
        self._destroying: dict[int, anyio.Event] = {}
        self._transact = OneAtATime(kernel.store)
        self.endings = Endings(kernel)
        self.devices = Devices(kernel.store, self._transact, self.endings.wait)

    @property
    def domids(self) -> list[int]:
        """The domains that it has created and not destroyed, the oldest first."""
        return list(self._uuids)

    async def run(self) -> None:
        """Notices domains that end. Runs until it is cancelled."""
        await self.endings.run()

    async def create(self, config: DomainConfig) -> int:
        """Builds a domain and describes it and its devices in XenStore; it stays paused. Returns its id.

        Raises:
            BuildError: the machine refused; nothing is left of the domain.
            StoreError, DeviceExists, NoSuchBackendDomain: it cannot be described so; nothing is left of the
                domain.
        """
        uuid = uuids.uuid4()
        if config.pv is None:
            built = build_domain(self._kernel, config.name, uuid.bytes, config.memory_bytes)
        else:
            built = build_pv_domain(self._kernel, config.name, uuid.bytes, config.memory_bytes, config.pv)
            self._p2m[built.domid] = built.p2m
        self._uuids[built.domid] = str(uuid)
        self.endings.expect(built.domid)
        try:
            if config.pv is not None:
                self.set_share(built.domid, weight=config.weight, cap=config.cap)
            await self._describe(built, str(uuid), config)
        except BaseException:
            with anyio.move_on_after(UNDO_TIMEOUT_S, shield=True):
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
            arguments=config.command_line(),
            memory_kib=config.memory_bytes >> 10,
            store_port=built.store_port,
            store_gfn=built.store_gfn,
            start_time=f"{self._now():.2f}",
        )
        pv = config.pv
        if pv is not None:
            ramdisk = str(pv.ramdisk or "")
            told = replace(told, program=str(pv.kernel), ramdisk=ramdisk, ostype="linux", vcpus=pv.vcpus)
        await self._write(skeleton(domid, config.name, uuid, "pvh" if pv is None else "pv"))
        await self._write(description(told))
        await self._store.introduce(domid, built.store_gfn, built.store_port)
        for disk_config in config.disks:
            await self.attach_disk(domid, disk_config)
        nodes = console(domid, built.console_port, built.console_gfn, CONSOLE_LOG_LIMIT_BYTES)
        await self.devices.add(DeviceRecord(domid, "console", 0), nodes)

    async def _write(self, nodes: Iterable[Node]) -> None:
        kept = list(nodes)
        await self._transact(lambda transaction: write_nodes(transaction, kept))

    def start(self, domid: int) -> None:
        """Lets a domain run that was created. Raises NoSuchGuest."""
        self._check(domid)
        self._kernel.hypercalls.unpausedomain(domid)

    def take_p2m(self, domid: int) -> bytes:
        """Which frames a native domain has (BuiltDomain.p2m), handed once to what executes it. Raises NoSuchGuest."""
        self._check(domid)
        return self._p2m.pop(domid)

    def set_share(self, domid: int, *, weight: int | None = None, cap: int | None = None) -> None:
        """Changes a domain's share of the processors, as in DomainConfig; what is None stays. Raises NoSuchGuest."""
        self._check(domid)
        self._kernel.hypercalls.scheduler_op_put(
            domid, weight=weight or 0, cap=SAME_CAP if cap is None else cap
        )

    async def attach_disk(self, domid: int, config: DiskConfig) -> None:
        """Adds a disk to a domain, running or not; the two drivers find it and connect.

        Raises:
            NoSuchGuest: this toolstack has no such domain.
            NoSuchBackendDomain: the domain that is to serve it does not run.
            DeviceExists: the domain has a disk of that name, or of another name for the same number.
        """
        self._check(domid)
        backend = config.backend_domid
        if backend and (backend not in self._uuids or self.endings.ended(backend)):
            raise NoSuchBackendDomain(domid, config.vdev, backend)
        nodes = disk(domid, config.vdev, mode=config.mode, backend_keys=config.keys(), backend_domid=backend)
        record = DeviceRecord(domid, VBD, vdev_number(config.vdev), config.vdev, backend)
        await self.devices.add(record, nodes)

    async def detach_disk(self, domid: int, vdev: str) -> bool:
        """Takes a disk away; False if a driver did not let go of it in time, and it was removed all the same.

        Raises:
            NoSuchDisk: this toolstack has attached none of that name.
        """
        device = VBD, vdev_number(vdev)
        if device not in self.devices.of(domid):
            raise NoSuchDisk(domid, vdev)
        return await self.devices.detach(domid, device)

    async def request_shutdown(self, domid: int, reason: str = "poweroff") -> None:
        """Asks a domain's kernel to shut down; whether it does is its own affair. Raises NoSuchGuest."""
        self._check(domid)
        path = f"{domain_path(domid)}/control/shutdown"

        async def ask(transaction: Transaction) -> None:
            if not await transaction.exists(path):
                raise NoSuchGuest(domid)
            await transaction.write(path, reason)

        await self._transact(ask)

    async def exit_code(self, domid: int) -> int | None:
        """What the domain's program returned, as its kernel has written it; None if it said nothing."""
        (text,) = await self._store.read_many([f"{domain_path(domid)}/{EXIT_CODE_PATH}"])
        if text is None or not _INTEGER.fullmatch(text):
            return None
        return int(text)

    async def driver_reports(self, domid: int) -> dict[str, str]:
        """What the domain's drivers have counted, as its kernel has written it when its program ended."""
        folder = f"{domain_path(domid)}/{REPORT_FOLDER}"
        try:
            names = await self._store.directory(folder)
        except StoreError:
            return {}
        values = await self._store.read_many([f"{folder}/{name}" for name in names])
        return {name: value for name, value in zip(names, values) if value is not None}

    async def wait_end(self, domid: int) -> str:
        """Waits until a domain has shut down, crashed or been destroyed; says which."""
        return await self.endings.wait(domid)

    async def destroy(self, domid: int) -> None:
        """Ends a domain whatever it does, and removes it from XenStore. Harmless if it is gone.

        Raises:
            NoSuchGuest: it is the control domain.
        """
        if domid == 0:
            raise NoSuchGuest(domid)
        while (other := self._destroying.get(domid)) is not None:
            await other.wait()
        over = self._destroying[domid] = anyio.Event()
        try:
            await self._destroy(domid)
        finally:
            del self._destroying[domid]
            over.set()

    async def _destroy(self, domid: int) -> None:
        """Its devices first, while their backends can still look at it; nobody may add one from then on."""
        hypercalls = self._kernel.hypercalls
        uuid = self._uuids.pop(domid, None)
        self._p2m.pop(domid, None)
        with suppress(HypercallNoSuchDomain):
            hypercalls.pausedomain(domid)
        try:
            if self._kernel.tasks.cancel_scope.cancel_called:
                return  # this kernel ends: no store will answer any more
            await self.devices.remove_all(domid)
            await self.devices.hear_out(domid)
        finally:
            with suppress(HypercallNoSuchDomain):
                hypercalls.destroydomain(domid)
        paths = [domain_path(domid), f"/libxl/{domid}", *([f"/vm/{uuid}"] if uuid else [])]

        async def remove(transaction: Transaction) -> None:
            for path in paths:
                await remove_tree(transaction, path)

        await self._transact(remove)
        await self.devices.remove_all(domid)  # one that was being attached when this began
        self.devices.lose(domid)
        self.endings.forget(domid)

    def _check(self, domid: int) -> None:
        if domid not in self._uuids:
            raise NoSuchGuest(domid)
