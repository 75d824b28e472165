"""The closing report for a terminal: what each domain and each device did, and what was expected of them."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dom0.report.model import DeviceReport, DomainReport, RunReport


def print_report(report: RunReport, console: Console) -> None:
    """Prints the whole report; every table fits 100 columns."""
    console.print(Group(*_parts(report)))


def _parts(report: RunReport) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(), _domains(report.domains), Text(), _hypercalls(report.domains)]
    if any(domain.devices for domain in report.domains):
        parts += [Text(), _devices(report.domains)]
    parts += [Text(f"\n{line}", style="red") for domain in report.domains for line in _trouble(domain)]
    parts += [Text(f"\nproblem: {problem}", style="red") for problem in report.problems]
    parts += [Text(f"\nfault contained: {fault}", style="red") for fault in report.faults]
    if report.expectations:
        parts += [Text(), _expectations(report)]
    verdict = "every guest ended well" if report.ok else "the run FAILED"
    style = "bold green" if report.ok else "bold red"
    parts.append(
        Text(f"\n{report.scenario}: {verdict} after {report.seconds:.2f} s on {report.loop}", style=style)
    )
    return parts


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    return table


def _domains(domains: list[DomainReport]) -> Table:
    columns = (
        "domain",
        "program",
        "ended",
        "exit",
        "hypercalls",
        "batches",
        "mean",
        "upcalls",
        "mapped",
        "copied",
        "leaked",
    )
    table = _table("Domains", *columns, left=3)
    for domain in domains:
        table.add_row(
            f"{domain.domid} {domain.name}",
            domain.program,
            domain.outcome,
            "" if domain.exit_code is None else str(domain.exit_code),
            str(domain.hypercalls_total),
            str(domain.multicall.batches),
            str(domain.multicall.mean_length),
            str(domain.upcalls),
            str(domain.grants.mapped),
            str(domain.grants.copied),
            Text(str(domain.grants.leaked), style="red" if domain.grants.leaked else ""),
        )
    return table


def _hypercalls(domains: list[DomainReport]) -> Table:
    table = _table("Hypercalls by kind", "domain", "calls", left=2)
    for domain in domains:
        kinds = sorted(domain.hypercalls.items(), key=lambda item: -item[1])
        table.add_row(f"{domain.domid} {domain.name}", ", ".join(f"{name} {count}" for name, count in kinds))
    table.columns[1].no_wrap = False
    return table


def _devices(domains: list[DomainReport]) -> Table:
    columns = (
        "device",
        "backend",
        "requests",
        "read",
        "written",
        "sent f/b",
        "suppressed f/b",
        "ring",
        "p50 µs",
        "p99 µs",
        "errors",
    )
    table = _table("Devices (f: frontend, b: backend)", *columns, left=2)
    for domain in domains:
        for device in domain.devices:
            table.add_row(*_device_row(domain, device))
    return table


def _device_row(domain: DomainReport, device: DeviceReport) -> tuple[str, ...]:
    front, back = device.frontend, device.backend_ring
    return (
        f"{domain.name} {device.name}",
        device.backend,
        str(sum(device.requests.values())),
        human_bytes(device.bytes_read),
        human_bytes(device.bytes_written),
        f"{front.notifications_sent}/{back.notifications_sent}",
        f"{front.notifications_suppressed}/{back.notifications_suppressed}",
        f"{front.high_water}/{front.size}",
        f"{device.latency.p50_us:.0f}",
        f"{device.latency.p99_us:.0f}",
        str(device.errors),
    )


def _trouble(domain: DomainReport) -> list[str]:
    lines = [f"{domain.name} crashed: {domain.crash}"] if domain.crash else []
    return lines + [f"{domain.name} leaked {leak}" for leak in domain.grants.leaks]


def _expectations(report: RunReport) -> Table:
    table = _table("Expectations", "", "what", "expected", "found", left=4)
    for result in report.expectations:
        mark = Text("held", style="green") if result.held else Text("FAILED", style="bold red")
        table.add_row(mark, result.subject, _clip(result.expected), _clip(result.found))
    return table


def _clip(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters other than the ends of lines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def human_bytes(count: int) -> str:
    """`3145728` → `3.0 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit always returns")
