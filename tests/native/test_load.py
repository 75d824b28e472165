"""Linux under load: its own kernel is the judge. DOMZERO_LOAD_SECONDS says how long, of its own time."""

import os
import re
from pathlib import Path

import pytest

from tests.native.guests import at_shell, disk, linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

SECONDS = int(os.environ.get("DOMZERO_LOAD_SECONDS", "15"))
MIB = 1 << 20
WARNING = re.compile(
    r"WARNING:|BUG:|Oops|Call Trace|stuck for|rcu.*stall|hung_task|clocksource.*unstable", re.IGNORECASE
)


async def test_disks_forks_and_a_busy_loop_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with (tmp_path / f"{name}.img").open("wb") as image:
            image.truncate(32 * MIB)
    async with native_machine(tmp_path) as machine:
        drives = [disk("xvda", tmp_path / "a.img"), disk("xvdb", tmp_path / "b.img")]
        guest = await linux(machine, options="loglevel=4", disks=drives)
        async with at_shell(guest) as shell:
            await shell.run(f"export stop=$(($(cut -d. -f1 /proc/uptime) + {SECONDS}))")
            until = "while [ $(cut -d. -f1 /proc/uptime) -lt $stop ]; do"
            await shell.run(f"({until} dd if=/dev/xvda of=/dev/null bs=1M; done) 2>/dev/null & true")
            await shell.run(
                f"({until} dd if=/dev/zero of=/dev/xvdb bs=64k count=256 conv=fsync; done) 2>/dev/null & true"
            )
            await shell.run(f"({until} /bin/sh -c '/bin/echo x | /bin/cat' >/dev/null; done) & true")
            await shell.run(f"({until} for i in 1 2 3 4 5 6 7 8 9; do :; done; done) & true")
            await shell.run("wait")
            said = await shell.run("dmesg")
            assert not WARNING.search(said), said[-3000:]
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
        assert not machine.core.audit()
