"""What is worth watching while a scenario runs, and the two ways to watch it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dom0.report.render import human_bytes

STATE_STYLES = {
    "running": "green",
    "blocked": "cyan",
    "shutdown": "dim",
    "destroyed": "dim",
    "crashed": "bold red",
}


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One row of the live table."""

    domid: int
    name: str
    state: str
    program: str = ""
    hypercalls: int = 0
    upcalls: int = 0
    requests: int = 0
    bytes_moved: int = 0
    last_line: str = ""


class Watcher(Protocol):
    """Shows a run to a person."""

    def __enter__(self) -> "Watcher": ...

    def __exit__(self, *exc: object) -> None: ...

    def event(self, line: str) -> None:
        """Something happened that is worth a line of its own."""

    def update(self) -> None:
        """Time to look at the domains again."""


class LiveTable:
    """A table on a terminal that is drawn anew several times a second, with what happened above it."""

    interval_s = 0.1

    def __init__(self, console: Console, snapshot: Callable[[], Sequence[DomainStatus]]) -> None:
        self._console = console
        self._snapshot = snapshot
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def event(self, line: str) -> None:
        """Prints `line` above the table."""
        self._live.console.print(Text(line))

    def update(self) -> None:
        """Draws the table."""
        self._live.update(_table(self._snapshot()), refresh=True)


class PlainLines:
    """For logs and pipes: what happened, a line each, and nothing else."""

    interval_s = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def event(self, line: str) -> None:
        """Prints `line`."""
        self._console.print(Text(line), soft_wrap=True)

    def update(self) -> None:
        """Lines are printed as things happen, so there is nothing to draw."""


def _table(rows: Sequence[DomainStatus]) -> Table:
    table = Table(box=None, header_style="dim", expand=False)
    for name in ("domain", "state", "program"):
        table.add_column(name, no_wrap=True)
    for name in ("hypercalls", "upcalls", "requests", "moved"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("console", no_wrap=True, overflow="ellipsis", max_width=44)
    for row in rows:
        table.add_row(
            f"{row.domid} {row.name}",
            Text(row.state, style=STATE_STYLES.get(row.state, "")),
            row.program,
            f"{row.hypercalls:,}",
            f"{row.upcalls:,}",
            f"{row.requests:,}",
            human_bytes(row.bytes_moved),
            Text(row.last_line),
        )
    return table
