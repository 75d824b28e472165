"""`domzero boot` as a person and as a script use it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guests.native import initramfs_file, kernel_file
from tests.native.guests import CLOUD, GUESTS, PATIENCE_S

pytestmark = pytest.mark.usefixtures("native_guests")

LINUX = [GUESTS / kernel_file(CLOUD), "--ramdisk", GUESTS / initramfs_file(CLOUD)]
DOMZERO = [sys.executable, "-c", "from dom0.cli import main; main()", "boot"]
CTRL_RIGHT_BRACKET = b"\x1d"


def boot(*options: object, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*DOMZERO, *LINUX, *options]
    return subprocess.run(
        [str(word) for word in command], input=typed, capture_output=True, check=False, timeout=PATIENCE_S
    )


@pytest.mark.parametrize(
    ("script", "options", "status", "words"),
    [
        ("poweroff", (), 0, ""),
        ("reboot", (), 5, "the guest asks to be started again\n"),
        ("echo c > /proc/sysrq-trigger", (), 3, "the guest has ended: crash\n"),
        ("while :; do :; done", ("--timeout", "0.5"), 4, "the guest was destroyed after 0.5 s\n"),
    ],
)
def test_the_status_says_how_it_ended(
    tmp_path: Path, script: str, options: tuple[str, ...], status: int, words: str
) -> None:
    report = tmp_path / "report.json"
    done = boot("--cmdline", f'quiet script="{script}"', "--json", report, *options)
    assert done.returncode == status
    assert done.stderr.decode().startswith(words)
    assert json.loads(report.read_text())["ok"] == (status == 0)
    if not options:
        assert b"domzero: init" in done.stdout


def test_what_is_piped_in_is_typed_and_its_end_is_not_the_guest_s() -> None:
    done = boot("--cmdline", "quiet", "--loop", "trio", typed=b"echo one''two\rsleep 1\rpoweroff\r")
    assert done.returncode == 0
    assert b"\nonetwo\r\n" in done.stdout


def test_a_pipe_that_nobody_reads_any_more() -> None:
    command = [str(word) for word in (*DOMZERO, *LINUX)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0


class Screen:
    """A terminal with somebody in front of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def expect(self, text: bytes) -> None:
        """Waits until it is shown."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0], self.seen[-2000:]
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(text)[2]


@contextmanager
def at_terminal() -> Iterator[tuple[subprocess.Popen[bytes], Screen]]:
    """Linux at its prompt on a terminal."""
    screen, terminal = pty.openpty()
    command = [str(word) for word in (*DOMZERO, *LINUX, "--cmdline", "quiet")]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    try:
        person = Screen(screen)
        person.expect(b"domzero:/# ")
        yield process, person
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_on_a_terminal_every_key_is_the_guest_s_but_the_one_that_leaves() -> None:
    with at_terminal() as (process, person):
        os.write(person.fd, b"echo go''ing; cat\r")
        person.expect(b"going")
        os.write(person.fd, b"x\r\x03")  # Ctrl-C ends the guest's cat, and nothing here
        person.expect(b"domzero:/# ")
        os.write(person.fd, b"echo still''here\r")
        person.expect(b"stillhere")
        os.write(person.fd, CTRL_RIGHT_BRACKET)
        person.expect(b"reboot: ")
        assert process.wait(PATIENCE_S) == 0


def test_a_signal_asks_it_to_power_off() -> None:
    with at_terminal() as (process, person):
        process.send_signal(signal.SIGTERM)
        person.expect(b"reboot: ")
        assert process.wait(PATIENCE_S) == 0
