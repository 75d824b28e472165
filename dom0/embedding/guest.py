"""A guest of a running machine, from its creation to what is left to say of it."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from pydantic import ByteSize

from backends.console.errors import NoConsole
from backends.console.terminal import Terminal
from dom0.embedding.shares import checked_cap, checked_weight
from dom0.toolstack.devices import DeviceRecord
from dom0.toolstack.errors import NoSuchGuest
from dom0.toolstack.toolstack import DomainConfig
from hypervisor.domain import Domain
from hypervisor.pv.tally import Tally
from kernel.errors import KernelError

if TYPE_CHECKING:
    from dom0.embedding.machine import RunningMachine
    from dom0.scenario.model import DiskSpec
    from hypervisor.vcpu.native.execution import NativeVcpu

SEARCHED_CHARACTERS: Final = 1 << 16
SHOWN_CHARACTERS: Final = 1000

SHUTDOWN_PATIENCE_S: Final = 5.0
"""How long a guest may take to shut down when it is asked to, before it is destroyed."""

DESTROY_PATIENCE_S: Final = 30.0
"""How long that may take: longer than the time limits of its devices, unless dom0 itself is broken."""


class MachineStopped(Exception):
    """The machine runs no more, though nobody has ended it; `why` is what its dom0 said last."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the machine has stopped: {why}")
        self.why = why


class NeverPrinted(Exception):
    """The guest `name` has ended, or its console was closed, and nothing that it printed matches `pattern`."""

    def __init__(self, name: str, pattern: str, printed: str) -> None:
        super().__init__(f"{name} has never printed {pattern!r}; the end of what it printed is {printed!r}")
        self.name = name
        self.pattern = pattern
        self.printed = printed


