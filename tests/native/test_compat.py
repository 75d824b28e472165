"""32-bit processes of a 64-bit guest: compatibility mode, with all its ways into the kernel."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.guests import at_shell, linux, make_image, native_machine
from tests.requirements import needs_package

PROGRAM = Path(__file__).parent / "programs" / "compat.s"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


def assemble(folder: Path) -> bytes:
    """The program, as a static ELF file for i386."""
    needs_package("binutils", shutil.which("as") is not None and shutil.which("ld") is not None)
    subprocess.run(["as", "--32", "-o", folder / "compat.o", PROGRAM], check=True)
    linked = ["ld", "-m", "elf_i386", "-o", folder / "compat", folder / "compat.o"]
    subprocess.run(linked, check=True)
    return (folder / "compat").read_bytes()


@pytest.mark.parametrize("vcpus", [1, 2])
async def test_a_32_bit_program_finds_all_that_it_needs(tmp_path: Path, vcpus: int) -> None:
    image = make_image(tmp_path / "disk.img", "ext2", 4, {"compat": assemble(tmp_path)})
    async with native_machine(tmp_path) as machine:
        guest = await linux(machine, disks=[image], vcpus=vcpus)
        async with at_shell(guest) as shell:
            await shell.run("mount -t ext2 /dev/xvda /mnt && cp /mnt/compat /tmp && chmod +x /tmp/compat")
            assert (await shell.run("/tmp/compat")).splitlines() == [
                "int 0x80",
                "1000 calls through the vDSO",
                "TLS",
                "LDT",
                "a signal",
                "faults",
                "64-bit mode and back",
                "20 forks",
            ]
            await shell.type("poweroff")
            assert (await guest.wait()).outcome == "poweroff"
