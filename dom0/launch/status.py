"""What is worth watching while a scenario runs, and the two ways to watch it."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dom0.launch.snapshot import Snapshot
from dom0.report.printable import printable
from dom0.report.render import human_bytes, whoever_listens
from dom0.toolstack.endings import DESTROYED, OUTCOMES
from hypervisor.lifecycle import Status

WIDE_COLUMNS: Final = 100
"""From this width on the live table has room for the programs' names."""

STATE_STYLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(OUTCOMES.values(), "dim"),
    DESTROYED: "dim",
    "crash": "bold red",
    "watchdog": "bold red",
    Status.RUNNING.value: "green",
    Status.BLOCKED.value: "cyan",
    Status.SHUT_DOWN.value: "dim",
    Status.DYING.value: "dim",
    Status.DEAD.value: "dim",
}
_AROUND_THE_ROWS: Final = 3
"""Lines of the terminal that the table's head and its last line take."""


class Watcher(Protocol):
    """Shows a run to a person. `interval_s`: how often it wants to look at the domains."""

    interval_s: float

    def __enter__(self) -> "Watcher": ...

    def __exit__(self, *exc: object) -> None: ...

    def event(self, line: str) -> None:
        """Something happened that is worth a line of its own; what a guest has put into it does no harm."""

    def update(self) -> None:
        """Time to look at the domains again."""


class LiveTable:
    """A table on a terminal that is drawn anew several times a second, with what happened above it.

    snapshot: gives at most so many rows.
    """

    interval_s: float = 0.1

    def __init__(self, console: Console, snapshot: Callable[[int], Snapshot]) -> None:
        self._snapshot = snapshot
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        with whoever_listens():
            self._live.__exit__(None, None, None)

    def event(self, line: str) -> None:
        """Prints `line` above the table."""
        with whoever_listens():
            self._live.console.print(Text(printable(line)))

    def update(self) -> None:
        """Draws the table."""
        room = max(self._live.console.height - _AROUND_THE_ROWS, 1)
        table = _table(self._snapshot(room), self._live.console.width)
        with whoever_listens():
            self._live.update(table, refresh=True)


class PlainLines:
    """For logs and pipes: what happened, a line each, and nothing else."""

    interval_s: float = 3600.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def event(self, line: str) -> None:
        """Prints `line`."""
        with whoever_listens():
            self._console.print(Text(printable(line)), soft_wrap=True)

    def update(self) -> None:
        """Lines are printed as things happen, so there is nothing to draw."""


def watcher_for(console: Console, snapshot: Callable[[int], Snapshot]) -> Watcher:
    """A live table on a terminal, and plain lines where there is none."""
    return LiveTable(console, snapshot) if console.is_terminal else PlainLines(console)


def _table(snapshot: Snapshot, columns: int) -> Table:
    """Numbers are always whole; a narrow terminal goes without the programs' names."""
    wide = columns >= WIDE_COLUMNS
    table = Table(box=None, header_style="dim", expand=True, caption_justify="left")
    table.add_column("domain", no_wrap=True, min_width=12)
    table.add_column("state", no_wrap=True, min_width=9)
    if wide:
        table.add_column("program", no_wrap=True)
    for name, width in (("hypercalls", 10), ("upcalls", 7), ("requests", 8), ("moved", 9)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("console", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in snapshot.rows:
        table.add_row(
            f"{row.domid} {row.name}",
            Text(row.state, style=STATE_STYLES.get(row.state, "")),
            *([Text(row.program)] if wide else []),
            f"{row.hypercalls:,}",
            f"{row.upcalls:,}",
            f"{row.requests:,}",
            human_bytes(row.bytes_moved),
            Text(row.last_line),
        )
    if snapshot.hidden:
        table.caption = f"and {snapshot.hidden:,} more"
    return table
