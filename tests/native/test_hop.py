"""All state of a native domain is in its memory or in one model: a guest goes on in another process, and notices
nothing.
"""

import hashlib
import os
import re
from pathlib import Path

import anyio
import pytest

from hypervisor.vcpu.native.execution import NotRunning
from tests.native.guests import at_shell, disk, hash_of, linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

HOPS = 50
COMPUTE = (
    "x=1; i=0; while [ $i -lt 30000 ]; do x=$(((x * 1103515245 + 12345) % 2147483648)); i=$((i+1)); done"
)


def computed() -> int:
    """What COMPUTE leaves in x."""
    x = 1
    for _ in range(30000):
        x = (x * 1103515245 + 12345) % 2147483648
    return x


@pytest.mark.parametrize("vcpus", [1, 2])
async def test_a_computation_goes_on_through_50_processes(tmp_path: Path, vcpus: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(2 << 20))
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, vcpus=vcpus, memory="128MiB", disks=[disk("xvda", image, "r")])
        native = guest.native
        assert native is not None
        async with at_shell(guest) as shell:
            lines = int(await shell.run("dmesg | wc -l"))
            pids = set()
            await shell.type(f"{COMPUTE}; echo result $x")
            for hop in range(HOPS):
                await native.hop()
                assert native.child is not None
                pids.add(native.child.pid)
                if hop % 10 == 0:
                    assert await native.audit() == []
                    assert machine.core.audit() == []
            assert len(pids) == HOPS
            found = await shell.expect(r"^result (\d+)")
            assert int(found[1]) == computed()
            await shell.type("md5sum /dev/xvda")
            await native.hop()
            await shell.expect(hash_of(image.read_bytes()))
            said = await shell.run(f"dmesg | tail -n +{lines + 1}")
            assert not re.search(r"BUG|WARNING|Call Trace|stall|unstable|error", said), said
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"


async def test_what_it_writes_while_it_hops_is_in_the_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, memory="128MiB", disks=[disk("xvda", image)])
        assert guest.native is not None
        async with at_shell(guest) as shell:
            await shell.run("head -c 8388608 /dev/urandom > /tmp/data")
            digest = (await shell.run("md5sum < /tmp/data")).split()[0]
            await shell.type("dd if=/tmp/data of=/dev/xvda bs=64k oflag=direct; echo written")
            for _ in range(10):
                await guest.native.hop()
            await shell.expect(r"^written")
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
    assert hashlib.md5(image.read_bytes(), usedforsecurity=False).hexdigest() == digest


async def test_one_hop_at_a_time_whoever_waits_and_none_of_what_has_ended(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, memory="128MiB")
        native = guest.native
        assert native is not None
        async with at_shell(guest) as shell:
            refused = 0

            async def hop() -> None:
                nonlocal refused
                try:
                    await native.hop()
                except NotRunning:
                    refused += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hop)
                tasks.start_soon(hop)
            assert refused == 1
            await shell.run("true")
            for waited_for in (native.hop, native.audit):
                with anyio.move_on_after(0):
                    await waited_for()
                await shell.run("true")
            await guest.destroy()
        with pytest.raises(NotRunning):
            await native.hop()
        with pytest.raises(NotRunning):
            await native.audit()
