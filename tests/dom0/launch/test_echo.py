"""What guests print is shown as lines, harmless and not too many."""

from pathlib import Path

import pytest

from dom0.embedding import running_machine
from dom0.launch.echo import LINES_SHOWN, LONGEST_LINE, echo_console
from frontends.console.attach import attached_console
from kernel.kernel import Kernel

pytestmark = pytest.mark.anyio


async def echoed(folder: Path, isolation: str, *pieces: str) -> list[str]:
    """What is said of a guest that prints `pieces`."""

    async def program(kernel: Kernel) -> int:
        async with attached_console(kernel) as console:
            for piece in pieces:
                console.write(piece)
                await console.drain()
        return 0

    said: list[str] = []
    async with running_machine(folder) as machine:
        guest = await machine.start(program, name="g", isolation=isolation)
        await echo_console(guest, said.append)
    return said


async def test_lines_are_said_whole_however_they_were_written(tmp_path: Path, isolation: str) -> None:
    assert await echoed(tmp_path, isolation, "o", "ne\ntw", "o\r\n\nrest") == [
        "g │ one",
        "g │ two",
        "g │ ",
        "g │ rest",
    ]


async def test_control_characters_are_shown_as_dots_and_long_lines_are_cut(
    tmp_path: Path, isolation: str
) -> None:
    first, second = await echoed(tmp_path, isolation, "\x1b[2Jx\n" + "y" * 500 + "\n")
    assert first == "g │ ·[2Jx"
    assert second == "g │ " + "y" * (LONGEST_LINE - 1) + "…"


async def test_a_guest_that_prints_much_is_cut_off(tmp_path: Path, isolation: str) -> None:
    said = await echoed(tmp_path, isolation, *[f"{number}\n" for number in range(LINES_SHOWN + 20)])
    assert len(said) == LINES_SHOWN + 1
    assert said[-2:] == [f"g │ {LINES_SHOWN - 1}", "g │ … the rest is in its log"]


async def test_a_guest_that_prints_nothing(tmp_path: Path, isolation: str) -> None:
    assert await echoed(tmp_path, isolation) == []
