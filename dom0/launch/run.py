"""Runs a scenario from the machine's start to its report."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
from rich.console import Console

from backends.errors import StoreError
from backends.files import files_of, make_files
from dom0.debug.server import answering
from dom0.embedding import GuestEnd, MachineStopped, RunningGuest, RunningMachine, running_machine
from dom0.launch.collect import collect_domain, live_row, row_of
from dom0.launch.echo import echo_console
from dom0.launch.interrupts import heed_interrupts
from dom0.launch.snapshot import DomainStatus, Snapshot
from dom0.launch.status import watcher_for
from dom0.report.model import DomainReport, ExpectationResult, RunReport
from dom0.scenario.expectations import check_guest, check_image
from dom0.scenario.model import GuestSpec, Isolation, Scenario
from dom0.services import Services
from kernel.errors import KernelError
from kernel.parking import Broadcast

LISTEN_S = 1.0
"""How often driver domains are asked what they have counted, for the live table."""

LAST_WORDS_S = 1.0
"""How long what guests printed last may take to be shown when all have ended."""


def launch_scenario(scenario: Scenario, folder: Path, console: Console) -> RunReport:
    """Runs `scenario`; relative paths in it start at `folder`. Prints what happens to `console`.

    Raises:
        OSError: the scenario's output folder cannot be made.
    """
    run = ScenarioRun(scenario, folder, console)
    return anyio.run(run.execute, backend=scenario.loop.value)


class ScenarioRun:
    """One run. `execute` may be awaited once."""

    def __init__(self, scenario: Scenario, folder: Path, console: Console) -> None:
        self._scenario = scenario
        self._folder = folder.absolute()
        self._output = folder / scenario.output
        self._over: set[str] = set()
        self._some_ended = Broadcast()
        self._started: dict[str, RunningGuest] = {}
        self._reports: dict[str, DomainReport] = {}
        self._results: dict[str, list[ExpectationResult]] = {}
        self._images: list[ExpectationResult] = []
        self._problems: list[str] = []
        self._machine: RunningMachine | None = None
        self._stopping = False
        self._view = watcher_for(console, self._snapshot)
        self._start = time.monotonic()

    async def execute(self) -> RunReport:
        """Runs everything and returns the report; never raises for what a guest did."""
        sizes = self._scenario.machine
        running = running_machine(
            self._output,
            memory=int(sizes.memory),
            dom0_memory=int(sizes.dom0_memory),
            pcpus=sizes.pcpus,
            log=self._say,
        )
        with self._view:
            try:
                async with running as machine, answering(machine):
                    self._machine = machine
                    self._say(f"dom0 is up: XenStore, consoles and block backends on {self._scenario.loop}")
                    await self._run_beside_watchers(machine)
            except MachineStopped as stop:
                self._problems.append(str(stop))
        return self._report()

    async def _run_beside_watchers(self, machine: RunningMachine) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._draw)
            tasks.start_soon(self._keep_time)
            tasks.start_soon(heed_interrupts, self._shut_down, self._destroy)
            await self._run_guests(machine)
            tasks.cancel_scope.cancel()

    async def _run_guests(self, machine: RunningMachine) -> None:
        """Starts guests in the file's order, each as soon as those that it waits for have ended."""
        waiting = list(self._scenario.guests)
        async with anyio.create_task_group() as echoes:
            async with anyio.create_task_group() as tasks:
                while waiting:
                    ready = [spec for spec in waiting if self._may_start(spec)]
                    for spec in ready:
                        waiting.remove(spec)
                        guest = await self._start_guest(machine, spec)
                        if guest is not None:
                            echoes.start_soon(echo_console, guest, self._say)
                            tasks.start_soon(self._see_out, machine, spec, guest)
                            tasks.start_soon(self._dismiss, spec, guest)
                    if not ready:
                        await self._some_ended.wait()
            echoes.cancel_scope.deadline = anyio.current_time() + LAST_WORDS_S
        if not self._stopping:
            self._images = [check_image(image, self._output) for image in self._scenario.images]

    async def _start_guest(self, machine: RunningMachine, spec: GuestSpec) -> RunningGuest | None:
        """None if it cannot be started, or shall not any more."""
        if not self._stopping:
            try:
                guest = await self._run(machine, spec)
            except (KernelError, MachineStopped, StoreError) as error:
                self._fail(spec, error)
            else:
                self._started[spec.name] = guest
                return guest
        self._over.add(spec.name)
        self._some_ended.announce()
        return None

    async def _run(self, machine: RunningMachine, spec: GuestSpec) -> RunningGuest:
        if spec.kernel is not None:
            return await machine.boot(
                self._folder / spec.kernel,
                ramdisk=self._folder / spec.ramdisk if spec.ramdisk else None,
                cmdline=spec.cmdline,
                vcpus=spec.vcpus,
                name=spec.name,
                memory=int(spec.memory),
                disks=spec.disks,
                weight=spec.weight,
                cap=spec.cap,
            )
        return await machine.start(
            spec.program,
            spec.args,
            name=spec.name,
            memory=int(spec.memory),
            disks=spec.disks,
            files=self._files_served_by(machine, spec),
            isolation=spec.isolation,
        )

    def _may_start(self, spec: GuestSpec) -> bool:
        """Whether those before it have ended, and those that serve its disks have been started."""
        begun = self._over.union(self._started)
        return self._over.issuperset(spec.start_after) and begun.issuperset(spec.driver_domains)

    def _files_served_by(self, machine: RunningMachine, spec: GuestSpec) -> list[Path]:
        """The files that a guest opens as the driver domain of others. In a process of its own it makes none.
        Raises StoreError.
        """
        settings = [
            machine.settings_of(disk)
            for other in self._scenario.guests
            for disk in other.disks
            if disk.backend_domain == spec.name
        ]
        if spec.isolation is Isolation.PROCESS:
            for each in settings:
                make_files(each)
        return [file for each in settings for file in files_of(each)]

    async def _dismiss(self, spec: GuestSpec, guest: RunningGuest) -> None:
        """Asks a driver domain to shut down when all that it serves have ended."""
        clients = {other.name for other in self._scenario.guests if spec.name in other.driver_domains}
        while not self._over.issuperset(clients):
            await self._some_ended.wait()
        if clients:
            await self._end(guest, guest.shut_down)

    async def _see_out(self, machine: RunningMachine, spec: GuestSpec, guest: RunningGuest) -> None:
        """One guest from its start to its report."""
        try:
            if self._stopping:  # it was being built when somebody asked for the end
                await guest.destroy()
            end = await guest.wait()
            names = self._names()
            report = collect_domain(
                spec.name,
                guest.program,
                guest.domain,
                machine.services,
                end,
                names=names,
                tally=guest.tally,
            )
            self._reports[spec.name] = report
            self._results[spec.name] = list(check_guest(spec, report, guest.console))
        except (KernelError, MachineStopped) as error:
            self._fail(spec, error)
        finally:
            self._over.add(spec.name)
            self._some_ended.announce()

    def _names(self) -> dict[int, str]:
        """Of all guests that were started, by their numbers."""
        return {guest.domid: name for name, guest in self._started.items()}

    def _fail(self, spec: GuestSpec, error: Exception) -> None:
        self._problems.append(f"{spec.name}: {error}")
        self._say(self._problems[-1])

    # Stopping

    async def _keep_time(self) -> None:
        limit = self._scenario.timeout
        if limit is not None:
            await anyio.sleep(limit)
            self._stop(f"the scenario was stopped after its {limit:g} s")
            await self._destroy()

    def _stop(self, problem: str) -> None:
        """No guest is started from now on."""
        self._stopping = True
        self._problems.append(problem)
        self._say(problem)

    async def _shut_down(self) -> None:
        """Asks the guests to end, one after the other, the youngest first."""
        self._stop("the scenario was interrupted; its guests are asked to shut down (again: destroyed)")
        for guest in reversed(list(self._started.values())):
            await self._end(guest, guest.shut_down)

    async def _destroy(self) -> None:
        """Ends the guests whatever they do, all at once."""
        self._say("destroying what still runs")
        async with anyio.create_task_group() as tasks:
            for guest in self._started.values():
                tasks.start_soon(self._end, guest, guest.destroy)

    async def _end(self, guest: RunningGuest, how: Callable[[], Awaitable[GuestEnd]]) -> None:
        if guest.end is None:
            with suppress(KernelError, MachineStopped):  # which its own task reports
                await how()

    # Showing

    def _say(self, line: str) -> None:
        self._view.event(f"{time.monotonic() - self._start:7.3f}  {line}")

    async def _draw(self) -> None:
        heard = -LISTEN_S
        while True:
            if self._machine is not None and time.monotonic() - heard >= LISTEN_S:
                heard = time.monotonic()
                with suppress(KernelError):  # a store in trouble is told elsewhere
                    await self._machine.services.toolstack.devices.hear_all()
            self._view.update()
            await anyio.sleep(self._view.interval_s)

    def _snapshot(self, limit: int) -> Snapshot:
        """Rows of dom0 and of the guests that there is room for, those that run before those that do not."""
        machine = self._machine
        if machine is None:
            return Snapshot([])
        guests = sorted(self._started.items(), key=lambda item: item[0] not in self._reports)
        hidden = max(len(guests) + 1 - limit, 0)
        shown = sorted(guests[hidden:], key=lambda item: item[1].domid)
        services = machine.services
        rows = [live_row("Domain-0", "services", machine.dom0, services)]
        rows += [self._row(name, guest, services) for name, guest in shown]
        return Snapshot(rows, hidden)

    def _row(self, name: str, guest: RunningGuest, services: Services) -> DomainStatus:
        report = self._reports.get(name)
        if report is None:
            return live_row(name, guest.program, guest.domain, services, guest.tally)
        return row_of(report, services.consoles.last_line(guest.domid))

    # Reporting

    def _report(self) -> RunReport:
        """The guests in the scenario's order, dom0 first."""
        scenario, machine = self._scenario, self._machine
        names = [guest.name for guest in scenario.guests]
        domains: list[DomainReport] = []
        faults: list[str] = []
        if machine is not None:
            domains.append(collect_domain("Domain-0", "services", machine.dom0, machine.services))
            faults = [f"domain {f.domid}: {f.hypercall}\n{f.traceback}" for f in machine.core.faults]
        domains += [self._reports[name] for name in names if name in self._reports]
        results = [result for name in names for result in self._results.get(name, [])] + self._images
        self._problems += [f"{name} did not run to its end" for name in names if name not in self._reports]
        return RunReport(
            scenario=scenario.name,
            loop=scenario.loop.value,
            seconds=round(time.monotonic() - self._start, 3),
            ok=all(result.held for result in results) and not self._problems and not faults,
            domains=domains,
            expectations=results,
            problems=self._problems,
            faults=faults,
        )
