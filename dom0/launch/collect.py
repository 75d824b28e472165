"""Gathers what the parts have counted into the report's models and the live table's rows."""

from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import ValidationError

from backends.block.backend import ServedDisk
from backends.block.report import BackendReport, QueueCounts
from backends.console.errors import NoConsole
from dom0.embedding import GuestEnd
from dom0.launch.snapshot import DomainStatus
from dom0.report.model import (
    DeviceReport,
    DomainReport,
    GrantReport,
    LatencyReport,
    MulticallReport,
    NativeReport,
    QueueReport,
    RingReport,
)
from dom0.report.native import hypercall_counts, native_report
from dom0.scenario.counters import served_name
from dom0.services import Services
from dom0.toolstack.devices import DeviceRecord
from frontends.block.report import FrontendReport
from hypervisor.counters import Counters
from hypervisor.domain import Domain
from hypervisor.pv.tally import Tally
from ringbuffers.protocols.blkif_keys import queue_directory

STILL_RUNNING = GuestEnd("running")
NO_NAMES: Final[Mapping[int, str]] = {}


def collect_domain(
    name: str,
    program: str,
    domain: Domain,
    services: Services,
    end: GuestEnd = STILL_RUNNING,
    *,
    names: Mapping[int, str] = NO_NAMES,
    tally: Tally | None = None,
) -> DomainReport:
    """A domain's part of the report, whether it still exists or has ended. names: of domains, by number. tally: of
    a native one.
    """
    counters = domain.counters
    hypercalls = counters.hypercalls if tally is None else hypercall_counts(tally)
    return DomainReport(
        name=name,
        domid=domain.domid,
        program=program,
        isolation="native" if tally else "process" if domain.isolated else "coroutine",
        outcome=end.outcome,
        exit_code=end.exit_code,
        crash=end.crash,
        hypercalls=dict(sorted(hypercalls.items(), key=lambda item: -item[1])),
        multicall=_multicall(counters if tally is None else tally),
        native=NativeReport() if tally is None else native_report(tally),
        upcalls=counters.upcalls,
        events_sent=counters.events_sent,
        grants=GrantReport(
            mapped=counters.grant_maps,
            unmapped=counters.grant_unmaps,
            copied=counters.grant_copies,
            bytes_copied=counters.bytes_copied,
            leaked=len(end.leaks),
            leaks=list(end.leaks),
        ),
        devices=[
            *(
                _device(disk, end.drivers.get(f"vbd-{disk.devid}"))
                for disk in services.blocks.disks_of(domain.domid)
            ),
            *(
                _device_of_driver_domain(record, end.drivers.get(f"vbd-{record.devid}"), names)
                for record in {record.devid: record for record in end.disks}.values()
            ),
        ],
        served=[_served(record, names) for record in end.served],
        console_log=_console_log(services, domain.domid),
    )


def _multicall(counted: Counters | Tally) -> MulticallReport:
    if isinstance(counted, Tally):
        return MulticallReport(batches=counted.multicalls, entries=counted.multicall_entries)
    return MulticallReport(batches=counted.multicall_batches, entries=counted.multicall_entries)


def _device(disk: ServedDisk, frontend: str | None) -> DeviceReport:
    """Both ends of a disk: what the backend saw, and what the guest's kernel said of its own end."""
    backend = BackendReport.of(disk.backend, disk.stats)
    queues = [QueueCounts.of_queue(queue) for queue in disk.stats.queues]
    whole = _backend_half(disk.vdev, backend, queues)
    return _with_frontend(whole, frontend).model_copy(update={"last_error": disk.stats.last_error})


def _device_of_driver_domain(
    record: DeviceRecord, frontend: str | None, names: Mapping[int, str]
) -> DeviceReport:
    """The same of a disk that a driver domain has served, as far as that has told what it counted."""
    half = _backend_half(record.name, *_counted(record))
    report = _with_frontend(half, frontend, alone=not record.statistics)
    served_by = names.get(record.backend_domid, f"domain {record.backend_domid}")
    return report.model_copy(update={"backend_domain": served_by, "lost": int(record.lost)})


