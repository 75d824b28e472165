"""A client on a ring page whose other end is the test: it reads requests and writes any bytes it likes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from kernel.events import EventPort
from kernel.xenstore import XenStoreClient
from ringbuffers.protocols.xs_wire import Message, Parser, XenstorePage
from tests.kernel.guests import BareKernel, bare_machine

PATIENCE_S: Final = 10.0
TURNS: Final = 20
"""Turns of the loop after which nothing moves any more."""


@asynccontextmanager
async def limited_tasks() -> AsyncIterator[TaskGroup]:
    """A task group that fails when it hangs."""
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            yield tasks


class Scripted:
    """A client, and the daemon's end of its ring. `notified`: how often the daemon was."""

    def __init__(self) -> None:
        machine = bare_machine()
        dom0, guest = BareKernel(machine), BareKernel(machine)
        self.page = guest.pages.allocate().view
        self.kernel = guest
        self.port: EventPort = guest.events.alloc_unbound(dom0.domid)
        self._remote = dom0.events.bind_interdomain(guest.domid, self.port.port)
        self._dom0 = dom0
        self.notified = 0
        self._remote.on_event = self._count
        dom0.events.dispatch()
        guest.events.dispatch()
        self.notified = 0
        self.client = XenStoreClient(self.page, self.port)
        self.shared = XenstorePage(self.page)
        self._requests, self.replies = self.shared.daemon_side()
        self._parser = Parser()

    def _count(self) -> None:
        self.notified += 1

    def requests(self) -> list[Message]:
        """What the client has sent since the last call. Reading makes room, of which it is notified."""
        found = self._parser.feed(self._requests.read())
        self._dom0.events.dispatch()
        self.notify()
        return found

    def send(self, data: bytes) -> int:
        """Write bytes to the client, as many as fit, and notify it."""
        written = self.replies.write(data)
        self.notify()
        return written

    def reply(self, kind: int, req_id: int, payload: bytes = b"OK\0", tx_id: int = 0) -> None:
        """Send one message that fits."""
        data = Message(kind, req_id, tx_id, payload).pack()
        assert self.send(data) == len(data)

    def notify(self) -> None:
        """An event for the client, delivered at once."""
        self._remote.notify()
        self.kernel.events.dispatch()

    async def settle(self) -> None:
        """Let the client's tasks do what they can."""
        for _ in range(TURNS):
            await checkpoint()
