"""Shows what guests print, line by line, beside everything else that happens in a run."""

from collections.abc import Callable
from typing import Final

from backends.console.errors import NoConsole
from dom0.embedding import RunningGuest

LINES_SHOWN: Final = 40
"""Of one guest; its log keeps the rest."""

LONGEST_LINE: Final = 160


async def echo_console(guest: RunningGuest, say: Callable[[str], None]) -> None:
    """Says each line that `guest` prints, until its console ends or it has printed too much."""
    try:
        async with guest.terminal() as terminal:
            shown = 0
            rest = ""
            async for data in terminal:
                *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
                for line in lines:
                    if shown == LINES_SHOWN:
                        say(f"{guest.name} │ … the rest is in its log")
                        return
                    say(f"{guest.name} │ {_shown(line)}")
                    shown += 1
                rest = rest[-LONGEST_LINE:]
            if rest:
                say(f"{guest.name} │ {_shown(rest)}")
    except NoConsole:
        return  # it has ended before anybody could look


def _shown(line: str) -> str:
    """A guest's words cannot move our cursor."""
    kept = "".join(c if c.isprintable() else "·" for c in line.rstrip("\r"))
    return kept if len(kept) <= LONGEST_LINE else kept[: LONGEST_LINE - 1] + "…"
