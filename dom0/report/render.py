"""The closing report for a terminal: what each domain and each device did, and what was expected of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dom0.report.model import DeviceReport, DomainReport, ExpectationResult, LatencyReport, RunReport
from dom0.report.printable import printable

_CLIP = 40
_RED = "red"


@contextmanager
def whoever_listens() -> Iterator[None]:
    """Printing inside may fail: a run does not end because nobody reads what it prints, or the disk is full.

    SystemExit is what rich raises for a broken pipe, after it has made its console quiet.
    """
    with suppress(OSError, SystemExit):
        yield


def print_report(report: RunReport, console: Console) -> None:
    """Prints the whole report; on 80 columns, text is folded and no number is cut."""
    with whoever_listens():
        console.print(Group(*_parts(report)))


def _parts(report: RunReport) -> list[RenderableType]:
    devices = [(domain, device) for domain in report.domains for device in domain.devices]
    parts: list[RenderableType] = [Text(), _domains(report.domains), Text(), _hypercalls(report.domains)]
    served = [(domain, device) for domain in report.domains for device in domain.served]
    if devices:
        parts += [Text(), _devices(devices), Text(), _rings(devices)]
    if served:
        parts += [Text(), _served(served)]
    parts += [Text(f"\n{printable(line)}", style=_RED) for line in _troubles(report)]
    if report.expectations:
        parts += [Text(), _expectations(report.expectations)]
    verdict = "every guest ended well" if report.ok else "the run FAILED"
    style = "bold green" if report.ok else "bold red"
    parts.append(
        Text(f"\n{report.scenario}: {verdict} after {report.seconds:.2f} s on {report.loop}", style=style)
    )
    return parts


def _table(title: str, *columns: str, text: int, folded: str) -> Table:
    """An empty table whose first `text` columns are text and the others numbers; `folded` gives way."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        justify = "left" if index < text else "right"
        table.add_column(column, justify=justify, no_wrap=column != folded, overflow="fold")  # type: ignore[arg-type]
    return table


def _add(table: Table, *cells: object) -> None:
    """A row; whatever a guest or a file has put into it is shown as it is, and does no harm."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(printable(_shown(cell))) for cell in cells))


def _shown(cell: object) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    return "" if cell is None else str(cell)


def _alarming(count: int) -> Text:
    return Text(f"{count:,}", style=_RED if count else "")


def _domains(domains: Iterable[DomainReport]) -> Table:
    columns = ("domain", "program", "ended", "exit", "upcalls", "events", "mapped", "copied", "leaked")
    table = _table("Domains", *columns, text=3, folded="program")
    for domain in domains:
        grants = domain.grants
        name = f"{domain.domid} {domain.name}"
        counts = (domain.upcalls, domain.events_sent, grants.mapped, grants.copied)
        _add(table, name, domain.program, domain.outcome, domain.exit_code, *counts, _alarming(grants.leaked))
    return table


def _hypercalls(domains: Iterable[DomainReport]) -> Table:
    table = _table("Hypercalls", "domain", "kinds", "all", "batches", "mean", text=2, folded="kinds")
    for domain in domains:
        kinds = sorted(domain.hypercalls.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count:,}" for name, count in kinds)
        batches = domain.multicall
        _add(
            table,
            f"{domain.domid} {domain.name}",
            shown,
            domain.hypercalls_total,
            batches.batches,
            batches.mean_length,
        )
    return table


def _devices(devices: Iterable[tuple[DomainReport, DeviceReport]]) -> Table:
    columns = ("device", "backend", "requests", "read", "written", "p50 µs", "p99 µs", "errors")
    table = _table("Devices", *columns, text=2, folded="backend")
    for domain, device in devices:
        _add(
            table,
            f"{domain.name} {device.name}",
            f"{device.backend} in {device.backend_domain}" if device.backend_domain else device.backend,
            device.requests_total,
            human_bytes(device.bytes_read),
            human_bytes(device.bytes_written),
            *_percentiles(device.latency),
            _alarming(device.errors),
        )
    return table


def _percentiles(latency: LatencyReport) -> tuple[str, str]:
    """Nothing for a frontend that measures none: Linux's."""
    if not latency.samples:
        return "", ""
    return f"{latency.p50_us:,.0f}", f"{latency.p99_us:,.0f}"


def _served(devices: Iterable[tuple[DomainReport, DeviceReport]]) -> Table:
    columns = ("driver domain", "device", "backend", "requests", "read", "written", "errors")
    table = _table("Served by driver domains, as they say", *columns, text=3, folded="backend")
    for domain, device in devices:
        moved = human_bytes(device.bytes_read), human_bytes(device.bytes_written)
        requests, errors = device.requests_total, _alarming(device.errors)
        _add(table, domain.name, device.name, device.backend, requests, *moved, errors)
    return table


def _rings(devices: Iterable[tuple[DomainReport, DeviceReport]]) -> Table:
    columns = ("device", "slots", "most in use", "sent f/b", "suppressed f/b")
    table = _table("Rings and notifications (f: frontend, b: backend)", *columns, text=1, folded="")
    for domain, device in devices:
        front, back = device.frontend, device.backend_ring
        _add(
            table,
            f"{domain.name} {device.name}",
            back.size,
            max(front.high_water, back.high_water),
            f"{front.notifications_sent:,}/{back.notifications_sent:,}",
            f"{front.notifications_suppressed:,}/{back.notifications_suppressed:,}",
        )
        for queue in device.queues if len(device.queues) > 1 else ():
            ring = queue.ring
            sent, suppressed = ring.notifications_sent, ring.notifications_suppressed
            _add(table, f"  {queue.name}", ring.size, ring.high_water, f"-/{sent:,}", f"-/{suppressed:,}")
    return table


def _troubles(report: RunReport) -> Iterable[str]:
    for domain in report.domains:
        if domain.crash:
            yield f"{domain.name} crashed: {domain.crash}"
        yield from (f"{domain.name} leaked {leak}" for leak in domain.grants.leaks)
        for device in domain.devices:
            if device.lost:
                yield f"{domain.name} {device.name} was lost: {device.backend_domain}, which served it, ended before"
            if device.errors:
                yield f"{domain.name} {device.name}, the last error: {device.last_error}"
    yield from (f"problem: {problem}" for problem in report.problems)
    yield from (f"fault contained: {fault}" for fault in report.faults)


def _expectations(results: Iterable[ExpectationResult]) -> Table:
    table = _table("Expectations", "", "what", "expected", "found", text=4, folded="")
    for column in table.columns[1:]:
        column.no_wrap = False
    for result in results:
        mark = Text("held", style="green") if result.held else Text("FAILED", style="bold red")
        texts = result.expected, result.found
        _add(table, mark, result.subject, *(_clip(text) if result.held else text for text in texts))
    return table


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else text[: _CLIP - 1] + "…"


def human_bytes(count: int) -> str:
    """`3145728` → `3.0 MiB`."""
    size = float(count)
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            break
        if unit != "GiB":
            size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
