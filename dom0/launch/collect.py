"""Gathers what the parts have counted into the report's models and the live table's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from backends.block.backend import BlockBackend, ServedDisk
from dom0.launch.status import DomainStatus
from dom0.report.model import (
    DeviceReport,
    DomainReport,
    GrantReport,
    LatencyReport,
    MulticallReport,
    RingReport,
)
from frontends.block.report import FrontendReport
from hypervisor.domain import Domain


@dataclass(frozen=True, slots=True)
class Ended:
    """How a domain ended.

    outcome: a shutdown reason by name. exit_code: what its program returned. crash: the traceback, if it
    raised. leaks: grants that it had not ended. frontends: what its drivers left in XenStore, by device.
    """

    outcome: str
    exit_code: int | None = None
    crash: str = ""
    leaks: Sequence[str] = ()
    frontends: Mapping[str, str] = field(default_factory=dict)


def collect_domain(
    name: str,
    program: str,
    domain: Domain,
    ended: Ended,
    blocks: BlockBackend | None = None,
) -> DomainReport:
    """A domain's part of the report, while the domain still exists."""
    counters = domain.counters
    disks = blocks.disks_of(domain.domid) if blocks is not None else []
    return DomainReport(
        name=name,
        domid=domain.domid,
        program=program,
        outcome=ended.outcome,
        exit_code=ended.exit_code,
        crash=ended.crash,
        hypercalls=dict(sorted(counters.hypercalls.items(), key=lambda item: -item[1])),
        multicall=MulticallReport(batches=counters.multicall_batches, entries=counters.multicall_entries),
        upcalls=counters.upcalls,
        events_sent=counters.events_sent,
        grants=GrantReport(
            mapped=counters.grant_maps,
            unmapped=counters.grant_unmaps,
            copied=counters.grant_copies,
            bytes_copied=counters.bytes_copied,
            leaked=len(ended.leaks),
            leaks=list(ended.leaks),
        ),
        devices=[_device(disk, ended.frontends) for disk in disks],
    )


def _device(disk: ServedDisk, frontends: Mapping[str, str]) -> DeviceReport:
    """Both ends of a disk: what the backend saw, and what the guest's kernel said of its own end."""
    stats, ring = disk.stats, disk.ring_stats
    report = DeviceReport(
        name=disk.vdev,
        kind="vbd",
        backend=disk.backend,
        requests=dict(stats.requests),
        errors=sum(stats.errors.values()),
        bytes_read=stats.bytes_read,
        bytes_written=stats.bytes_written,
        backend_ring=RingReport(
            size=ring.size,
            high_water=ring.high_water,
            notifications_sent=ring.notifications_sent,
            notifications_suppressed=ring.notifications_suppressed,
        ),
    )
    said = _parsed(frontends.get(f"vbd-{disk.devid}"))
    if said is not None:
        report.frontend = RingReport(
            size=said.ring_size,
            high_water=said.high_water,
            notifications_sent=said.notifications_sent,
            notifications_suppressed=said.notifications_suppressed,
        )
        report.latency = LatencyReport(
            samples=said.samples, p50_us=said.p50_us, p99_us=said.p99_us, max_us=said.max_us
        )
    return report


def _parsed(text: str | None) -> FrontendReport | None:
    """A guest wrote this: what is no report counts as none."""
    if text is None:
        return None
    try:
        return FrontendReport.model_validate_json(text)
    except ValidationError:
        return None


def snapshot_domain(
    name: str,
    program: str,
    domain: Domain,
    last_line: str = "",
    *,
    report: DomainReport | None = None,
    blocks: BlockBackend | None = None,
) -> DomainStatus:
    """A row of the live table; `report` if the domain has ended."""
    if report is not None:
        return DomainStatus(
            domid=report.domid,
            name=name,
            state=report.outcome,
            program=program,
            hypercalls=report.hypercalls_total,
            upcalls=report.upcalls,
            requests=sum(sum(device.requests.values()) for device in report.devices),
            bytes_moved=sum(device.bytes_read + device.bytes_written for device in report.devices),
            last_line=last_line,
        )
    served = [disk.stats for disk in blocks.disks_of(domain.domid)] if blocks is not None else []
    return DomainStatus(
        domid=domain.domid,
        name=name,
        state=domain.status.value,
        program=program,
        hypercalls=sum(domain.counters.hypercalls.values()),
        upcalls=domain.counters.upcalls,
        requests=sum(sum(stats.requests.values()) for stats in served),
        bytes_moved=sum(stats.bytes_read + stats.bytes_written for stats in served),
        last_line=last_line,
    )