def _served(record: DeviceRecord, names: Mapping[int, str]) -> DeviceReport:
    """What a driver domain has counted of a disk of somebody else's."""
    guest = names.get(record.domid, f"domain {record.domid}")
    half = _backend_half(served_name(guest, record.name), *_counted(record))
    return half.model_copy(update={"lost": int(record.lost)})


def _backend_half(name: str, backend: BackendReport, queues: Iterable[QueueCounts]) -> DeviceReport:
    return DeviceReport(
        name=name,
        kind="vbd",
        backend=backend.backend,
        requests=backend.requests,
        errors=backend.errors,
        last_error=backend.last_error,
        bytes_read=backend.bytes_read,
        bytes_written=backend.bytes_written,
        backend_ring=_ring(backend),
        queues=[
            QueueReport(
                name=queue_directory(index),
                requests=queue.requests,
                errors=queue.errors,
                bytes_read=queue.bytes_read,
                bytes_written=queue.bytes_written,
                ring=_ring(queue),
            )
            for index, queue in enumerate(queues)
        ],
    )


def _with_frontend(report: DeviceReport, text: str | None, *, alone: bool = False) -> DeviceReport:
    """A guest wrote `text`: what is no report, or makes no sense, counts as none. alone: the backend has said
    nothing, so that what was asked of it is what the guest has sent.
    """
    try:
        said = FrontendReport.model_validate_json(text or "{}")
        latency = LatencyReport(
            samples=said.samples, p50_us=said.p50_us, p99_us=said.p99_us, max_us=said.max_us
        )
        ours = {"frontend": _ring(said), "latency": latency}
        return report.model_copy(update=ours | ({"requests": said.requests} if alone else {}))
    except ValidationError:
        return report


def _counted(record: DeviceRecord) -> tuple[BackendReport, list[QueueCounts]]:
    """What a driver domain has written of a disk; as with a guest, what makes no sense counts as nothing."""
    said = record.statistics
    try:
        queues: list[QueueCounts] = []
        while (text := said.get(queue_directory(len(queues)))) is not None:
            queues.append(QueueCounts.model_validate_json(text))
        return BackendReport.model_validate_json(said.get("", "{}")), queues
    except ValidationError:
        return BackendReport(), []


def _ring(said: QueueCounts | FrontendReport) -> RingReport:
    return RingReport(
        size=said.ring_size,
        high_water=said.high_water,
        notifications_sent=said.notifications_sent,
        notifications_suppressed=said.notifications_suppressed,
    )


def _console_log(services: Services, domid: int) -> str:
    try:
        return str(services.consoles.console(domid).log.path)
    except NoConsole:
        return ""


def row_of(report: DomainReport, last_line: str) -> DomainStatus:
    """The live table's row of a domain that has ended."""
    return DomainStatus(
        domid=report.domid,
        name=report.name,
        state=report.outcome,
        program=report.program,
        hypercalls=report.hypercalls_total,
        upcalls=report.upcalls,
        requests=sum(device.requests_total for device in (*report.devices, *report.served)),
        bytes_moved=sum(
            device.bytes_read + device.bytes_written for device in (*report.devices, *report.served)
        ),
        last_line=last_line,
    )


def live_row(
    name: str, program: str, domain: Domain, services: Services, tally: Tally | None = None
) -> DomainStatus:
    """The live table's row of a domain as it is now. tally: of a native one."""
    devices = services.toolstack.devices
    served = [
        *(BackendReport.of(disk.backend, disk.stats) for disk in services.blocks.disks_of(domain.domid)),
        *(_counted(record)[0] for record in devices.of_driver_domains(domain.domid)),
        *(_counted(record)[0] for record in devices.served_by(domain.domid) if domain.domid),
    ]
    return DomainStatus(
        domid=domain.domid,
        name=name,
        state=domain.status.value,
        program=program,
        hypercalls=sum(domain.counters.hypercalls.values() if tally is None else tally.hypercalls),
        upcalls=domain.counters.upcalls,
        requests=sum(sum(stats.requests.values()) for stats in served),
        bytes_moved=sum(stats.bytes_read + stats.bytes_written for stats in served),
        last_line=services.consoles.last_line(domain.domid),
    )
