"""`domzero launch` as a person runs it: a process of its own, with pipes, a terminal and Ctrl-C."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from dom0.report.model import RunReport
from dom0.scenario.expectations import sha256_of

ROOT: Final = Path(__file__).parents[2]
DOMZERO: Final = shutil.which("domzero", path=str(Path(sys.executable).parent)) or "domzero"
PATIENCE_S: Final = 120

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


def launched(file: Path, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOMZERO, "launch", str(file), *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# The demo


@LOOPS
def test_the_demo(loop: str, tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    file = shutil.copy(ROOT / "scenarios" / "demo.yaml", tmp_path / "scenarios")
    run = launched(Path(file), "--loop", loop, "--json", str(tmp_path / "report.json"), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    report = RunReport.model_validate_json((tmp_path / "report.json").read_text())
    assert (report.ok, report.loop, report.problems, report.faults) == (True, loop, [], [])
    guests = {domain.name: domain for domain in report.domains}
    assert list(guests) == ["Domain-0", "greeter", "painter", "scribbler", "copier", "bystander"]
    assert all(result.held for result in report.expectations)
    assert all(domain.exit_code == 0 and not domain.grants.leaked for domain in report.domains[1:])
    (disk,) = guests["painter"].devices
    assert disk.errors == 0
    assert disk.bytes_written > 16 << 20
    assert disk.latency.p99_us >= disk.latency.p50_us > 0
    out = tmp_path / "demo-out"
    assert sha256_of(out / "copy.img") == sha256_of(out / "painting.img")
    assert (out / "greeter.log").read_text() == "Good morning from greeter, domain 1\n"
    assert f"demo: every guest ended well after {report.seconds:.2f} s on {loop}" in run.stdout


@LOOPS
def test_disks_from_a_driver_domain(loop: str, tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    file = shutil.copy(ROOT / "scenarios" / "driver-domain.yaml", tmp_path / "scenarios")
    run = launched(Path(file), "--loop", loop, "--json", str(tmp_path / "report.json"), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    report = RunReport.model_validate_json((tmp_path / "report.json").read_text())
    guests = {domain.name: domain for domain in report.domains}
    assert [device.name for device in guests["disks"].served] == ["painter-xvda", "copier-xvdb"]
    assert [device.backend_domain for device in guests["copier"].devices] == ["", "disks"]
    out = tmp_path / "driver-domain-out"
    assert sha256_of(out / "copy.img") == sha256_of(out / "painting.img")


def test_the_demo_is_right_and_documented_by_its_schema() -> None:
    run = subprocess.run(
        [DOMZERO, "check", "scenarios/demo.yaml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("nothing wrong\n")


# Whoever reads the output


@LOOPS
def test_a_reader_that_goes_away_disturbs_nothing(loop: str, tmp_path: Path) -> None:
    file = scenario(tmp_path, *(f"{{name: g{i}, program: hello, args: {{times: 50}}}}" for i in range(3)))
    command = [DOMZERO, "launch", str(file), "--loop", loop, "--json", str(tmp_path / "report.json")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait(PATIENCE_S) == 0
    assert RunReport.model_validate_json((tmp_path / "report.json").read_text()).ok


def test_a_disk_that_is_full_disturbs_nothing(tmp_path: Path) -> None:
    file = scenario(tmp_path, "{name: a, program: hello}")
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [DOMZERO, "launch", str(file), "--json", str(tmp_path / "report.json")],
            cwd=ROOT,
            stdout=full,
            timeout=PATIENCE_S,
            check=False,
        )
    assert run.returncode == 0
    assert RunReport.model_validate_json((tmp_path / "report.json").read_text()).ok


@LOOPS
def test_a_terminal_sees_a_live_table_and_then_the_report(loop: str, tmp_path: Path) -> None:
    file = scenario(tmp_path, "{name: sleeper, program: idle, args: {seconds: 0.5}}")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [DOMZERO, "launch", str(file), "--loop", loop],
        cwd=ROOT,
        env=environment,
        stdout=theirs,
        stderr=theirs,
    ) as run:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # as a terminal says that nobody is left
            pass
        assert run.wait(PATIENCE_S) == 0
    os.close(ours)
    text = shown.decode()
    assert "sleeper │ idle" in text
    assert "blocked" in text
    table, _, report = text.partition("Domains")
    assert "\x1b[2K" in table  # the table is drawn anew in its place
    assert "\x1b[?25h" in table  # and the cursor is there again
    assert "scenario: every guest ended well" in report


# Ctrl-C


def scenario(folder: Path, *guests: str) -> Path:
    file = folder / "scenario.yaml"
    lines = "".join(f"  - {guest}\n" for guest in guests)
    file.write_text(f"name: scenario\noutput: out\nguests:\n{lines}")
    return file


class Running:
    """A run that goes on until it is interrupted."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._output = output

    def until(self, *parts: str) -> None:
        """Reads until each of `parts` was in some line, in any order."""
        missing = set(parts)
        while missing:
            line = self._output.readline()
            assert line, f"{missing} never came: {self.lines}"
            self.lines.append(line)
            missing = {part for part in missing if part not in line}

    def end(self) -> int:
        """Its status; what it still prints is read."""
        self.lines += self._output.readlines()
        return self.process.wait(PATIENCE_S)

    def ended(self) -> list[str]:
        """Names of guests, in the order in which they ended."""
        return [line.split()[1] for line in self.lines if "has ended:" in line]


