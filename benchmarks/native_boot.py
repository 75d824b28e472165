"""Debian's cloud kernel with 256 MiB, from power-on to its first process and to a shell, and its disk: here, and in
QEMU, whose x86-64 emulator (TCG) our engine was made of. Both boot the same kernel and the same initramfs in turns; the
quickest of each counts, since whatever else the machine does makes them slower.

Power-on is when the program is started. The bar: to the first process at most 1.5 times QEMU's time. The disk is read
past the guest's page cache (O_DIRECT): ours through blkfront and our blkback, QEMU's through virtio-blk.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.console_of import ConsoleOf
from benchmarks.results import Result
from guests.native import FOLDER, initramfs_file, kernel_file

FLAVOUR: Final = "cloud-amd64"
KERNEL: Final = FOLDER.absolute() / kernel_file(FLAVOUR)
INITRAMFS: Final = FOLDER.absolute() / initramfs_file(FLAVOUR)
MEMORY_MIB: Final = 256
OPTIONS: Final = "quiet nokaslr"
INIT: Final = b"domzero: init"
SHELL: Final = b"domzero:/# "
QEMU: Final = "qemu-system-x86_64"
ROUNDS: Final = 5
BAR_INIT: Final = 1.5
DISK_MIB: Final = 64
READS: Final = {"4 KiB": ("4k", 4000), "1 MiB": ("1M", DISK_MIB)}
"""block size as dd has it, and how many of them"""
KINDS_SHOWN: Final = 12


@dataclass
class Figures:
    """The best of all rounds: seconds from power-on, and of dd by size of a read."""

    init: float = float("inf")
    shell: float = float("inf")
    reads: dict[str, float] = field(default_factory=dict)


def measure() -> Iterator[Result]:
    """All figures; none where there is nothing to measure."""
    if not KERNEL.exists():
        print(f"no native boot: {KERNEL} is missing (make guests)")
        return
    qemu = shutil.which(QEMU)
    if qemu is None:
        print(f"no comparison of native boots: {QEMU} is missing")
    ours, theirs = Figures(), Figures()
    with tempfile.TemporaryDirectory() as folder:
        image, report = Path(folder) / "disk.img", Path(folder) / "report.json"
        image.write_bytes(os.urandom(DISK_MIB << 20))
        one_round(domzero(image, report), "xvda", Figures())  # modules are compiled, files are cached
        for _ in range(ROUNDS):
            one_round(domzero(image, report), "xvda", ours)
            if qemu:
                one_round(in_qemu(qemu, image), "vda", theirs)
        yield from boots(ours, theirs if qemu else None)
        yield from reads(ours, theirs if qemu else None)
        yield from hypercalls(report)


def one_round(command: list[str], disk: str, best: Figures) -> None:
    """One boot, to a shell that reads its disk and powers off."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with ConsoleOf(command, environment) as console:
        init = console.wait_for(INIT)
        shell = console.wait_for(SHELL)
        best.init = min(best.init, init - console.started)
        best.shell = min(best.shell, shell - console.started)
        for name, (size, count) in READS.items():
            dd = f"dd if=/dev/{disk} of=/dev/null bs={size} count={count} iflag=direct status=none"
            console.type(f"echo be''gin; {dd}; echo e''nd")
            start = console.wait_for(b"\nbegin")
            seconds = console.wait_for(b"\nend") - start
            best.reads[name] = min(best.reads.get(name, seconds), seconds)
            console.wait_for(SHELL)
        console.type("poweroff")
        console.status()


def domzero(image: Path, report: Path) -> list[str]:
    """The command that boots it here."""
    program = [sys.executable, "-c", "from dom0.cli import main; main()", "boot", str(KERNEL)]
    options = [
        "--ramdisk",
        str(INITRAMFS),
        "--memory",
        str(MEMORY_MIB),
        "--cmdline",
        f"console=hvc0 {OPTIONS}",
    ]
    return [*program, *options, "--disk", f"xvda={image}", "--json", str(report)]


def in_qemu(qemu: str, image: Path) -> list[str]:
    """The command that boots it in QEMU: nothing but a serial console and the disk."""
    machine = ["-accel", "tcg", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot"]
    drive = ["-drive", f"if=virtio,format=raw,file={image}"]
    boot = ["-kernel", str(KERNEL), "-initrd", str(INITRAMFS), "-append", f"console=ttyS0 {OPTIONS}"]
    return [qemu, *machine, "-serial", "stdio", *drive, *boot]


def boots(ours: Figures, theirs: Figures | None) -> Iterator[Result]:
    """Seconds from power-on."""
    init, shell = f"power-on to /init, cloud kernel, {MEMORY_MIB} MiB", "power-on to shell"
    if theirs is None:
        yield Result(init, ours.init * 1000, "ms")
        yield Result(shell, ours.shell * 1000, "ms")
        return
    yield Result(f"{init}, QEMU (TCG)", theirs.init * 1000, "ms")
    yield Result.at_most(init, ours.init * 1000, "ms", ours.init / theirs.init, BAR_INIT)
    yield Result(f"{shell}, QEMU (TCG)", theirs.shell * 1000, "ms")
    yield Result(shell, ours.shell * 1000, "ms", ours.shell / theirs.shell)


def reads(ours: Figures, theirs: Figures | None) -> Iterator[Result]:
    """Throughput of dd; the ratio is ours to QEMU's."""
    sizes = {"4 KiB": 4 << 10, "1 MiB": 1 << 20}
    for name, (_, count) in READS.items():
        mib = sizes[name] * count / (1 << 20)
        here = mib / ours.reads[name]
        if theirs is None:
            yield Result(f"dd of xvda, direct, {name}", here, "MiB/s")
            continue
        there = mib / theirs.reads[name]
        yield Result(f"dd of vda, direct, {name}, QEMU (virtio-blk)", there, "MiB/s")
        yield Result(f"dd of xvda, direct, {name}", here, "MiB/s", here / there)


def hypercalls(report: Path) -> Iterator[Result]:
    """Hypercalls of one round, by the time that they took."""
    guest = json.loads(report.read_text())["domains"][1]
    counts, means = guest["hypercalls"], guest["native"]["mean_us"]
    kinds = sorted(counts, key=lambda kind: -counts[kind] * means[kind])
    for kind in kinds[:KINDS_SHOWN]:
        yield Result(f"hypercall {kind}, how often in a boot with dd", counts[kind], "")
        yield Result(f"hypercall {kind}, mean", means[kind], "µs")
