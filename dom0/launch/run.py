"""Runs a scenario from the machine's start to its report. The runner is dom0's program."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
from rich.console import Console

from backends.registry import load_backend
from dom0.launch.collect import Ended, collect_domain, snapshot_domain
from dom0.launch.machine import build_machine
from dom0.launch.status import DomainStatus, LiveTable, PlainLines
from dom0.programs import load_program
from dom0.report.model import DomainReport, ExpectationResult, RunReport
from dom0.scenario.expectations import check_guest, check_image
from dom0.scenario.model import DiskSpec, GuestSpec, Scenario
from dom0.services import Services, start_services
from dom0.toolstack.layout import domain_path
from dom0.toolstack.toolstack import DiskConfig, DomainConfig
from hypervisor.domain import Domain
from hypervisor.vcpu.coroutine_host import CoroutineHost
from kernel.errors import KernelError
from kernel.kernel import LEAK_PREFIX, Kernel
from kernel.program import REPORT_FOLDER, run_program
from kernel.xenstore.errors import StoreError

SHUTDOWN_PATIENCE_S = 5.0
"""How long a guest may take to shut down when it is asked to, before it is destroyed."""


def launch_scenario(scenario: Scenario, folder: Path, console: Console) -> RunReport:
    """Runs `scenario`; relative paths in it start at `folder`. Prints what happens to `console`."""
    run = ScenarioRun(scenario, folder, console)
    return anyio.run(run.execute, backend=scenario.loop.value)


class ScenarioRun:
    """One run. `execute` may be awaited once."""

    def __init__(self, scenario: Scenario, folder: Path, console: Console) -> None:
        self._scenario = scenario
        self._output = folder / scenario.output
        self._guests: dict[int, tuple[GuestSpec, Domain]] = {}
        self._ended = {guest.name: anyio.Event() for guest in scenario.guests}
        self._reports: dict[str, DomainReport] = {}
        self._results: list[ExpectationResult] = []
        self._problems: list[str] = []
        self._leaks: dict[int, list[str]] = {}
        self._dom0_report: DomainReport | None = None
        self._services: Services | None = None
        self._stopping = False
        view = LiveTable(console, self._snapshot) if console.is_terminal else PlainLines(console)
        self._view: LiveTable | PlainLines = view
        self._start = time.monotonic()

    async def execute(self) -> RunReport:
        """Runs everything and returns the report; never raises for what a guest did."""
        scenario = self._scenario
        self._output.mkdir(parents=True, exist_ok=True)
        self._host = CoroutineHost(self._emergency_output)
        self._machine, dom0 = build_machine(
            self._host, int(scenario.machine.memory), int(scenario.machine.dom0_memory)
        )
        self._dom0 = dom0
        with self._view:
            async with self._host.running(self._machine):
                execution = self._host.start(
                    dom0, lambda platform: run_program(platform, self._service_domain)
                )
                dom0.unpause()
                await execution.finished.wait()
        if execution.failure is not None:
            self._problems.append(f"dom0 crashed:\n{execution.failure}")
        return self._report()

    # What dom0 does

    async def _service_domain(self, kernel: Kernel) -> int:
        """dom0's program: services first, then the guests, watched all the while."""
        services = self._services = await start_services(
            kernel, console_folder=self._output, now=time.time, log=lambda line: self._say(f"dom0: {line}")
        )
        self._say(f"dom0 is up: XenStore, consoles and block backends run on {self._scenario.loop.value}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._draw)
            tasks.start_soon(self._heed_signals, services)
            with anyio.move_on_after(self._scenario.timeout) as deadline:
                await self._run_guests(services)
            if deadline.cancelled_caught:
                self._problems.append(f"the scenario was stopped after its {self._scenario.timeout:g} s")
                await self._destroy_all(services)
            tasks.cancel_scope.cancel()
        self._dom0_report = collect_domain("Domain-0", "services", self._dom0, Ended("running"))
        return 0

    async def _run_guests(self, services: Services) -> None:
        async with anyio.create_task_group() as tasks:
            for guest in self._scenario.guests:
                tasks.start_soon(self._run_guest, services, guest)
        self._results += [check_image(image, self._output) for image in self._scenario.images]

    async def _run_guest(self, services: Services, guest: GuestSpec) -> None:
        for name in guest.start_after:
            await self._ended[name].wait()
        try:
            if not self._stopping:
                await self._live(services, guest)
        finally:
            self._ended[guest.name].set()

    async def _live(self, services: Services, guest: GuestSpec) -> None:
        """One guest from its creation to its report."""
        toolstack = services.toolstack
        try:
            domid = await toolstack.create(self._domain_config(guest))
        except KernelError as error:
            self._problems.append(f"{guest.name}: {error}")
            self._say(f"{guest.name}: {error}")
            return
        domain = self._machine.domain(domid)
        self._guests[domid] = guest, domain
        program = load_program(guest.program).bind(guest.args)
        self._host.start(domain, lambda platform: run_program(platform, program))
        toolstack.start(domid)
        self._say(f"{guest.name} starts as domain {domid}: {guest.program}, {guest.memory.human_readable()}")
        outcome = await toolstack.wait_end(domid)
        ended = Ended(
            outcome,
            exit_code=await toolstack.exit_code(domid),
            crash=next((crash.traceback for crash in self._host.crashes if crash.domid == domid), ""),
            leaks=self._leaks.get(domid, ()),
            frontends=await self._frontend_reports(services, domid),
        )
        report = collect_domain(guest.name, guest.program, domain, ended, services.blocks)
        await toolstack.destroy(domid)
        console = services.consoles.output(domid)
        self._reports[guest.name] = report
        self._results += check_guest(guest, report, console)
        self._say(f"{guest.name} has ended: {outcome}, exit code {report.exit_code}")

    def _domain_config(self, guest: GuestSpec) -> DomainConfig:
        return DomainConfig(
            name=guest.name,
            memory_bytes=int(guest.memory),
            program=guest.program,
            arguments=guest.args,
            disks=tuple(self._disk_config(disk) for disk in guest.disks),
        )

    def _disk_config(self, disk: DiskSpec) -> DiskConfig:
        model = load_backend(disk.backend).Config
        config = model.model_validate(disk.config, context={"folder": self._output.absolute()})
        return DiskConfig(disk.vdev, disk.backend, config, disk.mode)

    async def _frontend_reports(self, services: Services, domid: int) -> dict[str, str]:
        """What the guest's drivers have counted, as its kernel left it in XenStore, by device."""
        folder = f"{domain_path(domid)}/{REPORT_FOLDER}"
        store = services.kernel.store
        try:
            names = await store.directory(folder)
        except StoreError:
            return {}
        values = await store.read_many([f"{folder}/{name}" for name in names])
        return {name: value for name, value in zip(names, values) if value is not None}

    # Stopping

    async def _heed_signals(self, services: Services) -> None:
        """The first interrupt asks the guests to shut down, the youngest first; the second ends them."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                async for _ in signals:
                    if self._stopping:
                        self._say("destroying what still runs")
                        tasks.cancel_scope.cancel()
                        break
                    self._stopping = True
                    self._problems.append("the scenario was interrupted")
                    self._say("shutting the guests down (interrupt again to destroy them)")
                    tasks.start_soon(self._shut_down_in_order, services)
        await self._destroy_all(services)

    async def _shut_down_in_order(self, services: Services) -> None:
        for domid, (guest, _) in reversed(list(self._guests.items())):
            if guest.name in self._reports:
                continue
            with anyio.move_on_after(SHUTDOWN_PATIENCE_S) as patience:
                await services.toolstack.request_shutdown(domid)
                await self._ended[guest.name].wait()
            if patience.cancelled_caught:
                self._say(f"{guest.name} did not shut down in {SHUTDOWN_PATIENCE_S:g} s and is destroyed")
                await services.toolstack.destroy(domid)

    async def _destroy_all(self, services: Services) -> None:
        self._stopping = True
        for domid, (guest, _) in reversed(list(self._guests.items())):
            if guest.name not in self._reports:
                await services.toolstack.destroy(domid)

    # Showing

    def _say(self, line: str) -> None:
        self._view.event(f"{time.monotonic() - self._start:7.3f}  {line}")

    def _emergency_output(self, domain: Domain, data: bytes) -> None:
        """What domains write to the hypervisor's own console: reports of crashes and leaks."""
        for line in data.decode("utf-8", "replace").rstrip("\n").split("\n"):
            self._say(f"(XEN) d{domain.domid}: {line}")
            if line.startswith(LEAK_PREFIX):
                self._leaks.setdefault(domain.domid, []).append(line.removeprefix(LEAK_PREFIX))

    async def _draw(self) -> None:
        while True:
            self._view.update()
            await anyio.sleep(self._view.interval_s)

    def _snapshot(self) -> Sequence[DomainStatus]:
        services = self._services
        if services is None:
            return []
        rows = [snapshot_domain("Domain-0", "services", self._dom0)]
        for domid, (guest, domain) in self._guests.items():
            report = self._reports.get(guest.name)
            line = services.consoles.last_line(domid)
            rows.append(
                snapshot_domain(
                    guest.name, guest.program, domain, line, report=report, blocks=services.blocks
                )
            )
        return rows

    # Reporting

    def _report(self) -> RunReport:
        """The guests in the scenario's order, dom0 first."""
        domains = [self._dom0_report] if self._dom0_report is not None else []
        domains += [
            self._reports[guest.name] for guest in self._scenario.guests if guest.name in self._reports
        ]
        missing = [guest.name for guest in self._scenario.guests if guest.name not in self._reports]
        self._problems += [f"{name} did not run to its end" for name in missing]
        held = all(result.held for result in self._results)
        return RunReport(
            scenario=self._scenario.name,
            loop=self._scenario.loop.value,
            seconds=round(time.monotonic() - self._start, 3),
            ok=held and not self._problems and not self._machine.faults,
            domains=domains,
            expectations=self._results,
            problems=self._problems,
            faults=[
                f"domain {fault.domid}: {fault.hypercall}\n{fault.traceback}"
                for fault in self._machine.faults
            ],
        )
