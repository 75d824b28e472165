"""A guest that does nothing."""

from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from dom0.embedding import running_machine
from guests.idle import Args

pytestmark = pytest.mark.anyio


async def test_it_ends_when_its_time_is_over(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("idle", {"seconds": 0.05}, isolation=isolation)
        end = await guest.wait()
        assert (end.outcome, end.exit_code) == ("poweroff", 0)
        assert guest.console == "idle\n"


@pytest.mark.parametrize(
    ("word", "outcome"), [("poweroff", "poweroff"), ("halt", "poweroff"), ("reboot", "reboot")]
)
@pytest.mark.parametrize("args", [{}, {"seconds": 3600}])
async def test_it_ends_when_it_is_asked(
    word: str, outcome: str, args: dict[str, float], tmp_path: Path, isolation: str
) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("idle", args, isolation=isolation)
        await guest.printed("^idle$")
        await machine.services.toolstack.request_shutdown(guest.domid, word)
        with anyio.fail_after(20):
            end = await guest.wait()
        assert (end.outcome, end.exit_code) == (outcome, 0)
        assert guest.console == f"idle\nasked to {word}\n"


async def test_a_word_that_it_does_not_know_is_ignored(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("idle", isolation=isolation)
        await guest.printed("^idle$")
        await machine.services.toolstack.request_shutdown(guest.domid, "explode")
        assert (await guest.shut_down()).exit_code == 0


async def test_it_costs_an_upcall_now_and_then(tmp_path: Path, isolation: str) -> None:
    """Nothing is counted while it idles: only what it takes to boot, to print a word and to end."""
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("idle", isolation=isolation)
        await guest.printed("^idle$")
        await anyio.wait_all_tasks_blocked()
        before = dict(guest.domain.counters.hypercalls)
        await machine.store.write("/tool/test", "x")
        await anyio.wait_all_tasks_blocked()
        assert guest.domain.counters.hypercalls == before
        await guest.shut_down()
        assert guest.domain.counters.upcalls < 20


async def test_seconds_are_more_than_none(tmp_path: Path) -> None:
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValidationError):
            Args(seconds=seconds)