@contextmanager
def running(file: Path, loop: str) -> Iterator[Running]:
    command = [DOMZERO, "launch", str(file), "--loop", loop, "--json", str(file.parent / "report.json")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            yield Running(process, process.stdout)
        finally:
            watchdog.cancel()
            process.kill()


@LOOPS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_ends_the_guests_in_order(loop: str, number: signal.Signals, tmp_path: Path) -> None:
    file = scenario(tmp_path, *(f"{{name: {name}, program: idle}}" for name in ("first", "second", "third")))
    with running(file, loop) as run:
        run.until("first │ idle", "second │ idle", "third │ idle")
        run.process.send_signal(number)
        assert run.end() == 1
    assert run.ended() == ["third", "second", "first"]
    report = RunReport.model_validate_json((tmp_path / "report.json").read_text())
    assert not report.ok
    assert [(domain.outcome, domain.exit_code) for domain in report.domains[1:]] == [("poweroff", 0)] * 3
    assert report.problems == [
        "the scenario was interrupted; its guests are asked to shut down (again: destroyed)"
    ]
    assert all(result.held for result in report.expectations)
    assert not any("Traceback" in line for line in run.lines)


@LOOPS
def test_two_interrupts_destroy_them(loop: str, tmp_path: Path) -> None:
    file = scenario(
        tmp_path,
        "{name: deaf, program: 'tests.dom0.programs:deaf'}",
        "{name: idle, program: idle}",
        "{name: never, program: hello, start_after: deaf}",
    )
    with running(file, loop) as run:
        run.until("deaf starts as domain 1", "idle │ idle")
        run.process.send_signal(signal.SIGINT)
        run.until("idle has ended: poweroff, exit code 0")
        run.process.send_signal(signal.SIGINT)
        run.until("destroying what still runs", "deaf has ended: destroyed")
        assert run.end() == 1
    assert not any("Traceback" in line for line in run.lines)
    report = RunReport.model_validate_json((tmp_path / "report.json").read_text())
    assert [domain.outcome for domain in report.domains[1:]] == ["destroyed", "poweroff"]
    assert report.problems[-1] == "never did not run to its end"


# What a person may do wrong


def test_a_wrong_file_runs_nothing(tmp_path: Path) -> None:
    run = launched(scenario(tmp_path, "{name: a, program: helo}"))
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        f"{tmp_path}/scenario.yaml:4: guests[0].program: found 'helo'; "
        "expected a ready-made guest (hello, perhaps) or module:function\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_program_beside_the_current_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_guest.py").write_text("async def main(kernel):\n    return 7\n")
    file = scenario(tmp_path, "{name: a, program: 'my_guest:main', expect: {exit_code: 7}}")
    assert launched(file, cwd=tmp_path).returncode == 0
