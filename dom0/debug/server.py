"""A running machine answers its user's questions on a Unix socket.

A client connects, writes a word and a line feed, reads JSON until the end, and is done. The only word is `audit`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import SocketStream

from dom0.debug.audit import audit_machine
from dom0.debug.places import make_sockets_folder, socket_of

if TYPE_CHECKING:
    from dom0.embedding.machine import RunningMachine

AUDIT: Final = b"audit\n"
ASKING_SECONDS: Final = 5.0


@asynccontextmanager
async def answering(machine: "RunningMachine") -> AsyncIterator[None]:
    """Answer inside this context. Where no socket can be made, the machine runs without: its log says so."""
    pid = os.getpid()
    path = socket_of(pid)
    try:
        make_sockets_folder()
        path.unlink(missing_ok=True)
        listener = await anyio.create_unix_listener(path, mode=0o600)
    except OSError as error:
        machine.log(f"no `domzero debug` for this machine: {error}")
        yield
        return
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, partial(_answer, machine, pid))
            yield
            tasks.cancel_scope.cancel()
    finally:
        path.unlink(missing_ok=True)


async def _answer(machine: "RunningMachine", pid: int, stream: SocketStream) -> None:
    """One client. Whatever it does harms nobody else."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
        async with stream:
            asked = b""
            with anyio.move_on_after(ASKING_SECONDS):
                while len(asked) < len(AUDIT) and not asked.endswith(b"\n"):
                    asked += await stream.receive(len(AUDIT) - len(asked))
            if asked == AUDIT:
                audit = await audit_machine(machine, pid)
                await stream.send(audit.model_dump_json().encode())
