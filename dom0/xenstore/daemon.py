"""The XenStore daemon of the control domain: the core, its rings and its Unix sockets, in one task group.

One task serves all clients in turn. Rings need no task of their own: a notification gives their connection a
turn.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import anyio
from anyio.abc import SocketListener, SocketStream, TaskStatus
from anyio.lowlevel import checkpoint

from dom0.xenstore import control_domain
from dom0.xenstore.connection import Transport
from dom0.xenstore.core import XenStore
from dom0.xenstore.domains import GetDomainInfo
from dom0.xenstore.ring import Ring, RingTransport
from dom0.xenstore.unix_socket import SocketClient
from kernel.parking import Latch
from ringbuffers.errors import RingMisuse

# Turns that are served before other tasks of the loop, guests among them, may run.
_TURNS_AT_A_TIME: Final = 8
# A look at the domains is followed by a rest so many times as long.
_REST: Final = 4
_SOCKET_MODE: Final = 0o600

ConnectDomain = Callable[[int, int, int], RingTransport]
"""Map the ring of (domain, frame number) and bind to its event channel port; CannotConnect if that fails."""


class Clock(Protocol):
    """The daemon's time, such as its kernel's."""

    @property
    def now_ns(self) -> Callable[[], int]: ...

    async def sleep_until(self, deadline_ns: int) -> None: ...


class XenStoreDaemon:
    """`run` serves until it is cancelled. `core` may be used directly by whoever shares the loop.

    info: what the hypervisor knows of a domain. connect_domain: how to reach a ring. log: takes a message.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        info: GetDomainInfo,
        connect_domain: ConnectDomain,
        log: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._log = log
        self._connect_domain = connect_domain
        self._work: Latch | None = None
        self._look: Latch | None = None
        self._sleep: anyio.CancelScope | None = None
        self._changed: set[int] | None = set()
        self.core = XenStore(now_ns=clock.now_ns, info=info, connect=self._connect, log=log)
        self.core.on_ready = self._on_ready
        self.core.on_deadline = self._on_deadline
        control_domain.describe(self.core)

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """What INTRODUCE does; for the control domain's own ring, which has nobody to ask for it.

        gfn: the frame of the ring in that domain. port: its end of the event channel. Raises Invalid.
        """
        self.core.domains.introduce(self.core, domid, gfn, port)

    def _connect(self, domid: int, gfn: int, port: int) -> Transport:
        way = self._connect_domain(domid, gfn, port)
        try:
            return Ring(domid, way)
        except RingMisuse:
            way.close()
            raise

    def domains_changed(self, domid: int | None = None) -> None:
        """Some domain, or this one, has shut down or died: to be called on VIRQ_DOM_EXC.

        Without a number all are looked at. Where that takes long, changes gather meanwhile, so that a
        thousand ends do not cost a thousand looks at a thousand domains.
        """
        if domid is None:
            self._changed = None
        elif self._changed is not None:
            self._changed.add(domid)
        if self._look is not None:
            self._look.set()

    async def run(
        self,
        sockets: Sequence[str | os.PathLike[str]] = (),
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve all clients. Started once the sockets exist; only this user can open them. When it is cancelled
        it unmaps the rings: a dead domain is kept by whoever has a page of it mapped.
        """
        self._work = Latch()
        self._look = Latch()
        self._look.set()
        try:
            async with anyio.create_task_group() as tasks:
                for path in sockets:
                    listener = await anyio.create_unix_listener(path, mode=_SOCKET_MODE)
                    tasks.start_soon(self._listen, listener, path)
                tasks.start_soon(self._keep_time)
                tasks.start_soon(self._look_at_domains, self._look)
                task_status.started()
                await self._serve(self._work)
        finally:
            self.core.domains.disconnect(self.core)

    async def _serve(self, work: Latch) -> None:
        core = self.core
        while True:
            for _ in range(_TURNS_AT_A_TIME):
                if not core.ready:
                    break
                core.turn()
            if core.ready:
                await checkpoint()
            else:
                await work.wait()

    async def _look_at_domains(self, look: Latch) -> None:
        """See who shut down or died, whenever somebody might have."""
        while True:
            await look.wait()
            changed, self._changed = self._changed, set()
            began = self._clock.now_ns()
            try:
                self.core.domains.check(self.core, changed)
            except Exception:
                self._log(f"cannot look at domains:\n{traceback.format_exc()}")
            ended = self._clock.now_ns()
            await self._clock.sleep_until(ended + _REST * (ended - began))

    async def _listen(self, listener: SocketListener, path: str | os.PathLike[str]) -> None:
        try:
            async with listener:
                await listener.serve(self._serve_client)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    async def _serve_client(self, stream: SocketStream) -> None:
        try:
            await SocketClient(self.core, stream).run()
        except Exception:
            self._log(f"a socket client is closed after an error of ours:\n{traceback.format_exc()}")

    async def _keep_time(self) -> None:
        """Call `expire` when it is due."""
        while True:
            with anyio.CancelScope() as self._sleep:
                deadline = self.core.next_deadline_ns
                if deadline is None:
                    await anyio.sleep_forever()
                else:
                    await self._clock.sleep_until(deadline)
                    self.core.expire()

    def _on_ready(self) -> None:
        if self._work is not None:
            self._work.set()

    def _on_deadline(self) -> None:
        if self._sleep is not None:
            self._sleep.cancel()
