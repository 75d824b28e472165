"""XenStore alone on a socket."""

import errno
import os
import signal
import socket
from pathlib import Path

import anyio
import pytest

from dom0.xenstored import serve_xenstore
from ringbuffers.protocols.xs_wire import XS_READ, XS_WRITE, Message, Parser

pytestmark = pytest.mark.anyio


class Served:
    """A daemon that runs beside the test. said: what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self.up = anyio.Event()
        self.over = anyio.Event()

    async def run(self) -> None:
        await serve_xenstore(self.path, log=self._hear)
        self.over.set()

    def _hear(self, line: str) -> None:
        self.said.append(line)
        self.up.set()

    async def ask(self, kind: int, payload: bytes) -> bytes:
        async with await anyio.connect_unix(self.path) as stream:
            await stream.send(Message(kind, 1, 0, payload).pack())
            parser = Parser()
            while not (messages := parser.feed(await stream.receive())):
                pass
            return messages[0].payload


async def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    served = Served(tmp_path / "socket")
    for number in (signal.SIGINT, signal.SIGTERM):
        served = Served(tmp_path / "socket")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(served.run)
                await served.up.wait()
                assert await served.ask(XS_WRITE, b"/a/b\0value") == b"OK\0"
                assert await served.ask(XS_READ, b"/a/b\0") == b"value"
                os.kill(os.getpid(), number)
                await served.over.wait()
        assert not served.path.exists()
    path = served.path
    assert served.said == [f"XenStore is served on {path}; XENSTORED_PATH={path} leads clients to it"]


async def test_only_its_user_may_open_the_socket(tmp_path: Path) -> None:
    served = Served(tmp_path / "socket")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.run)
        await served.up.wait()
        assert served.path.stat().st_mode & 0o777 == 0o600
        tasks.cancel_scope.cancel()


async def test_a_socket_that_is_served_is_left_alone(tmp_path: Path) -> None:
    served = Served(tmp_path / "socket")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.run)
        await served.up.wait()
        with pytest.raises(OSError, match="serves this socket already") as caught:
            await serve_xenstore(served.path, log=print)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(served.path))
        assert await served.ask(XS_READ, b"/local/domain/0/name\0") == b"Domain-0"
        tasks.cancel_scope.cancel()


async def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    served = Served(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.run)
        await served.up.wait()
        assert await served.ask(XS_READ, b"/local/domain/0/name\0") == b"Domain-0"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["none/socket", "x" * 150])
async def test_a_path_that_cannot_be_a_socket(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        await serve_xenstore(tmp_path / name, log=print)
    assert caught.value.filename == str(tmp_path / name)
