"""`domzero boot` on the command line."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dom0.boot.disks import parse_disk
from dom0.boot.run import BootOptions, BootResult, boot_kernel
from dom0.boot.status import Status
from dom0.report.files import prepare, write_report
from dom0.report.printable import printable
from dom0.scenario.model import MAX_VCPUS, MIB, PAGE_BYTES, DiskSpec, Loop
from dom0.toolstack.pv_builder import MAX_PAGES
from dom0.vdev import vdev_number

MAX_MEMORY_MIB: Final = MAX_PAGES * PAGE_BYTES // MIB
STDIN: Final = 0
STDOUT: Final = 1


def boot(  # noqa: PLR0917 - typer makes options of them
    kernel: Annotated[Path, typer.Argument(metavar="KERNEL", help="a PV kernel: an ELF image or a bzImage")],
    ramdisk: Annotated[Path | None, typer.Option(metavar="FILE", help="the kernel's initial ramdisk")] = None,
    cmdline: Annotated[str, typer.Option(metavar="TEXT", help="the kernel's command line")] = "",
    memory: Annotated[int, typer.Option(metavar="MIB", min=4, max=MAX_MEMORY_MIB, help="RAM")] = 256,
    vcpus: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_VCPUS, help="how many it has")] = 1,
    disk: Annotated[
        list[DiskSpec] | None,
        typer.Option(metavar="VDEV=PATH[,ro]", parser=parse_disk, help="an image, and its name in the guest"),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="destroy the guest after so many seconds")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="REPORT", help="write the report here")
    ] = None,
    loop: Annotated[Loop, typer.Option(help="the event loop")] = Loop.ASYNCIO,
) -> None:
    """Boot a native kernel, its console here. Ctrl-] leaves: the guest is asked to power off.

    The status is 0 if it has powered off, 3: crashed, 4: its time was up, 5: it asks to be started again, 6: suspended,
    7: its watchdog bit, 8: destroyed. It is 2 if the kernel or an option is wrong, 1 if the machine failed.
    """
    for file in filter(None, (kernel, ramdisk)):
        _check_readable(file)
    options = BootOptions(
        kernel.absolute(),
        ramdisk.absolute() if ramdisk else None,
        cmdline,
        memory,
        vcpus,
        _different(disk or []),
        timeout,
        loop,
    )
    try:
        result = _boot(options, report)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"{where}{error.strerror or error}", err=True)
        raise typer.Exit(Status.FAILED) from error
    for line in result.words:
        typer.echo(printable(line), err=True)
    raise typer.Exit(result.status)


def _boot(options: BootOptions, report: Path | None) -> BootResult:
    if report is not None:
        prepare(report)
    result = boot_kernel(options, STDIN, STDOUT)
    if report is not None:
        write_report(report, result.report)
    return result


def _different(disks: list[DiskSpec]) -> tuple[DiskSpec, ...]:
    """The disks. Raises typer.BadParameter if two have the same number."""
    taken: dict[int, str] = {}
    for disk in disks:
        number = vdev_number(disk.vdev)
        if number in taken:
            expected = f"another disk than {taken[number]}, which is there already"
            raise typer.BadParameter(f"{disk.vdev}: expected {expected}", param_hint="--disk")
        taken[number] = disk.vdev
    return tuple(disks)


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        typer.echo(f"{file}: {error.strerror}", err=True)
        raise typer.Exit(Status.BAD_IMAGE) from error
