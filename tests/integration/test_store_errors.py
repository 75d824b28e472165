"""What a store has raised is in the report of the run: which error, with its text, and no more than fits."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends.block.memory import MemoryStore
from backends.errors import TOLD_CHARACTERS, StoreError, told
from dom0.launch.run import launch_scenario
from dom0.report.model import DeviceReport
from dom0.report.render import print_report
from dom0.scenario.model import Scenario
from frontends.block.errors import RequestFailed
from guests.disks import opened_disk
from kernel.kernel import Kernel
from kernel.xenbus.drivers import DeviceClosed

HERE = __name__


class NoSuchArray(StoreError):
    """The array behind a store is away."""


class Unspeakable(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unopenable(MemoryStore):
    def open(self) -> None:
        raise NoSuchArray("array 7 does not answer")


class Unclosable(MemoryStore):
    def close(self) -> None:
        super().close()
        raise NoSuchArray("array 8 keeps its lock")


class Unreadable(MemoryStore):
    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset < 4096:
            raise OSError(5, "Input/output error", "/dev/array9")
        if offset < 8192:
            raise NoSuchArray("x" * 10_000 + " the end")
        raise Unspeakable


async def reads(kernel: Kernel) -> int:
    """Opens its disk and reads, if that can be."""
    try:
        async with opened_disk(kernel, "xvda") as disk:
            await disk.read(0, 1)
    except (DeviceClosed, RequestFailed):
        return 0
    return 0


async def reads_long(kernel: Kernel) -> int:
    """Reads what fails at length."""
    async with opened_disk(kernel, "xvda") as disk:
        with pytest.raises(RequestFailed):
            await disk.read(8, 1)
    return 0


async def reads_silent(kernel: Kernel) -> int:
    """Reads what fails without a text."""
    async with opened_disk(kernel, "xvda") as disk:
        with pytest.raises(RequestFailed):
            await disk.read(16, 1)
    return 0


def launched(folder: Path, loop: str, store: str, program: str = "reads") -> tuple[DeviceReport, str]:
    """A run of a program with a disk on a store of this module: what is said of the disk, and what was printed."""
    disk = {"vdev": "xvda", "backend": f"{HERE}:{store}", "config": {"size": "1MiB"}}
    guest: dict[str, Any] = {"name": "g", "program": f"{HERE}:{program}", "disks": [disk]}
    scenario = Scenario.model_validate({"name": "t", "loop": loop, "output": "out", "guests": [guest]})
    output = StringIO()
    console = Console(file=output, width=200)
    report = launch_scenario(scenario, folder, console)
    print_report(report, console)
    assert report.ok, output.getvalue()
    (device,) = next(domain for domain in report.domains if domain.name == "g").devices
    return device, output.getvalue()


BOTH = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@BOTH
@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("Unopenable", f"{HERE}.NoSuchArray: array 7 does not answer"),
        ("Unclosable", f"{HERE}.NoSuchArray: array 8 keeps its lock"),
        ("Unreadable", "OSError: [Errno 5] Input/output error: '/dev/array9'"),
    ],
)
def test_the_report_names_the_error(tmp_path: Path, loop: str, store: str, expected: str) -> None:
    device, printed = launched(tmp_path, loop, store)
    assert (device.errors, device.last_error) == (1, expected)
    assert f"g xvda, the last error: {expected}" in printed


@BOTH
def test_a_long_text_is_cut_and_a_missing_one_does_no_harm(tmp_path: Path, loop: str) -> None:
    device, _ = launched(tmp_path, loop, "Unreadable", "reads_long")
    assert len(device.last_error) == TOLD_CHARACTERS
    assert device.last_error.endswith("x the end")
    device, _ = launched(tmp_path, loop, "Unreadable", "reads_silent")
    assert f"{HERE}.Unspeakable" in device.last_error
    assert "raise Unspeakable" in device.last_error  # a bug in a plug-in comes with its traceback


def test_what_is_told() -> None:
    assert told(NoSuchArray("why")) == f"{HERE}.NoSuchArray: why"
    assert told(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    assert told(KeyError("k")) == "KeyError: 'k'"
    assert len(told(NoSuchArray("y" * 5000))) == TOLD_CHARACTERS