class NoSuchDriverDomain(KernelError):
    """A disk was to be served by the domain `name`; none of that name runs. known: those that do."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no domain {name} runs that could serve a disk, only {', '.join(known) or 'dom0'}")
        self.name = name
        self.known = known


@dataclass(frozen=True, slots=True)
class GuestEnd:
    """How a guest ended.

    outcome: a shutdown reason by name (poweroff, reboot, suspend, crash, …), or destroyed. exit_code: what
    its program returned. crash: what its kernel said of a crash, the traceback above all. leaks: grants that
    it had not ended. drivers: the reports of its drivers, by device, as they wrote them. disks: those that
    it had from driver domains. served: those that it has served as one.
    """

    outcome: str
    exit_code: int | None = None
    crash: str = ""
    leaks: tuple[str, ...] = ()
    drivers: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[DeviceRecord, ...] = ()
    served: tuple[DeviceRecord, ...] = ()


class RunningGuest:
    """Made by `RunningMachine.start` and `boot`. name, program: as it was started. domid: its number. domain: the
    hypervisor's view, with all counters; it outlives the domain itself. tally: what a native one has done itself.
    native: the process that executes a native one.
    """

    domid: int
    domain: Domain
    tally: Tally | None = None
    native: "NativeVcpu | None" = None

    def __init__(
        self,
        machine: "RunningMachine",
        config: DomainConfig,
        execute: Callable[["RunningGuest"], None],
    ) -> None:
        self.name = config.name
        self.program = config.program
        self._machine = machine
        self._config = config
        self._execute = execute
        self._scope = anyio.CancelScope()
        self._begun = anyio.Event()
        self._over = anyio.Event()
        self._ending = False
        self._end: GuestEnd | None = None
        self._failure: Exception | None = None

    # For whoever has started it

    @property
    def end(self) -> GuestEnd | None:
        """How it has ended, if it has."""
        return self._end

    @property
    def runs(self) -> bool:
        """Whether it was built and has not ended."""
        return self._begun.is_set() and not self._ending and not self._over.is_set()

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that it opens for the disks that it serves."""
        return self._config.files

    @property
    def console(self) -> str:
        """What it has printed on its console so far, as far as the log keeps it."""
        return self._machine.services.consoles.output(self.domid)

    @asynccontextmanager
    async def terminal(self) -> AsyncIterator[Terminal]:
        """Its console, to look at and to type: begins with the last few KiB of what was printed before.

        Raises NoConsole if it has ended before the console daemon could look at it.
        """
        consoles = self._machine.services.consoles
        with suppress(NoConsole):  # it may have ended
            await consoles.add(self.domid)
        async with consoles.console(self.domid).attach() as terminal:
            yield terminal

    async def printed(self, pattern: str) -> re.Match[str]:
        """Waits until its console shows `pattern`, a regular expression (`^` and `$` at every line).

        Looks at the last few KiB of what was printed before, and at all that is printed from now on. Raises
        NeverPrinted if it ends before.
        """
        text = ""
        with suppress(NoConsole):
            async with self.terminal() as terminal:
                async for data in terminal:
                    text += data.decode("utf-8", "replace")
                    if found := re.search(pattern, text, re.MULTILINE):
                        return found
                    text = text[-SEARCHED_CHARACTERS:]
        raise NeverPrinted(self.name, pattern, text[-SHOWN_CHARACTERS:])

    async def wait(self) -> GuestEnd:
        """How it ended, when it has, by whatever way; nothing is left of it then. Raises MachineStopped."""
        await self._over.wait()
        if self._failure is not None:
            raise self._failure
        if self._end is None:
            raise self._machine.stopped()
        return self._end

    async def shut_down(self, patience_s: float = SHUTDOWN_PATIENCE_S) -> GuestEnd:
        """Asks it to shut down, and destroys it if it has not done so in time."""
        with anyio.move_on_after(patience_s):
            with suppress(NoSuchGuest):  # it has ended meanwhile
                await self._machine.services.toolstack.request_shutdown(self.domid)
            return await self.wait()
        return await self.destroy()

    async def destroy(self) -> GuestEnd:
        """Ends it whatever it does."""
        if not self._over.is_set():
            await self._machine.services.toolstack.destroy(self.domid)
        return await self.wait()

    async def attach(self, disk: "DiskSpec") -> None:
        """Gives it one more disk. Raises DeviceExists, NoSuchGuest, StoreError."""
        await self._machine.services.toolstack.attach_disk(self.domid, self._machine.disk_config(disk))

    async def detach(self, vdev: str) -> bool:
        """Takes a disk away; False if its driver did not let go of it in time. Raises NoSuchDisk."""
        return await self._machine.services.toolstack.detach_disk(self.domid, vdev)

    def set_share(self, *, weight: int | None = None, cap: int | None = None) -> None:
        """Changes a native guest's share of the processors, as in `RunningMachine.boot`; what is None stays. Raises
        NoSuchGuest, pydantic.ValidationError.
        """
        self._machine.services.toolstack.set_share(
            self.domid,
            weight=None if weight is None else checked_weight(weight),
            cap=None if cap is None else checked_cap(cap),
        )

    # For the machine

    async def begin(self) -> None:
        """Returns when it runs. Raises what kept it from that."""
        try:
            await self._begun.wait()
        except BaseException:
            self._scope.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        if self._over.is_set() and self._end is None:
            raise self._machine.stopped()

    async def clear_away(self) -> None:
        """Ends it, built or not, and returns when nothing of it is left."""
        if not self._begun.is_set():
            self._scope.cancel()
        elif not self._over.is_set():
            await self._machine.services.toolstack.destroy(self.domid)
        await self._over.wait()

    async def live(self) -> None:
        """Its whole life, in a task of dom0's: whether anybody waits for it or not, it is cleared away."""
        try:
            with self._scope:
                await self._live()
        except Exception as error:
            self._failure = error
        finally:
            self._over.set()
            self._begun.set()

    async def _live(self) -> None:
        toolstack = self._machine.services.toolstack
        self.domid = await toolstack.create(self._config)
        try:
            self.domain = self._machine.core.domain(self.domid)
            self._execute(self)
            memory = ByteSize(self._config.memory_bytes).human_readable()
            self._machine.log(f"{self.name} starts as domain {self.domid}: {self.program}, {memory}")
            toolstack.start(self.domid)
            self._begun.set()
            outcome = await toolstack.wait_end(self.domid)
            self._ending = True
            end = await self._look_back(outcome)
        finally:
            self._ending = True
            with anyio.move_on_after(DESTROY_PATIENCE_S, shield=True):
                await toolstack.destroy(self.domid)
            self._machine.forget(self.domid)
            if self.tally is not None:
                self.tally = self.tally.copy()  # without the memory that its process wrote to
        self._end = self._with_devices(end)
        exit_code = f", exit code {end.exit_code}" if self._config.pv is None else ""
        self._machine.log(f"{self.name} has ended: {end.outcome}{exit_code}")

    def _with_devices(self, end: GuestEnd) -> GuestEnd:
        """`end`, with what was said of devices when they were taken away."""
        devices = self._machine.services.toolstack.devices
        served = devices.served_by(self.domid)
        for record in served:
            if record.lost:
                self._machine.device_lost(record, self.name)
        return replace(end, disks=tuple(devices.of_driver_domains(self.domid)), served=tuple(served))

    async def _look_back(self, outcome: str) -> GuestEnd:
        """What the domain has left in XenStore and on the hypervisor's console."""
        toolstack = self._machine.services.toolstack
        words = self._machine.words_of(self.domid)
        return GuestEnd(
            outcome,
            exit_code=await toolstack.exit_code(self.domid),
            crash=words.text if outcome == "crash" else "",
            leaks=tuple(words.leaks),
            drivers=await toolstack.driver_reports(self.domid),
        )
