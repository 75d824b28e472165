"""What `domzero boot` says of files and options that are wrong; no guest runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dom0.cli import app


def boot(*args: object) -> Result:
    return CliRunner().invoke(app, ["boot", *(str(arg) for arg in args)])


@pytest.fixture
def junk(tmp_path: Path) -> Path:
    (tmp_path / "junk").write_bytes(b"no kernel at all" * 100)
    return tmp_path / "junk"


def test_a_kernel_that_is_none(junk: Path) -> None:
    result = boot(junk)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "junk: at offset 0x0: magic b'no k', expected an ELF file, one in gzip, or a bzImage"
    )


@pytest.mark.parametrize("option", ["", "--ramdisk"])
def test_files_that_are_not_there(junk: Path, option: str) -> None:
    none = junk.with_name("none")
    result = boot(*([junk, option, none] if option else [none]))
    assert result.exit_code == 2
    assert result.stderr == f"{none}: No such file or directory\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", 3),
        ("--memory", 1 << 20),
        ("--vcpus", 0),
        ("--vcpus", 33),
        ("--timeout", -1),
        ("--disk", "nonsense"),
        ("--loop", "curio"),
    ],
)
def test_options_that_are_wrong(junk: Path, options: tuple[object, ...]) -> None:
    assert boot(junk, *options).exit_code == 2


def test_two_disks_of_one_name(junk: Path) -> None:
    result = boot(junk, "--disk", f"xvda={junk}", "--disk", f"xvda={junk}")
    assert result.exit_code == 2
    assert "another disk than xvda" in result.stderr


def test_a_report_that_cannot_be_written_is_told_first(junk: Path) -> None:
    result = boot(junk, "--json", junk / "report.json")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{junk}: ")


def test_a_report_on_a_guest_that_could_not_start(junk: Path) -> None:
    report = junk.with_name("report.json")
    assert boot(junk, "--json", report).exit_code == 2
    assert '"found": "not started"' in report.read_text()
