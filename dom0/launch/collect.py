"""Gathers what the parts have counted into the report's models and the live table's rows."""

from pydantic import ValidationError

from backends.block.backend import ServedDisk
from backends.block.stats import QueueStats
from backends.console.errors import NoConsole
from dom0.embedding import GuestEnd
from dom0.launch.status import DomainStatus
from dom0.report.model import (
    DeviceReport,
    DomainReport,
    GrantReport,
    LatencyReport,
    MulticallReport,
    QueueReport,
    RingReport,
)
from dom0.services import Services
from frontends.block.report import FrontendReport
from hypervisor.domain import Domain
from ringbuffers.protocols.blkif_keys import queue_directory

STILL_RUNNING = GuestEnd("running")


def collect_domain(
    name: str, program: str, domain: Domain, services: Services, end: GuestEnd = STILL_RUNNING
) -> DomainReport:
    """A domain's part of the report, whether it still exists or has ended."""
    counters = domain.counters
    return DomainReport(
        name=name,
        domid=domain.domid,
        program=program,
        outcome=end.outcome,
        exit_code=end.exit_code,
        crash=end.crash,
        hypercalls=dict(sorted(counters.hypercalls.items(), key=lambda item: -item[1])),
        multicall=MulticallReport(batches=counters.multicall_batches, entries=counters.multicall_entries),
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
            _device(disk, end.drivers.get(f"vbd-{disk.devid}"))
            for disk in services.blocks.disks_of(domain.domid)
        ],
        console_log=_console_log(services, domain.domid),
    )


def _device(disk: ServedDisk, frontend: str | None) -> DeviceReport:
    """Both ends of a disk: what the backend saw, and what the guest's kernel said of its own end."""
    stats = disk.stats
    ours, latency = _parsed(frontend)
    return DeviceReport(
        name=disk.vdev,
        kind="vbd",
        backend=disk.backend,
        requests=dict(stats.requests),
        errors=sum(stats.errors.values()),
        last_error=stats.last_error,
        bytes_read=stats.bytes_read,
        bytes_written=stats.bytes_written,
        backend_ring=RingReport(
            size=stats.ring_size,
            high_water=stats.high_water,
            notifications_sent=stats.notifications_sent,
            notifications_suppressed=stats.notifications_suppressed,
        ),
        queues=[_queue(index, queue) for index, queue in enumerate(stats.queues)],
        frontend=ours,
        latency=latency,
    )


def _queue(index: int, queue: QueueStats) -> QueueReport:
    requests, rings = queue
    return QueueReport(
        name=queue_directory(index),
        requests=dict(requests.requests),
        errors=sum(requests.errors.values()),
        bytes_read=requests.bytes_read,
        bytes_written=requests.bytes_written,
        ring=RingReport(
            size=rings.size,
            high_water=rings.high_water,
            notifications_sent=rings.notifications_sent,
            notifications_suppressed=rings.notifications_suppressed,
        ),
    )


def _parsed(text: str | None) -> tuple[RingReport, LatencyReport]:
    """A guest wrote this: what is no report, or makes no sense, counts as none."""
    try:
        said = FrontendReport.model_validate_json(text or "{}")
        return (
            RingReport(
                size=said.ring_size,
                high_water=said.high_water,
                notifications_sent=said.notifications_sent,
                notifications_suppressed=said.notifications_suppressed,
            ),
            LatencyReport(samples=said.samples, p50_us=said.p50_us, p99_us=said.p99_us, max_us=said.max_us),
        )
    except ValidationError:
        return RingReport(), LatencyReport()


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
        requests=sum(device.requests_total for device in report.devices),
        bytes_moved=sum(device.bytes_read + device.bytes_written for device in report.devices),
        last_line=last_line,
    )


def live_row(name: str, program: str, domain: Domain, services: Services) -> DomainStatus:
    """The live table's row of a domain as it is now."""
    served = [disk.stats for disk in services.blocks.disks_of(domain.domid)]
    return DomainStatus(
        domid=domain.domid,
        name=name,
        state=domain.status.value,
        program=program,
        hypercalls=sum(domain.counters.hypercalls.values()),
        upcalls=domain.counters.upcalls,
        requests=sum(sum(stats.requests.values()) for stats in served),
        bytes_moved=sum(stats.bytes_read + stats.bytes_written for stats in served),
        last_line=services.consoles.last_line(domain.domid),
    )
