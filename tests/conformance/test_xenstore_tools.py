"""Debian's stock xenstore-* tools, built on Xen's own libxenstore, against our daemon's socket."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio.lowlevel import checkpoint
from anyio.streams.text import TextReceiveStream

from dom0.xenstore.clock import MonotonicClock
from dom0.xenstore.core import no_domains
from dom0.xenstore.daemon import XenStoreDaemon
from dom0.xenstore.errors import CannotConnect
from dom0.xenstore.ring import RingTransport
from ringbuffers.protocols.xs_wire import XS_MKDIR, Message
from tests.requirements import needs_package

pytestmark = pytest.mark.anyio

IDLE: Final = Path(__file__).parents[1] / "data" / "xenstore-dom0-idle.txt"


@pytest.fixture(autouse=True)
def tools() -> None:
    needs_package("xenstore-utils", shutil.which("xenstore-read") is not None)


def no_ring(domid: int, gfn: int, port: int) -> RingTransport:
    raise CannotConnect(domid, "no guests here")


class Tools:
    """Runs a tool on one daemon."""

    def __init__(self, daemon: XenStoreDaemon, socket: Path) -> None:
        self.daemon = daemon
        self.environment = {
            **os.environ,
            "XENSTORED_PATH": str(socket),
            "XENSTORED_RUNDIR": str(socket.parent),
        }

    async def run(self, *command: str) -> str:
        """What the tool prints; CalledProcessError if it fails."""
        with anyio.fail_after(20):
            result = await anyio.run_process(command, env=self.environment, stderr=subprocess.STDOUT)
        return result.stdout.decode()

    async def fails(self, *command: str) -> bool:
        try:
            await self.run(*command)
        except subprocess.CalledProcessError:
            return True
        return False


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Tools]:
    socket = folder / "socket"
    daemon = XenStoreDaemon(clock=MonotonicClock(), info=no_domains, connect_domain=no_ring, log=print)
    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run, [socket])
        yield Tools(daemon, socket)
        tasks.cancel_scope.cancel()


async def test_ls_shows_what_it_shows_on_xen_with_no_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        listing = (await tools.run("xenstore-ls", "-fp", "/")).splitlines()
        recorded = [line for line in IDLE.read_text().splitlines() if not line.startswith("#")]
        assert [" ".join(line.split()) for line in listing] == [" ".join(line.split()) for line in recorded]


async def test_write_read_list_exists_remove(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        await tools.run("xenstore-write", "/a/b", "one", "/a/c", "two words")
        assert await tools.run("xenstore-read", "/a/b", "/a/c") == "one\ntwo words\n"
        assert await tools.run("xenstore-list", "/a") == "b\nc\n"
        await tools.run("xenstore-exists", "/a/b")
        assert await tools.fails("xenstore-exists", "/a/none")
        await tools.run("xenstore-rm", "/a/b")
        assert await tools.run("xenstore-list", "/a") == "c\n"
        assert await tools.fails("xenstore-read", "/a/b")


async def test_relative_paths_are_the_control_domains(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        assert await tools.run("xenstore-read", "name") == "Domain-0\n"


async def test_chmod_reaches_all_below(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        await tools.run("xenstore-write", "/a/b/c", "x")
        await tools.run("xenstore-chmod", "-r", "/a", "n0", "r5")
        assert "(n0,r5)" in (await tools.run("xenstore-ls", "-p", "/a"))


async def test_values_of_any_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        await tools.run("xenstore-write", "/raw", "\\x01tab\\there\\\\")
        assert await tools.run("xenstore-read", "/raw") == "\\001tab\\there\\\\\n"


async def test_a_long_directory_is_listed_in_parts(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        names = [f"a-child-with-a-long-name-{number}" for number in range(500)]
        client = tools.daemon.core.connect()
        for name in names:
            tools.daemon.core.receive(client, Message(XS_MKDIR, 1, 0, f"/many/{name}\0".encode()).pack())
            while client.queued or client.inbox:
                await checkpoint()
            client.output.clear()
        assert (await tools.run("xenstore-list", "/many")).split() == names


async def test_watch_prints_every_change(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        command = ("xenstore-watch", "-n", "3", "/w")
        async with await anyio.open_process(command, env=tools.environment, stderr=None) as watcher:
            assert watcher.stdout is not None
            printed = ""
            with anyio.fail_after(20):
                async for text in TextReceiveStream(watcher.stdout):
                    printed += text
                    if printed == "/w\n":
                        await tools.run("xenstore-write", "/w/x", "1")
                    elif printed == "/w\n/w/x\n":
                        await tools.run("xenstore-rm", "/w")
        assert printed == "/w\n/w/x\n/w\n"


async def test_a_tool_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as tools:
        before = len(tools.daemon.core.connections)
        async with await anyio.open_process(
            ("xenstore-watch", "/"), env=tools.environment, stderr=None
        ) as watcher:
            assert watcher.stdout is not None
            await watcher.stdout.receive()
            assert len(tools.daemon.core.connections) == before + 1
            watcher.kill()
        with anyio.fail_after(20):
            while len(tools.daemon.core.connections) > before:
                await checkpoint()


async def test_many_clients_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as tools, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(tools.run, "xenstore-write", f"/many/{number}", "x" * 1500)


async def test_only_this_user_may_open_the_socket(tmp_path: Path) -> None:
    async with running(tmp_path):
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "socket").exists()
