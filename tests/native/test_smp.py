"""Linux sees the vCPUs that it was given, and uses them."""

import re
from pathlib import Path

import pytest

from tests.native.guests import at_shell, linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


@pytest.mark.parametrize("vcpus", [2, 4])
async def test_it_uses_all_of_them(tmp_path: Path, vcpus: int) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, vcpus=vcpus)
        async with at_shell(guest) as shell:
            assert await shell.run("nproc") == f"{vcpus}\n"
            spin = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
            for cpu in range(vcpus):
                await shell.run(f"taskset -c {cpu} sh -c '{spin}' & true")
            await shell.run("wait")
            ticks = [
                int(line.split()[1])
                for line in (await shell.run("cat /proc/stat")).splitlines()
                if re.match(r"cpu\d", line)
            ]
            assert len(ticks) == vcpus
            assert all(ticks)
            sent = await shell.run("grep -E 'resched|callfunc' /proc/interrupts")
            assert any(int(word) for word in re.findall(r"\b\d+\b", sent.split(":", 1)[1]))
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"


async def test_one_goes_down_and_comes_up_again(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, vcpus=2)
        async with at_shell(guest) as shell:
            online = "/sys/devices/system/cpu/cpu1/online"
            for _ in range(3):
                await shell.run(f"echo 0 > {online}")
                assert await shell.run("nproc") == "1\n"
                await shell.run(f"echo 1 > {online}")
                assert await shell.run("nproc") == "2\n"
                assert await shell.run("taskset -c 1 echo there") == "there\n"
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
