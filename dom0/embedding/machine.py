"""A running machine: the hypervisor's core, its dom0 and the services there, as one context."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final

import anyio
from pydantic import BaseModel, TypeAdapter

from backends.registry import load_backend
from dom0.embedding.beside import beside
from dom0.embedding.guest import MachineStopped, NoSuchDriverDomain, RunningGuest
from dom0.embedding.shares import checked_cap, checked_weight
from dom0.embedding.words import DomainWords
from dom0.isolation import PRELOADED, NotSendable, isolated_image
from dom0.launch.machine import build_machine
from dom0.programs import Main, ProgramError, load_program, program_of
from dom0.scenario.model import DiskSpec, Isolation, MemorySize, Pcpus
from dom0.services import Services, start_services
from dom0.toolstack.devices import DeviceRecord
from dom0.toolstack.endings import outcome_of
from dom0.toolstack.errors import BuildError
from dom0.toolstack.pv_builder import PvConfig
from dom0.toolstack.toolstack import DiskConfig, DomainConfig
from hypervisor.credit import DEFAULT_WEIGHT
from hypervisor.domain import Domain
from hypervisor.vcpu.coroutine_host import CoroutineHost
from hypervisor.vcpu.native.library import EngineUnavailable, find_library
from kernel.kernel import Kernel
from kernel.parking import in_trio
from kernel.program import run_program
from kernel.xenstore.client import XenStoreClient

_LOGGER: Final = logging.getLogger("domzero")
_MEMORY: Final = TypeAdapter[int](MemorySize)
_PCPUS: Final = TypeAdapter[int | None](Pcpus | None)
_NO_ARGS: Final[Mapping[str, Any]] = {}

Size = int | str
"""Bytes, or text such as 16MiB."""


@asynccontextmanager
async def running_machine(
    folder: Path,
    *,
    memory: Size = "1GiB",
    dom0_memory: Size = "64MiB",
    pcpus: int | None = None,
    sockets: Sequence[str | PathLike[str]] = (),
    log: Callable[[str], None] = _LOGGER.info,
) -> AsyncIterator["RunningMachine"]:
    """A machine whose dom0 is up; guests that still run at the end of the context are destroyed.

    Args:
        folder: where consoles are logged, and where relative paths of images start; made if it is missing.
        memory: of the machine; only what is touched is used.
        dom0_memory: RAM of the service domain.
        pcpus: how many physical processors native guests share; None: as many as the host has.
        sockets: paths of Unix sockets on which its XenStore is served, too.
        log: takes what daemons say, and domains on the hypervisor's own console, a line at a time.

    Raises:
        OSError: the folder cannot be made.
        XenError: the machine is smaller than its dom0.
        MachineStopped: dom0 has crashed or shut down by itself.
    """
    sizes = _MEMORY.validate_python(memory), _MEMORY.validate_python(dom0_memory)
    machine = RunningMachine(folder, sizes, log, pcpus=_PCPUS.validate_python(pcpus))
    async with beside(lambda up: machine.run(up, sockets), machine.finish):
        yield machine


class RunningMachine:
    """Made by `running_machine`.

    core: the hypervisor. dom0: its domain. services: the daemons there and the toolstack. guests: those that
    run, or are about to, in the order in which they were started. log: takes a line.
    """

    services: Services

    def __init__(
        self,
        folder: Path,
        sizes: tuple[int, int],
        log: Callable[[str], None],
        *,
        pcpus: int | None = None,
    ) -> None:
        self.guests: dict[RunningGuest, None] = {}
        self.host = CoroutineHost(self._hear, PRELOADED)
        self.core, self.dom0 = build_machine(self.host, *sizes, pcpus)
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._words: dict[int, DomainWords] = {}
        self._finished = anyio.Event()
        self._started = 0
        self._has_processes = False
        self._why_stopped = ""

    @property
    def store(self) -> XenStoreClient:
        """XenStore as dom0 sees it."""
        return self.services.kernel.store

    async def start(
        self,
        program: Main | str,
        args: Mapping[str, Any] | BaseModel = _NO_ARGS,
        *,
        name: str = "",
        memory: Size = "16MiB",
        disks: Iterable[DiskSpec] = (),
        files: Iterable[str | PathLike[str]] = (),
        isolation: Isolation | str = Isolation.COROUTINE,
    ) -> RunningGuest:
        """Builds a guest and lets it run.

        Args:
            program: `async def main(kernel)` or `main(kernel, args)`, or the name of a ready-made guest, or
                module:function.
            args: the program's arguments, checked against its model.
            name: of the domain; guest1, guest2, … if empty.
            memory: RAM.
            disks: what it is given; the first that runs its driver connects.
            files: those that it opens for the disks that it will serve, if it is a driver domain; relative paths
                start at the machine's folder. A process can make none: they must be there.
            isolation: process lets it run in an OS process of its own. A program that is defined inside
                something else is sent there by value, with copies of what it refers to.

        Raises:
            ProgramError, BackendError, NoSuchDriverDomain: there is no such program, backend or driver domain; or the
                program refers to something that cannot be sent to a process.
            pydantic.ValidationError: arguments, memory or a disk's settings are wrong.
            FileNotThere: one of `files`, for a process.
            BuildError, StoreError: the machine refused; nothing is left of the guest.
            MachineStopped: dom0 runs no more.
        """
        loaded = load_program(program) if isinstance(program, str) else program_of(program)
        config = DomainConfig(
            name=self._named(name),
            memory_bytes=_MEMORY.validate_python(memory),
            program=loaded.name,
            arguments=args.model_dump(mode="json") if isinstance(args, BaseModel) else args,
            disks=tuple(self.disk_config(disk) for disk in disks),
            files=tuple(self._folder / file for file in files),
        )
        main = loaded.bind(args)
        if Isolation(isolation) is Isolation.COROUTINE:
            return await self._begin(config, partial(self._execute_as_coroutine, main))
        return await self._begin(config, partial(self._execute_as_process, main))

    async def boot(
        self,
        kernel: str | PathLike[str],
        *,
        ramdisk: str | PathLike[str] | None = None,
        cmdline: str = "",
        vcpus: int = 1,
        name: str = "",
        memory: Size = "256MiB",
        disks: Iterable[DiskSpec] = (),
        weight: int = DEFAULT_WEIGHT,
        cap: int = 0,
        shuffled: bool = False,
    ) -> RunningGuest:
        """Builds a guest whose kernel is a paravirtualized one of Xen's, and lets it run.

        Args:
            kernel: an ELF image or a bzImage; relative paths start at the machine's folder, as that of `ramdisk`.
            cmdline: the kernel's command line.
            vcpus: how many it has.
            name, memory, disks: as for `start`.
            weight: its share of the processors, against other guests'.
            cap: the most percent of one processor that it gets; 0: no limit.
            shuffled: its pages come from all over the machine, as on a real one, rather than in order.

        Raises:
            BuildError: the machine refused, the kernel is none, or there is no engine for it (`cause` says why);
                nothing is left of the guest.
            pydantic.ValidationError: memory, weight, cap or a disk's settings are wrong.
            BackendError, NoSuchDriverDomain, StoreError, MachineStopped: as for `start`.
        """
        self.host.expect_native()
        image = self._folder / kernel
        config = DomainConfig(
            name=self._named(name),
            memory_bytes=_MEMORY.validate_python(memory),
            program=image.name,
            disks=tuple(self.disk_config(disk) for disk in disks),
            pv=PvConfig(
                image, None if ramdisk is None else self._folder / ramdisk, cmdline, vcpus, shuffled=shuffled
            ),
            weight=checked_weight(weight),
            cap=checked_cap(cap),
        )
        try:
            find_library()
        except EngineUnavailable as error:
            raise BuildError(config.name, "find an engine that executes it", error) from error
        return await self._begin(config, self._execute_natively)

    def _named(self, name: str) -> str:
        self._started += 1
        return name or f"guest{self._started}"

    async def _begin(self, config: DomainConfig, execute: Callable[[RunningGuest], None]) -> RunningGuest:
        guest = RunningGuest(self, config, execute)
        if self._finished.is_set() or self.services.kernel.tasks.cancel_scope.cancel_called:
            raise self.stopped()
        self.services.kernel.tasks.start_soon(self._keep, guest)
        await guest.begin()
        return guest

    def disk_config(self, disk: DiskSpec) -> DiskConfig:
        """What the toolstack is told of a disk; relative paths in its settings start at the machine's folder.

        Raises:
            BackendError: there is no such backend.
            NoSuchDriverDomain: the domain that is to serve it does not run.
            pydantic.ValidationError: its settings are wrong.
        """
        config = self.settings_of(disk)
        backend_domid = self._running(disk.backend_domain).domid if disk.backend_domain else 0
        return DiskConfig(disk.vdev, disk.backend, config, disk.mode, disk.max_queues, backend_domid)

    def settings_of(self, disk: DiskSpec) -> BaseModel:
        """The checked settings of a disk's backend. Raises BackendError, pydantic.ValidationError."""
        model = load_backend(disk.backend).Config
        return model.model_validate(disk.config, context={"folder": self._folder})

    def _running(self, name: str) -> RunningGuest:
        """The guest called `name` that was started last."""
        running = {guest.name: guest for guest in self.guests if guest.runs}
        if name not in running:
            raise NoSuchDriverDomain(name, list(running))
        return running[name]

    # What executes the vCPUs of a guest that was built

    def _execute_as_coroutine(self, main: Main, guest: RunningGuest) -> None:
        self.host.start(guest.domain, lambda platform: run_program(platform, main))

    def _execute_as_process(self, main: Main, guest: RunningGuest) -> None:
        try:
            image = isolated_image(
                main,
                loop="trio" if in_trio() else "asyncio",
                origin_ns=self.host.origin_ns,
                files=guest.files,
                outspoken=not self._has_processes,
            )
        except NotSendable as error:
            raise ProgramError(
                guest.name, f"a program that can be sent to a process of its own: {error}"
            ) from error
        self._has_processes = True
        self.host.start_process(guest.domain, image)

    def _execute_natively(self, guest: RunningGuest) -> None:
        p2m = self.services.toolstack.take_p2m(guest.domid)
        guest.native = self.host.start_native(guest.domain, p2m, outspoken=not self._has_processes)
        guest.tally = guest.native.tally
        self._has_processes = True

    # For guests and for running_machine

    def words_of(self, domid: int) -> DomainWords:
        """What a domain has said on the hypervisor's console."""
        words = self._words.get(domid) or self._listen(domid)
        words.end()
        return words

    def device_lost(self, record: DeviceRecord, served_by: str) -> None:
        """A device has lost the domain that served it."""
        owners = [guest.name for guest in self.guests if getattr(guest, "domid", None) == record.domid]
        owner = owners[-1] if owners else f"domain {record.domid}"
        self.log(f"{owner} loses {record.name}: {served_by}, which served it, is gone")

    def forget(self, domid: int) -> None:
        """The domain is gone: its number may be another one's soon."""
        self._words.pop(domid, None)

    def stopped(self) -> MachineStopped:
        """Why it runs no more."""
        return MachineStopped(self._why_stopped or "its dom0 runs no more")

    def finish(self) -> None:
        """Lets the machine end: guests first, then dom0."""
        self._finished.set()

    async def run(self, up: anyio.Event, sockets: Sequence[str | PathLike[str]] = ()) -> None:
        """Runs it until `finish`; sets `up` when the services run. MachineStopped if it ends before."""

        async def serve(kernel: Kernel) -> int:
            self.services = await start_services(
                kernel,
                console_folder=self._folder,
                now=time.time,
                log=lambda line: self.log(f"dom0: {line}"),
                sockets=sockets,
            )
            up.set()
            await self._finished.wait()
            for guest in reversed(list(self.guests)):
                await guest.clear_away()
            for domid in reversed(self.services.toolstack.domids):
                await self.services.toolstack.destroy(domid)
            return 0

        async with self.host.running(self.core):
            execution = self.host.start(self.dom0, lambda platform: run_program(platform, serve))
            self.dom0.unpause()
            await execution.finished.wait()
        if self.dom0.shutdown_reason or not self._finished.is_set():
            words = self.words_of(0).text
            self._why_stopped = f"dom0 ended with {outcome_of(self.dom0.shutdown_reason)}\n{words}".rstrip()
            raise self.stopped()

    async def _keep(self, guest: RunningGuest) -> None:
        self.guests[guest] = None
        try:
            await guest.live()
        finally:
            del self.guests[guest]

    def _hear(self, domain: Domain, data: bytes) -> None:
        """A domain writes to the hypervisor's own console."""
        (self._words.get(domain.domid) or self._listen(domain.domid)).hear(data)

    def _listen(self, domid: int) -> DomainWords:
        words = self._words[domid] = DomainWords(lambda line: self.log(f"(XEN) d{domid}: {line}"))
        return words
