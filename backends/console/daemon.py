"""xenconsoled's job: a session for every domain that has a console, from its introduction to its end.

It watches @introduceDomain, @releaseDomain and each domain's `console` folder, and asks the hypervisor which domains there
are. New domains have higher ids than those before, so that one is found without looking at all; who has ended is found by
looking at all, at most a fifth of the time.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from backends.console.keys import NODES, console_keys
from backends.console.log import DEFAULT_LIMIT_BYTES, ConsoleLog
from backends.console.session import ConsoleSession
from backends.console.terminal import ConsoleEnded, Terminal
from backends.console.terminal import DEFAULT_LIMIT_BYTES as TERMINAL_BYTES
from hypervisor.abi.domctl import XEN_DOMINF_dying
from hypervisor.abi.xen import DOMID_FIRST_RESERVED
from kernel.errors import KernelError
from kernel.kernel import Kernel
from kernel.parking import Broadcast, Latch
from kernel.xenbus.folder import read_folder
from kernel.xenstore.errors import StoreConnectionBroken

_AT_A_TIME: Final = 16  # domains asked for in one hypercall
_REST: Final = 4  # times as long as a look at all domains took
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
_ENDED_KEPT: Final = 4096


class ConsoleDaemon:
    """`run` serves until it is cancelled. Logs are `console-<name>.log` in `folder`.

    log: takes the daemon's own messages. log_limit_bytes: how large the log of a domain may get; twice that is kept.
    """

    def __init__(
        self,
        kernel: Kernel,
        folder: Path,
        *,
        log: Callable[[str], None],
        log_limit_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        self._kernel = kernel
        self._folder = folder
        self._log = log
        self._log_limit_bytes = log_limit_bytes
        self._sessions: dict[int, ConsoleSession] = {}
        self._ended: dict[int, ConsoleSession] = {}
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._next_domid = 1
        self._introduced = Latch()
        self._released = Latch()
        self._changed = Broadcast()

    async def run(self) -> None:
        """Serves all consoles until it is cancelled, or the connection to XenStore breaks."""
        store = self._kernel.store
        try:
            async with (
                store.watch("@introduceDomain", self._introduced.set),
                store.watch("@releaseDomain", self._released.set),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._end_the_gone, tasks)
                while True:
                    await self._introduced.wait()
                    self._begin_new(tasks)
        except* StoreConnectionBroken as broken:
            self._log(f"console daemon: {broken.exceptions[0]}")

    def output(self, domid: int) -> str:
        """What is kept of what a domain printed, ended or not; empty if it is unknown. Raises OSError."""
        session = self._find(domid)
        if session is None:
            return ""
        session.exchange()
        return session.output.content().decode("utf-8", "replace")

    def last_line(self, domid: int) -> str:
        """The last line that a domain printed."""
        session = self._find(domid)
        return "" if session is None else session.last_line

    def log_path(self, domid: int) -> Path | None:
        """Where a domain's console is logged, if it has one."""
        session = self._find(domid)
        return None if session is None else session.output.path

    async def attached(self, domid: int) -> AbstractContextManager[Terminal]:
        """A terminal on a domain's console, to be used as a context; waits for the domain to appear.

        Raises:
            ConsoleEnded: the domain is gone.
        """
        while domid not in self._sessions:
            if domid in self._ended:
                raise ConsoleEnded(domid)
            await self._changed.wait()
        return self._sessions[domid].attached(TERMINAL_BYTES)

    def _find(self, domid: int) -> ConsoleSession | None:
        return self._sessions.get(domid) or self._ended.get(domid)

    def _begin_new(self, tasks: TaskGroup) -> None:
        """Begins sessions for the domains that have appeared above those seen so far."""
        before = self._next_domid
        while found := self._living(self._next_domid, tasks):
            self._next_domid = found + 1
        if before == self._next_domid:
            self._released.set()  # domain ids have begun anew: look at all

    def _living(self, first: int, tasks: TaskGroup, seen: set[int] | None = None) -> int:
        """Begins what is new among a few domains from `first` on, notes all in `seen`; returns the last, 0 if none."""
        last = 0
        for info in self._kernel.hypercalls.getdomaininfolist(first, _AT_A_TIME):
            last = info.domain
            if info.flags & XEN_DOMINF_dying or not 0 < last < DOMID_FIRST_RESERVED:
                continue
            if seen is not None:
                seen.add(last)
            if last not in self._scopes:
                self._scopes[last] = anyio.CancelScope()
                tasks.start_soon(self._serve, last, self._scopes[last])
        return last

    async def _end_the_gone(self, tasks: TaskGroup) -> None:
        """Ends the sessions of domains that die, and begins those that were overlooked."""
        clock = self._kernel.clock
        while True:
            await self._released.wait()
            started_ns = clock.now_ns()
            seen: set[int] = set()
            first = 1
            while last := self._living(first, tasks, seen):
                first = last + 1
            for domid in [domid for domid in self._scopes if domid not in seen]:
                self._scopes[domid].cancel()
            now_ns = clock.now_ns()
            await clock.sleep_until(now_ns + _REST * (now_ns - started_ns))

    async def _serve(self, domid: int, scope: anyio.CancelScope) -> None:
        """One domain's session, until its scope is cancelled."""
        try:
            with scope:
                await self._serve_console(domid)
        except (KernelError, OSError) as error:
            self._log(f"console of domain {domid}: {error}")
        finally:
            del self._scopes[domid]
            session = self._sessions.pop(domid, None)
            if session is not None:
                session.close()
                self._remember(session)
            self._changed.announce()

    async def _serve_console(self, domid: int) -> None:
        store, home = self._kernel.store, f"/local/domain/{domid}"
        async with store.watch(f"{home}/console") as watch:
            output = ConsoleLog(
                self._path(domid, (await store.read_many([f"{home}/name"]))[0]), self._log_limit_bytes
            )
            session = self._sessions[domid] = ConsoleSession(self._kernel, domid, output, self._log)
            self._ended.pop(domid, None)
            self._changed.announce()
            while True:
                await watch.batch()
                keys = console_keys(await read_folder(store, f"{home}/console", NODES))
                if keys is not None:
                    session.connect(keys)

    def _path(self, domid: int, name: str | None) -> Path:
        """The log of a domain: by its name, unless that is none for a file or another domain's that lives."""
        if name is None or not _NAME.fullmatch(name):
            name = f"domain-{domid}"
        path = self._folder / f"console-{name}.log"
        if any(session.output.path == path for session in self._sessions.values()):
            path = self._folder / f"console-{name}-{domid}.log"
        return path

    def _remember(self, session: ConsoleSession) -> None:
        self._ended[session.domid] = session
        if len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
