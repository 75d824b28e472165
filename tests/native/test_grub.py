"""GRUB on our engine: it reads disks, and boots Linux from one."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from guests.native import GRUB, initramfs_file, kernel_file
from tests.native.guests import GUESTS, at_console, at_shell, grub, make_image, native_machine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("native_guests")]

PROMPT = "grub> "
KERNEL = "amd64"
"""its payload is packed with xz; GRUB cannot unpack LZ4, which the cloud kernel's is packed with"""


async def test_it_lists_and_reads_an_image_and_halts(tmp_path: Path) -> None:
    content = secrets.token_hex(3000)
    disk = make_image(tmp_path / "disk.img", "ext2", 8, {"folder/secret.txt": content.encode()})
    async with native_machine(tmp_path) as machine:
        guest = await grub(machine, disk)
        async with at_console(guest, PROMPT) as shell:
            await shell.type("set pager=0")
            await shell.expect(PROMPT)
            await shell.type("ls")
            await shell.expect(r"\(xen/xvda\)")
            await shell.expect(PROMPT)
            await shell.type("ls (xen/xvda)/folder")
            await shell.expect("secret.txt")
            await shell.expect(PROMPT)
            await shell.type("cat (xen/xvda)/folder/secret.txt")
            await shell.expect(content[-40:])
            await shell.expect(PROMPT)
            await shell.type("halt")
        end = await guest.wait()
    assert end.outcome == "poweroff"


def test_on_the_command_line_its_end_is_the_status(tmp_path: Path) -> None:
    domzero = [sys.executable, "-c", "from dom0.cli import main; main()"]
    boot = [*domzero, "boot", GUESTS / GRUB, "--timeout", "60"]
    done = subprocess.run(boot, input=b"halt\r", capture_output=True, check=False)
    assert b"GNU GRUB" in done.stdout
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("table", ["plain", "partitioned"])
async def test_it_boots_linux_from_an_image(tmp_path: Path, table: str) -> None:
    config = "linux /vmlinuz quiet chain=loaded\ninitrd /initramfs.img\nboot\n"
    disk = make_image(
        tmp_path / "disk.img",
        "ext2" if table == "plain" else "ext4",
        40,
        {
            "boot/grub/grub.cfg": config.encode(),
            "vmlinuz": (GUESTS / kernel_file(KERNEL)).read_bytes(),
            "initramfs.img": (GUESTS / initramfs_file(KERNEL)).read_bytes(),
        },
    )
    if table == "partitioned":
        partition(tmp_path / "disk.img")
    async with native_machine(tmp_path) as machine:
        guest = await grub(machine, disk, memory="256MiB")
        async with at_shell(guest) as shell:
            assert "chain=loaded" in await shell.run("cat /proc/cmdline")
            name = "xvda" if table == "plain" else "xvda1"
            assert "grub.cfg" in await shell.run(f"mount -o ro /dev/{name} /mnt; ls /mnt/boot/grub")
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"


def partition(image: Path) -> None:
    """Puts an image's filesystem into the first partition of an MBR table of its own, at 1 MiB."""
    start = 2048
    content = image.read_bytes()
    entry = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + start.to_bytes(4, "little")
    entry += (len(content) // 512).to_bytes(4, "little")
    table = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    image.write_bytes(table.ljust(start * 512, b"\0") + content)
