"""Our own paravirtualized kernel, compiled when a test asks for it: one image, whose command line names the case
that it executes.
"""

import subprocess
from pathlib import Path
from shutil import which
from typing import Final

from tests.requirements import needs_package

SOURCES: Final = Path(__file__).parent
HEADER: Final = Path("/usr/include/xen/xen.h")
XEN_INTERFACE_VERSION: Final = "0x00040e00"

FLAGS: Final = (
    *("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"),
    *("-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector"),
    *("-mcmodel=kernel", "-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
    "-Wl,-z,max-page-size=4096",
)


def compile_kernel(directory: Path) -> Path:
    """The image, in `directory`. Skips the test that asks when it cannot be compiled here."""
    needs_package("gcc", which("gcc") is not None)
    needs_package("libxen-dev", HEADER.exists())
    image = directory / "kernel.elf"
    sources = [str(each) for pattern in ("*.S", "*.c", "cases/*.c") for each in sorted(SOURCES.glob(pattern))]
    script = f"-Wl,-T,{SOURCES / 'kernel.lds'}"
    version = f"-D__XEN_INTERFACE_VERSION__={XEN_INTERFACE_VERSION}"
    command = ["gcc", *FLAGS, version, script, "-o", str(image), *sources]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not made.returncode, made.stderr
    return image
