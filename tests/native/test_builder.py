"""Kernels whose pages come from all over the machine, as on a real one: nothing may count on frames in order."""

import random
from pathlib import Path

import pytest

from dom0.embedding import running_machine
from guests.native import GRUB
from tests.native.guests import GUESTS, at_console, at_shell, disk, hash_of, linux, make_image

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

MIB = 1 << 20


async def test_linux_on_shuffled_frames(tmp_path: Path) -> None:
    content = random.Random(5).randbytes(8 * MIB)
    (tmp_path / "disk.img").write_bytes(content)
    async with running_machine(tmp_path) as machine:
        drive = disk("xvda", tmp_path / "disk.img")
        guest = await linux(machine, disks=[drive], options="", shuffled=True)
        async with at_shell(guest) as shell:
            assert (await shell.run("md5sum /dev/xvda")).split()[0] == hash_of(content)
            assert "Checked W+X mappings: passed" in await shell.run("dmesg | grep W+X")
            await shell.run("dd if=/dev/urandom of=/tmp/some bs=1M count=40 2>/dev/null")
            await shell.run("dd if=/tmp/some of=/dev/xvda bs=1M count=8 2>/dev/null; sync")
            written = (await shell.run("head -c 8388608 /tmp/some | md5sum")).split()[0]
            await shell.type("exit")
            assert (await guest.wait()).outcome == "poweroff"
        assert machine.core.audit() == []
    assert hash_of((tmp_path / "disk.img").read_bytes()) == written


async def test_grub_on_shuffled_frames(tmp_path: Path) -> None:
    drive = make_image(tmp_path / "disk.img", "ext2", 8, {"word": b"a word on a disk\n"})
    async with running_machine(tmp_path) as machine:
        guest = await machine.boot(GUESTS / GRUB, memory="64MiB", disks=[drive], shuffled=True)
        async with at_console(guest, "grub>") as console:
            await console.type("cat (xen/xvda)/word")
            await console.expect("a word on a disk")
            await console.type("halt")
            assert (await guest.wait()).outcome == "poweroff"
