"""`domzero xenstored` with Debian's own xenstore tools as clients: XenStore in CI, with no hypervisor."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.requirements import needs_package

DOMZERO: Final = shutil.which("domzero", path=str(Path(sys.executable).parent)) or "domzero"
PATIENCE_S: Final = 60

pytestmark = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def tools() -> None:
    needs_package("xenstore-utils", shutil.which("xenstore-read") is not None)


class Daemon:
    """A daemon in a process of its own, and tools that are led to it."""

    def __init__(self, process: subprocess.Popen[str], socket: Path) -> None:
        self.process = process
        self.socket = socket
        self._environment = {
            **os.environ,
            "XENSTORED_PATH": str(socket),
            "XENSTORED_RUNDIR": str(socket.parent),
        }

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [f"xenstore-{name}", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [f"xenstore-{name}", *arguments], env=self._environment, stdout=subprocess.PIPE, text=True
        )


@contextmanager
def serving(socket: Path, loop: str) -> Iterator[Daemon]:
    with subprocess.Popen(
        [DOMZERO, "xenstored", "--socket", str(socket), "--loop", loop], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # which comes when clients can connect, through a pipe too
            assert line == f"XenStore is served on {socket}; XENSTORED_PATH={socket} leads clients to it\n"
            yield Daemon(process, socket)
        finally:
            process.kill()


def test_what_one_tool_writes_another_reads(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path / "socket", loop) as daemon:
        assert daemon.tool("write", "/test/a", "one", "/test/b", "two words").returncode == 0
        assert daemon.tool("read", "/test/a", "/test/b").stdout == "one\ntwo words\n"
        assert daemon.tool("list", "/test").stdout == "a\nb\n"
        assert daemon.tool("ls", "/test").stdout == 'a = "one"\nb = "two words"\n'
        assert daemon.tool("chmod", "-r", "/test", "n0", "r5").returncode == 0
        assert '/test/b = "two words"   (n0,r5)' in daemon.tool("ls", "-fp", "/").stdout
        assert daemon.tool("rm", "/test").returncode == 0
        assert daemon.tool("exists", "/test").returncode == 1
        assert daemon.tool("read", "/test/a").returncode != 0


def test_a_fresh_store_is_a_xen_s_before_any_guest(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path / "socket", loop) as daemon:
        assert daemon.tool("read", "/local/domain/0/name").stdout == "Domain-0\n"
        assert daemon.tool("list", "/").stdout == "tool\nlocal\n"


def test_a_watch_hears_of_a_write(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path / "socket", loop) as daemon, daemon.start("watch", "-n", "2", "/test") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "/test\n"  # for the watch itself
        daemon.tool("write", "/test/a", "one")
        assert watch.stdout.readline() == "/test/a\n"
        assert watch.wait(PATIENCE_S) == 0


def test_it_ends_when_it_is_told_and_takes_its_socket_with_it(loop: str, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(tmp_path / "socket", loop) as daemon:
            daemon.tool("write", "/a", "b")
            daemon.process.send_signal(number)
            assert daemon.process.wait(PATIENCE_S) == 0
        assert not (tmp_path / "socket").exists()


def test_a_second_daemon_on_the_same_socket_is_refused(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path / "socket", loop) as daemon:
        second = subprocess.run(
            [DOMZERO, "xenstored", "--socket", str(daemon.socket), "--loop", loop],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr == f"{daemon.socket}: a daemon serves this socket already\n"
        assert daemon.tool("read", "/local/domain/0/domid").stdout == "0\n"


def test_a_daemon_that_was_killed_leaves_no_obstacle(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path / "socket", loop) as daemon:
        daemon.process.kill()
        daemon.process.wait(PATIENCE_S)
        assert daemon.socket.exists()
    with serving(tmp_path / "socket", loop) as daemon:
        assert daemon.tool("read", "/local/domain/0/domid").stdout == "0\n"
