"""Debian's kernels on our engine: a shell, disks, filesystems, an end."""

import random
import re
from pathlib import Path

import pytest

from guests.native import FLAVOURS
from tests.native.guests import (
    at_shell,
    check_filesystem,
    disk,
    hash_of,
    linux,
    make_image,
    native_machine,
    read_back,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

MIB = 1 << 20
WARNING = re.compile(r"WARNING:|BUG:|Oops|Call Trace|stuck for|rcu.*stall", re.IGNORECASE)


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_shell_and_a_disk_that_reads_as_its_image(tmp_path: Path, flavour: str) -> None:
    content = random.Random(flavour).randbytes(8 * MIB)
    (tmp_path / "disk.img").write_bytes(content)
    async with native_machine(tmp_path) as machine:
        drive = disk("xvda", tmp_path / "disk.img", "r")
        guest = await linux(machine, flavour=flavour, disks=[drive], options="")
        async with at_shell(guest) as shell:
            assert (await shell.run("md5sum /dev/xvda")).split()[0] == hash_of(content)
            assert "Checked W+X mappings: passed" in await shell.run("dmesg | grep W+X")
            assert flavour in await shell.run("uname -r")
            assert (await shell.run("cat /sys/hypervisor/type /sys/hypervisor/guest_type")).split() == [
                "xen",
                "PV",
            ]
            assert not WARNING.search(await shell.run("dmesg"))
            assert (
                await shell.run("dd if=/dev/zero of=/dev/xvda count=1 2>/dev/null || echo refused")
                == "refused\n"
            )
            await shell.type("exit")
            assert (await guest.wait()).outcome == "poweroff"


async def test_what_it_writes_to_ext4_is_in_the_image(tmp_path: Path) -> None:
    drive = make_image(tmp_path / "disk.img", "ext4", 64)
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, disks=[drive])
        async with at_shell(guest) as shell:
            await shell.run("mount -t ext4 /dev/xvda /mnt")
            await shell.run(
                "for i in 1 2 3; do dd if=/dev/urandom of=/mnt/file$i bs=${i}7k count=40; done 2>/dev/null"
            )
            hashes = dict(
                reversed(line.split())
                for line in (await shell.run("cd /mnt; md5sum file*; cd /")).splitlines()
            )
            await shell.run("sync")
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
    assert set(hashes) == {"file1", "file2", "file3"}
    for name, found in hashes.items():
        assert hash_of(read_back(tmp_path / "disk.img", name)) == found
    check_filesystem(tmp_path / "disk.img")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("poweroff", "poweroff"),
        ("halt", "poweroff"),
        ("reboot", "reboot"),
        ("echo c > /proc/sysrq-trigger", "crash"),
    ],
)
async def test_it_ends_as_it_is_asked_to(tmp_path: Path, script: str, outcome: str) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, script)
        assert (await guest.wait()).outcome == outcome


async def test_the_toolstack_asks_it_to_power_off(tmp_path: Path) -> None:
    drive = make_image(tmp_path / "disk.img", "ext4", 16)
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, disks=[drive])
        async with at_shell(guest) as shell:
            await shell.run("mount -t ext4 /dev/xvda /mnt; echo not synced > /mnt/file")
            assert (await guest.shut_down(patience_s=60)).outcome == "poweroff"
    assert read_back(tmp_path / "disk.img", "file") == b"not synced\n"
    check_filesystem(tmp_path / "disk.img")


async def test_a_disk_comes_and_goes_while_it_runs(tmp_path: Path) -> None:
    content = random.Random("hot").randbytes(2 * MIB)
    (tmp_path / "disk.img").write_bytes(content)
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine)
        async with at_shell(guest) as shell:
            await guest.attach(disk("xvdb", tmp_path / "disk.img"))
            await shell.run("until [ -b /dev/xvdb ]; do usleep 10000; done")
            assert (await shell.run("md5sum /dev/xvdb")).split()[0] == hash_of(content)
            assert await guest.detach("xvdb")
            await shell.run("while [ -b /dev/xvdb ]; do usleep 10000; done")
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"


async def test_ram_that_it_was_given_and_no_more(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, memory="128MiB")
        async with at_shell(guest) as shell:
            (kib,) = re.findall(r"MemTotal: +(\d+)", await shell.run("cat /proc/meminfo"))
            assert 70 << 10 < int(kib) < 128 << 10
            await guest.destroy()


async def test_much_is_typed_and_printed_without_a_loss(tmp_path: Path) -> None:
    lines = "".join(f"{number} {'x' * 60}\n" for number in range(1000))
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine)
        async with at_shell(guest) as shell:
            await shell.type("stty -echo; cat > /tmp/typed; stty echo; md5sum /tmp/typed")
            for start in range(0, len(lines), 3000):
                await shell._terminal.send(lines[start : start + 3000].encode())
            await shell._terminal.send(b"\x04")
            found = await shell.expect(r"^([0-9a-f]{32})  /tmp/typed")
            assert found[1] == hash_of(lines.encode())
            assert (await shell.run("cat /tmp/typed")) == lines
            await guest.destroy()
