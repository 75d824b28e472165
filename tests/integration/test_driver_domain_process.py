"""A driver domain that is an OS process, and so are its clients: what the others see when it is killed."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding import DiskSpec, RunningGuest, RunningMachine, running_machine
from dom0.isolation import FileNotThere
from frontends.block.disk import Disk
from hypervisor.vcpu.process import landlock
from hypervisor.vcpu.process.execution import ProcessVcpu
from kernel.kernel import Kernel
from kernel.xenbus.drivers import PeerGone
from tests.held import MIB, XVDA, XVDB, disk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_fork_servers")]

PATIENCE_S = 20.0


async def reads_until_it_is_gone(kernel: Kernel) -> int:
    """0 if its first disk ended with PeerGone, from then on for ever, and the second one goes on."""
    xvda, xvdb = await Disk.open(kernel, XVDA), await Disk.open(kernel, XVDB)
    told = 0

    async def work(sector: int) -> None:
        nonlocal told
        try:
            while True:
                await xvda.write(sector, bytes(4096))
                await xvda.read(sector, 64)
                await kernel.store.write("data/works", "1")
        except PeerGone:
            told += 1

    async with anyio.create_task_group() as tasks:
        for sector in range(0, 512, 64):
            tasks.start_soon(work, sector)
    with pytest.raises(PeerGone):
        await xvda.flush()
    await xvdb.write(0, b"still here".ljust(512))
    assert (await xvdb.read(0, 1)).startswith(b"still here")
    await xvda.close()
    return 0 if told == 8 else 1


async def killed(machine: RunningMachine, guest: RunningGuest) -> None:
    execution = machine.host._executions[guest.domain.vcpus[0]]
    assert isinstance(execution, ProcessVcpu)
    while execution.child is None:
        await checkpoint()
    execution.child.kill()


@pytest.mark.parametrize("client", ["coroutine", "process"])
async def test_its_clients_are_told_and_go_on(client: str, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks", isolation="process")
        guest = await machine.start(
            reads_until_it_is_gone, disks=[disk(), disk("xvdb", served_by="")], isolation=client
        )
        works = f"/local/domain/{guest.domid}/data/works"
        with anyio.fail_after(PATIENCE_S):
            while not await machine.store.exists(works):
                await checkpoint()
            await killed(machine, disks)
            end = await guest.wait()
            assert (await disks.wait()).crash.endswith("its process has ended: killed by SIGKILL")
        assert (end.outcome, end.exit_code, end.leaks, end.crash) == ("poweroff", 0, (), "")
        assert [record.lost for record in end.disks] == [True]
        assert machine.core.audit() == []


async def test_it_may_be_killed_before_it_has_begun(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks", isolation="process")
        guest = await machine.start("block-exerciser", {"depth": 2}, disks=[disk()], isolation="process")
        with anyio.fail_after(PATIENCE_S):
            await killed(machine, disks)
            assert (await disks.wait()).outcome == "crash"
            end = await guest.wait()
        assert end.outcome == "crash"
        assert "PeerGone" in end.crash
        assert end.leaks == ()


@pytest.mark.skipif(
    not landlock.abi(), reason="this system has no Landlock, which keeps files from processes"
)
async def test_it_opens_the_images_that_it_was_told_of_and_no_others(tmp_path: Path) -> None:
    for name in ("told.img", "secret.img"):
        (tmp_path / name).write_bytes(bytes(MIB))
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks", files=["told.img"], isolation="process")
        told, secret = (
            DiskSpec(vdev="xvda", config={"path": name}, backend_domain="disks")
            for name in ("told.img", "secret.img")
        )
        with anyio.fail_after(PATIENCE_S):
            guest = await machine.start(
                "block-exerciser", {"requests": 10}, disks=[told], isolation="process"
            )
            assert (await guest.wait()).exit_code == 0
            guest = await machine.start("block-exerciser", {"requests": 10}, disks=[secret])
            await disks.printed(
                "cannot serve xvda of domain 3: .*secret.img cannot be opened: Permission denied"
            )
            assert (await guest.wait()).outcome == "crash"
            assert (await disks.shut_down()).outcome == "poweroff"
    assert (tmp_path / "secret.img").read_bytes() == bytes(MIB)


async def test_it_is_let_to_no_folder(tmp_path: Path) -> None:
    """Of a file that is not there: whatever else is in it would be its, too."""
    async with running_machine(tmp_path) as machine:
        with pytest.raises(FileNotThere, match=r"later\.img is not there"):
            await machine.start("driver-domain", name="disks", files=["later.img"], isolation="process")
        assert list(machine.core.domains) == [0]
        disks = await machine.start("driver-domain", name="disks", files=["later.img"])
        assert (await disks.shut_down()).outcome == "poweroff"
