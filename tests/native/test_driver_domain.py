"""Linux's disks served by a driver domain that is a process: Linux grants its pages and knows nothing of processes."""

import random
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding import DiskSpec, RunningGuest, RunningMachine
from hypervisor.vcpu.process.execution import ProcessVcpu
from tests.native.guests import at_shell, hash_of, linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

MIB = 1 << 20
IMAGE = "disk.img"


async def driver_domain(machine: RunningMachine) -> RunningGuest:
    return await machine.start("driver-domain", name="disks", files=[IMAGE], isolation="process")


def served() -> DiskSpec:
    return DiskSpec(vdev="xvda", config={"path": IMAGE}, backend_domain="disks")


def shared_pages(guest: RunningGuest) -> int:
    return sum(len(extent.shared) for extent in guest.domain.reservation.extents)


@pytest.mark.parametrize("persistent", ["Y", "N"])
async def test_linux_reads_and_writes_by_way_of_another_process(tmp_path: Path, persistent: str) -> None:
    """Without persistent grants each request's pages move there and back."""
    content = random.Random(persistent).randbytes(4 * MIB)
    (tmp_path / IMAGE).write_bytes(content)
    async with native_machine(tmp_path) as machine:
        disks = await driver_domain(machine)
        guest = await linux(machine)
        async with at_shell(guest) as shell:
            await shell.run(f"echo {persistent} > /sys/module/xen_blkfront/parameters/feature_persistent")
            await guest.attach(served())
            await shell.run("while ! [ -b /dev/xvda ]; do sleep 0.1; done")
            enabled = "persistent grants: enabled" in await shell.run("dmesg | grep xvda:")
            assert enabled is (persistent == "Y")
            assert (await shell.run("md5sum /dev/xvda")).split()[0] == hash_of(content)
            await shell.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=32 2>/dev/null")
            await shell.run("dd if=/tmp/noise of=/dev/xvda bs=64k oflag=direct 2>/dev/null; sync")
            noise = (await shell.run("md5sum /tmp/noise")).split()[0]
            # What was lent out is used for all else meanwhile, page tables included.
            await shell.run(
                "for i in 1 2 3 4; do (dd if=/dev/xvda of=/dev/null bs=4k count=100 iflag=direct) & done; wait"
            )
            await shell.run("i=0; while [ $i -lt 20 ]; do /bin/true; /bin/busybox true; i=$((i+1)); done")
            assert not await shell.run("dmesg | grep -i -e 'BUG' -e 'Oops' -e 'not unmapped' || true")
            assert machine.core.audit() == []
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
        written = (tmp_path / IMAGE).read_bytes()
        assert hash_of(written[: 2 * MIB]) == noise
        assert written[2 * MIB :] == content[2 * MIB :]
        assert (await disks.shut_down()).outcome == "poweroff"
        assert machine.core.audit() == []
        assert not machine.core.faults


async def test_linux_outlives_the_process_that_serves_its_disk(tmp_path: Path) -> None:
    (tmp_path / IMAGE).write_bytes(bytes(4 * MIB))
    async with native_machine(tmp_path) as machine:
        disks = await driver_domain(machine)
        guest = await linux(machine, disks=[served()])
        async with at_shell(guest) as shell:
            await shell.run("dd if=/dev/xvda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null")
            assert shared_pages(guest)
            await shell.type(
                "(while :; do dd if=/dev/xvda of=/dev/null bs=4k iflag=direct; done) >/dev/null 2>&1 &"
            )
            execution = machine.host._executions[disks.domain.vcpus[0]]
            assert isinstance(execution, ProcessVcpu)
            assert execution.child is not None
            execution.child.kill()
            assert (await disks.wait()).outcome == "crash"
            while shared_pages(guest):
                await checkpoint()
            assert machine.core.audit() == []
            await shell.run("i=0; while [ $i -lt 20 ]; do /bin/busybox true; i=$((i+1)); done")
            with anyio.fail_after(60):
                await guest.destroy()
        assert machine.core.audit() == []
        assert not machine.core.faults
