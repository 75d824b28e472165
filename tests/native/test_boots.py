"""Boot after boot, to the shell and to the end; DOMZERO_BOOTS says how many."""

import os
from pathlib import Path

import pytest

from tests.native.guests import linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

BOOTS = int(os.environ.get("DOMZERO_BOOTS", "3"))


async def test_every_boot_reaches_the_shell_and_powers_off(tmp_path: Path) -> None:
    async with native_machine(tmp_path, patience_s=60 * BOOTS) as machine:
        for _ in range(BOOTS):
            guest = await linux(machine, "echo from the shell; poweroff", options="")
            end = await guest.wait()
            assert end.outcome == "poweroff", (end, guest.console[-3000:])
            assert "from the shell" in guest.console
            assert "Checked W+X mappings: passed" in guest.console
        assert not machine.core.audit()
