"""Shows what guests print, line by line, beside everything else that happens in a run."""

from collections.abc import Callable
from typing import Final

from backends.console.daemon import ConsoleDaemon
from kernel.errors import KernelError

LINES_SHOWN: Final = 40
"""Of one guest; its log keeps the rest."""

LONGEST_LINE: Final = 160


async def echo_console(consoles: ConsoleDaemon, domid: int, name: str, say: Callable[[str], None]) -> None:
    """Says each line that the console of `domid` prints, until the console or our patience ends."""
    shown = 0
    rest = ""
    try:
        console = await consoles.add(domid)
    except KernelError:
        return  # the domain is gone already, and whoever started it is told
    async with console.attach() as terminal:
        async for data in terminal:
            *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                if shown == LINES_SHOWN:
                    say(f"{name} │ … the rest is in its log")
                    return
                say(f"{name} │ {_printable(line)}")
                shown += 1
            rest = rest[-LONGEST_LINE:]


def _printable(line: str) -> str:
    """A guest's words cannot move our cursor."""
    kept = "".join(c if c.isprintable() else "·" for c in line.rstrip("\r"))
    return kept if len(kept) <= LONGEST_LINE else kept[: LONGEST_LINE - 1] + "…"
