"""Boots one native kernel and stays with it to its end."""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio

from dom0.boot.attendance import Attendance
from dom0.boot.conversation import Conversation
from dom0.boot.status import Status, status_of
from dom0.boot.streams import Sink, Source, raw_mode
from dom0.debug.server import answering
from dom0.embedding import GuestEnd, MachineStopped, RunningGuest, RunningMachine, running_machine
from dom0.images.errors import BadImage, MissingDecompressor
from dom0.launch.collect import collect_domain
from dom0.report.model import DomainReport, ExpectationResult, RunReport
from dom0.scenario.model import MIB, DiskSpec, Loop
from dom0.toolstack.errors import BuildError, CommandLineTooLong, TooLittleMemory
from kernel.errors import KernelError

DOM0_MIB: Final = 64
SPARE_MIB: Final = 32
"""of the machine, beside its domains"""

LINES_KEPT: Final = 20
"""of what dom0 and the hypervisor said, for the case that a guest cannot even start"""

_WRONG_INPUT: Final = (BadImage, MissingDecompressor, CommandLineTooLong, TooLittleMemory)


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What to boot, and how. timeout: seconds."""

    kernel: Path
    ramdisk: Path | None = None
    cmdline: str = ""
    memory_mib: int = 256
    vcpus: int = 1
    disks: tuple[DiskSpec, ...] = ()
    timeout: float | None = None
    loop: Loop = Loop.ASYNCIO


@dataclass(frozen=True, slots=True)
class BootResult:
    """How it went. words: what a person should be told, a line each."""

    status: Status
    report: RunReport
    words: tuple[str, ...]


def boot_kernel(options: BootOptions, stdin: int, stdout: int) -> BootResult:
    """Boots a guest with its console on two descriptors, and returns when it has ended."""
    with raw_mode(stdin) as interactive:
        run = BootRun(options, Source(stdin), Sink(stdout), interactive=interactive)
        return anyio.run(run.execute, backend=options.loop.value)


class BootRun:
    """One run, whose `execute` may be awaited once. interactive: `source` is a terminal that hands on every key."""

    def __init__(self, options: BootOptions, source: Source, sink: Sink, *, interactive: bool) -> None:
        self._options = options
        self._source = source
        self._sink = sink
        self._interactive = interactive
        self._start = time.monotonic()
        self._heard: deque[str] = deque(maxlen=LINES_KEPT)
        self._words: list[str] = []
        self._problems: list[str] = []
        self._domains: list[DomainReport] = []
        self._faults: list[str] = []
        self._status = Status.FAILED
        self._outcome = "not started"

    async def execute(self) -> BootResult:
        """Never raises for what the guest did."""
        memory = (self._options.memory_mib + DOM0_MIB + SPARE_MIB) * MIB
        with TemporaryDirectory(prefix="domzero-") as folder:
            running = running_machine(
                Path(folder), memory=memory, dom0_memory=DOM0_MIB * MIB, log=self._heard.append
            )
            try:
                async with running as machine, answering(machine):
                    await self._boot(machine)
            except MachineStopped as stop:
                self._fail(stop)
        return BootResult(self._status, self._report(), (*self._words, *self._problems))

    async def _boot(self, machine: RunningMachine) -> None:
        options = self._options
        try:
            guest = await machine.boot(
                options.kernel,
                ramdisk=options.ramdisk,
                cmdline=options.cmdline,
                vcpus=options.vcpus,
                memory=options.memory_mib * MIB,
                disks=options.disks,
            )
            await self._attend(machine, guest)
        except BuildError as error:
            self._fail(error.cause if isinstance(error.cause, _WRONG_INPUT) else error)
            if isinstance(error.cause, _WRONG_INPUT):
                self._status = Status.BAD_IMAGE
        except (KernelError, OSError) as error:
            self._fail(error)
        faults = machine.core.faults
        self._faults = [f"domain {fault.domid}: {fault.hypercall}\n{fault.traceback}" for fault in faults]

    async def _attend(self, machine: RunningMachine, guest: RunningGuest) -> None:
        attendance = Attendance(guest, self._options.timeout)
        async with guest.terminal() as terminal:
            conversation = Conversation(terminal, self._source, self._sink, interactive=self._interactive)
            end = await attendance.see_out(conversation)
            if terminal.lost_bytes:
                self._words.append(
                    f"{terminal.lost_bytes} bytes of its console were printed too fast to be shown"
                )
        self._status = Status.TIMEOUT if attendance.timed_out else status_of(end.outcome)
        self._outcome = end.outcome
        self._words += _words_on(end, self._status, self._options)
        services = machine.services
        self._domains = [
            collect_domain("Domain-0", "services", machine.dom0, services),
            collect_domain(guest.name, guest.program, guest.domain, services, end, tally=guest.tally),
        ]
        for domain in self._domains:
            domain.console_log = ""  # in a folder that will be gone

    def _fail(self, error: Exception) -> None:
        self._status = Status.FAILED
        self._words += self._heard
        self._problems.append(str(error))

    def _report(self) -> RunReport:
        held = self._status is Status.POWEROFF
        return RunReport(
            scenario=self._options.kernel.name,
            loop=self._options.loop.value,
            seconds=round(time.monotonic() - self._start, 3),
            ok=held and not self._problems and not self._faults,
            domains=self._domains,
            expectations=[
                ExpectationResult(subject="shutdown", expected="poweroff", found=self._outcome, held=held)
            ],
            problems=self._problems,
            faults=self._faults,
        )


def _words_on(end: GuestEnd, status: Status, options: BootOptions) -> list[str]:
    """What is said of an end other than powering off."""
    if status is Status.POWEROFF:
        return []
    if status is Status.TIMEOUT:
        return [f"the guest was destroyed after {options.timeout:g} s"]
    if status is Status.REBOOT:
        return ["the guest asks to be started again"]
    return [f"the guest has ended: {end.outcome}", *end.crash.splitlines()]
