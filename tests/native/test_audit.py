"""Everything that is counted agrees, at any moment of a guest's life."""

from pathlib import Path

import anyio
import pytest

from dom0.debug.audit import audit_machine
from tests.native.guests import at_shell, grub, linux, make_image, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]
AUDITS = 5
EARLY_AUDITS = 15
LOAD = "while true; do cat /bin/busybox | md5sum; (true); done >/dev/null 2>&1 &"


async def test_page_tables_agree_while_a_guest_boots_forks_and_reads(tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk.img", "ext4", 16, {"file": bytes(range(256)) * 4096})
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, vcpus=2, disks=[disk])
        async with at_shell(guest) as shell:
            assert (await audit_machine(machine, 0)).agrees
            await shell.run(LOAD + LOAD + " true")
            await shell.run("mount -t ext4 /dev/xvda /mnt && cat /mnt/file >/dev/null")
            for _ in range(AUDITS):
                audit = await audit_machine(machine, 0)
                assert audit.page_tables[0].not_done == ""
                assert audit.agrees, audit
                await shell.run("cat /mnt/file | md5sum >/dev/null")
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
        assert machine.core.audit() == []


async def test_page_tables_agree_from_the_first_moment_on(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, "poweroff")
        audits = 0
        while guest.end is None and audits < EARLY_AUDITS:
            audit = await audit_machine(machine, 0)
            assert audit.agrees, audit
            audits += any(not domain.not_done for domain in audit.page_tables)
            await anyio.lowlevel.checkpoint()
        assert (await guest.wait()).outcome == "poweroff"
        assert audits == EARLY_AUDITS


async def test_grubs_page_tables_agree(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await grub(machine)
        async with guest.terminal() as _:
            for _ in range(AUDITS):
                assert (await audit_machine(machine, 0)).agrees
