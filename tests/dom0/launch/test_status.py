"""The live table and the plain lines: nothing that a guest says reaches the terminal as more than text."""

from io import StringIO

import pytest
from rich.console import Console

from dom0.launch.snapshot import DomainStatus, Snapshot
from dom0.launch.status import STATE_STYLES, LiveTable, PlainLines, watcher_for
from dom0.toolstack.endings import OUTCOMES, outcome_of
from hypervisor.lifecycle import Status

NASTY = "\x1b[2J\x07[red]x[/red] \u202eback"


def console(*, terminal: bool, height: int = 20) -> tuple[Console, StringIO]:
    output = StringIO()
    return Console(file=output, force_terminal=terminal, width=100, height=height, color_system=None), output


def test_a_terminal_gets_the_table_and_everything_else_plain_lines() -> None:
    assert isinstance(watcher_for(console(terminal=True)[0], lambda _room: Snapshot([])), LiveTable)
    assert isinstance(watcher_for(console(terminal=False)[0], lambda _room: Snapshot([])), PlainLines)


def test_the_table_has_a_row_for_each_domain() -> None:
    screen, output = console(terminal=True)
    rows = [DomainStatus(1, "one", "running", "hello", 1234, 5, 6, 3 << 20, "last words")]
    with LiveTable(screen, lambda _room: Snapshot(rows, hidden=1200)) as table:
        table.update()
    shown = output.getvalue()
    for part in ("1 one", "running", "hello", "1,234", "3.0 MiB", "last words", "and 1,200 more"):
        assert part in shown


@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_the_table_asks_for_no_more_rows_than_fit(height: int) -> None:
    screen, _ = console(terminal=True, height=height)
    asked: list[int] = []

    def snapshot(room: int) -> Snapshot:
        asked.append(room)
        return Snapshot([])

    with LiveTable(screen, snapshot) as table:
        table.update()
    assert asked == [max(height - 3, 1)]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_guest_says_is_text(terminal: bool) -> None:
    screen, output = console(terminal=terminal)
    with watcher_for(screen, lambda _room: Snapshot([])) as watcher:
        watcher.event(NASTY)
    shown = output.getvalue()
    assert "[red]x[/red]" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_a_program_s_name_is_no_markup() -> None:
    screen, output = console(terminal=True)
    rows = [DomainStatus(1, "one", "running", "[bold]mine[/]:main", last_line="[red]")]
    with LiveTable(screen, lambda _room: Snapshot(rows)) as table:
        table.update()
    assert "[bold]mine[/]:main" in output.getvalue()
    assert "[red]" in output.getvalue()


def test_long_lines_are_not_wrapped_where_no_terminal_is() -> None:
    screen, output = console(terminal=False)
    PlainLines(screen).event("x" * 500)
    assert output.getvalue() == "x" * 500 + "\n"


def test_every_state_that_a_row_can_show_has_its_style_or_none() -> None:
    shown = {status.value for status in Status} | set(OUTCOMES.values()) | {outcome_of(None)}
    assert set(STATE_STYLES) <= shown
    assert "crash" in STATE_STYLES
    assert shown - set(STATE_STYLES) == {"created", "paused"}
