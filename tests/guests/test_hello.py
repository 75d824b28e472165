"""The smallest guest."""

from pathlib import Path

import pytest

from dom0.embedding import running_machine

pytestmark = pytest.mark.anyio


async def test_it_greets_as_who_it_is(tmp_path: Path, isolation: str) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("hello", {"greeting": "Grüezi"}, name="my-guest_1", isolation=isolation)
        assert (await guest.wait()).exit_code == 0
        assert guest.console == f"Grüezi from my-guest_1, domain {guest.domid}\n"


async def test_it_greets_as_often_as_asked(tmp_path: Path, isolation: str) -> None:
    """More than the ring holds, so that it has to wait for the daemon on the way."""
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("hello", {"times": 300}, isolation=isolation)
        assert (await guest.wait()).exit_code == 0
        assert guest.console == f"Hello from guest1, domain {guest.domid}\n" * 300
