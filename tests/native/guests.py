"""What the tests of whole native guests have in common: the kernels, images for disks, and somebody at the console."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest

from backends.console.terminal import Terminal
from dom0.embedding import DiskSpec, RunningGuest, RunningMachine, running_machine
from guests.native import FLAVOURS, GRUB, initramfs_file, kernel_file
from tests.requirements import needs_package

ROOT = Path(__file__).parents[2]
GUESTS = Path(os.environ.get("DOMZERO_GUESTS", ROOT / ".guests"))
CLOUD = "cloud-amd64"
SEARCHED_CHARACTERS = 1 << 20
PATIENCE_S = float(os.environ.get("DOMZERO_PATIENCE", "240"))
"""how long a test may take; all of them take far less"""


def needs_guests() -> None:
    """Skips a test where nobody has made the guests; in CI it fails."""
    needs_package("unicorn (pip install domzero[native])", find_spec("unicorn") is not None)
    files = [GRUB, *map(kernel_file, FLAVOURS), *map(initramfs_file, FLAVOURS)]
    needs_package("grub-xen-host and others (make guests)", all((GUESTS / file).exists() for file in files))


def tool(name: str) -> str:
    """The path of a program of e2fsprogs, or the test is skipped."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    needs_package("e2fsprogs", path is not None)
    return path or name


def make_image(file: Path, kind: str, mib: int, content: Mapping[str, bytes] = {}) -> DiskSpec:
    """An image with a filesystem, ext2 or ext4, that holds files; the disk xvda."""
    folder = file.with_suffix(".content")
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    with file.open("wb") as image:
        image.truncate(mib << 20)
    subprocess.run([tool(f"mkfs.{kind}"), "-q", "-F", "-d", folder, file], check=True)
    return disk("xvda", file)


def disk(vdev: str, file: Path, mode: str = "w") -> DiskSpec:
    """A disk whose image is a file."""
    return DiskSpec(vdev=vdev, mode="r" if mode == "r" else "w", config={"path": str(file)})


def read_back(image: Path, name: str) -> bytes:
    """A file of an image, by debugfs, from outside."""
    found = subprocess.run([tool("debugfs"), "-R", f"cat {name}", image], check=True, capture_output=True)
    return found.stdout


def check_filesystem(image: Path) -> None:
    """Fails if anything is wrong with an image's filesystem."""
    subprocess.run([tool("e2fsck"), "-f", "-n", image], check=True, capture_output=True)


def hash_of(data: bytes) -> str:
    """As md5sum prints it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@asynccontextmanager
async def native_machine(
    folder: Path, memory: str = "1GiB", patience_s: float = PATIENCE_S
) -> AsyncIterator[RunningMachine]:
    """A machine for native guests; what hangs in it fails."""
    with anyio.fail_after(patience_s):
        async with running_machine(folder, memory=memory) as machine:
            yield machine


async def grub(
    machine: RunningMachine, *disks: DiskSpec, name: str = "", memory: str = "64MiB"
) -> RunningGuest:
    """GRUB, on its way to its prompt or to what a grub.cfg of its disks says."""
    return await machine.boot(GUESTS / GRUB, name=name, memory=memory, disks=disks)


async def linux(
    machine: RunningMachine,
    script: str = "",
    *,
    flavour: str = CLOUD,
    disks: Iterable[DiskSpec] = (),
    options: str = "quiet",
    **others: int | str,
) -> RunningGuest:
    """Linux, on its way to a shell. script: what it does before, such as powering off, so that there is none."""
    assert '"' not in script
    return await machine.boot(
        GUESTS / kernel_file(flavour),
        ramdisk=GUESTS / initramfs_file(flavour),
        cmdline=f'{options} script="{script}"' if script else options,
        disks=disks,
        **others,  # type: ignore[arg-type]
    )


class Shell:
    """Somebody at a console."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.seen = ""
        self._count = 0

    async def expect(self, pattern: str) -> re.Match[str]:
        """Waits until what was printed since the last one matches."""
        while not (found := re.search(pattern, self.seen, re.MULTILINE)):
            data = await self._terminal.receive()
            assert data, f"the console has ended without {pattern!r}; it has said {self.seen[-3000:]!r}"
            self.seen = (self.seen + data.decode("utf-8", "replace"))[-SEARCHED_CHARACTERS:]
        self.seen = self.seen[found.end() :]
        return found

    async def type(self, text: str) -> None:
        """Types a line."""
        await self._terminal.send(text.encode() + b"\r")

    async def run(self, command: str) -> str:
        """What a command of Linux's shell prints; fails if it does."""
        self._count += 1
        mark = f"@{self._count}"
        await self.type(f"echo {mark}'begin'; {command}; echo {mark}'end' $?")
        await self.expect(rf"^{mark}begin\s+")
        found = await self.expect(rf"(?s)\A(.*?){mark}end (\d+)")
        assert found[2] == "0", f"{command}: status {found[2]}: {found[1]}"
        return found[1].replace("\r", "")


@asynccontextmanager
async def at_console(guest: RunningGuest, first: str) -> AsyncIterator[Shell]:
    """Somebody at a guest's console, when that shows what is awaited first."""
    async with guest.terminal() as terminal:
        shell = Shell(terminal)
        await shell.expect(first)
        yield shell


@asynccontextmanager
async def at_shell(guest: RunningGuest) -> AsyncIterator[Shell]:
    """Somebody at a Linux guest's shell."""
    async with at_console(guest, r"^domzero:/# ") as shell:
        yield shell


@pytest.fixture
def native_guests() -> None:
    """For tests that boot them."""
    needs_guests()
