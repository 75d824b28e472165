"""Native domains come and go, in every way: nothing is left, nothing grows. DOMZERO_DOMAINS says how many."""

import os
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding import GuestEnd, RunningMachine
from tests.census import back_to, count_objects, pss_bytes, settled
from tests.native.guests import at_console, disk, grub, native_machine
from tests.native.test_several import execution_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

DOMAINS = int(os.environ.get("DOMZERO_DOMAINS", "80"))
WARM = 40
"""domains after which nothing grows any more"""
GROWTH_BYTES = 8 << 20
GROWTH_OBJECTS = 4000
WAYS = ("unstarted", "unstarted", "booting", "killed", "prompt")


async def one_life(machine: RunningMachine, image: Path, way: str) -> GuestEnd:
    """How a domain ends that is destroyed at once, or when it prints; that loses its engine; that halts."""
    guest = await grub(machine, disk("xvda", image, "r"), memory="32MiB")
    if way == "booting":
        await guest.printed("GRUB")
    elif way == "killed":
        execution = execution_of(machine, guest)
        while execution.child is None:
            await checkpoint()
        execution.child.kill()
        return await guest.wait()
    elif way == "prompt":
        async with at_console(guest, "grub> ") as shell:
            await shell.type("halt")
            return await guest.wait()
    return await guest.destroy()


async def test_nothing_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.console.daemon.ENDED_KEPT", 8)  # what is kept on purpose of those that were
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    ends = {"killed": "crash", "prompt": "poweroff"}
    async with native_machine(tmp_path, "256MiB", patience_s=1200) as machine:
        before = warm = None
        for number in range(DOMAINS):
            way = WAYS[number % len(WAYS)]
            end = await one_life(machine, tmp_path / "disk.img", way)
            assert end.outcome == ends.get(way, "destroyed"), (number, way, end)
            before = before or settled(machine)
            await back_to(before, machine)
            if number == WARM:
                warm = pss_bytes(), count_objects()
        assert warm is not None
        assert pss_bytes() - warm[0] < GROWTH_BYTES
        assert count_objects() - warm[1] < GROWTH_OBJECTS
