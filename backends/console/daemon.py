"""The console daemon: finds consoles in XenStore, gives each its turns, and closes those of dead domains.

One task serves all guests in turn, a ring full each, however fast one prints. New and removed consoles are
noticed through one watch on the backend's folder, whose events name the domain: nothing is done for domains
that have not changed. (xenconsoled sets a watch for each domain and looks at all of them whenever one comes
or goes.) A domain that dies while its nodes stay is found by asking the hypervisor, at most once in
SWEEP_SECONDS.
"""

import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from backends.console.errors import BadKeys, CannotConnect, NoConsole
from backends.console.guest_console import GuestConsole
from backends.console.keys import ConsoleKeys, read_keys
from backends.console.link import ConsoleLink
from backends.console.log import LogFolder
from hypervisor.abi.domctl import XEN_DOMINF_dying
from kernel.hypercalls import HypercallNoSuchDomain
from kernel.kernel import Kernel
from kernel.parking import Latch
from kernel.xenstore.errors import StoreConnectionBroken, StoreError

FOLDER: Final = "backend/console"
ENDED_KEPT: Final = 1024
"""Consoles of domains that are gone, whose output can still be asked for."""

SWEEP_SECONDS: Final = 0.25
_SWEEP_SLICE: Final = 64
_TURNS_AT_A_TIME: Final = 8


class ConsoleDaemon:
    """`run` serves until it is cancelled. folder: where the logs go. log: takes a line for the operator."""

    def __init__(self, kernel: Kernel, folder: Path, *, log: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._logs = LogFolder(folder)
        self._log = log
        self._served: dict[int, GuestConsole] = {}
        self._ended: dict[int, GuestConsole] = {}
        self._queue: deque[GuestConsole] = deque()
        self._work = Latch()
        self._looking = anyio.Lock()

    async def run(self) -> None:
        """Serve all consoles. When it is cancelled it takes what is in the rings and unmaps them."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._guard, self._follow_consoles)
                tasks.start_soon(self._guard, self._follow_deaths)
                await self._serve()
        finally:
            for console in list(self._served.values()):
                self._end(console, "the daemon ends")

    async def add(self, domid: int) -> GuestConsole:
        """The console of a domain that the toolstack has just described, connected now and not when the
        watch tells: nothing that the domain prints can be missed. Raises NoConsole.
        """
        await self._look(domid)
        console = self._served.get(domid)
        if console is None or console.closed is not None:
            raise NoConsole(domid)
        return console

    def console(self, domid: int) -> GuestConsole:
        """The console of a domain, or the one that it had. Raises NoConsole."""
        console = self._served.get(domid) or self._ended.get(domid)
        if console is None:
            raise NoConsole(domid)
        return console

    def output(self, domid: int) -> str:
        """All that a domain has printed and the log still has; "" if it never had a console."""
        try:
            return self.console(domid).output()
        except NoConsole:
            return ""

    def last_line(self, domid: int) -> str:
        """The last line that a domain has printed, harmless for any terminal; "" if there is none."""
        try:
            return self.console(domid).last_line
        except NoConsole:
            return ""

    # Turns

    async def _serve(self) -> None:
        while True:
            for _ in range(min(_TURNS_AT_A_TIME, len(self._queue))):
                console = self._queue.popleft()
                console.queued = False
                self._turn(console)
            if self._queue:
                await checkpoint()
            else:
                await self._work.wait()

    def _turn(self, console: GuestConsole) -> None:
        """One turn. An error of ours costs this domain its console and nobody else anything."""
        try:
            console.turn()
        except Exception:
            self._log(f"console of domain {console.domid}: an error of ours:\n{traceback.format_exc()}")
            console.close("an error of the daemon")

    def _enqueue(self, console: GuestConsole) -> None:
        if not console.queued:
            console.queued = True
            self._queue.append(console)
            self._work.set()

    # Who comes and who goes

    async def _guard(self, follow: Callable[[], Awaitable[None]]) -> None:
        """Without XenStore no console comes or goes any more; those that are there go on."""
        try:
            await follow()
        except (StoreError, StoreConnectionBroken) as error:
            self._log(f"the console daemon has lost XenStore: {error}")

    async def _follow_consoles(self) -> None:
        async with self._kernel.store.watch(FOLDER) as watch:
            while True:
                for domid in await self._changed(await watch.batch()):
                    await self._look(domid)

    async def _changed(self, paths: Iterable[str]) -> list[int]:
        """The domains that `paths` are about: backend/console/<domid>/0/... The folder itself means any."""
        parts = [path.split("/") for path in paths]
        domids = {int(part[2]) for part in parts if len(part) > 2 and part[2].isdecimal()}
        if any(len(part) <= 2 for part in parts):
            domids |= await self._listed() ^ self._served.keys()
        return sorted(domids)

    async def _listed(self) -> set[int]:
        try:
            names = await self._kernel.store.directory(FOLDER)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            return set()
        return {int(name) for name in names if name.isdecimal()}

    async def _follow_deaths(self) -> None:
        async with self._kernel.store.watch("@releaseDomain") as watch:
            while True:
                await watch.batch()
                for number, console in enumerate(list(self._served.values()), 1):
                    if self._is_dead(console) and self._served.get(console.domid) is console:
                        self._end(console, "the domain has died")
                    if not number % _SWEEP_SLICE:
                        await checkpoint()
                await self._kernel.clock.sleep(SWEEP_SECONDS)

    def _is_dead(self, console: GuestConsole) -> bool:
        """Whether the domain of a console is gone, even if another has its number now."""
        return console.identity != self._identify(console.domid)

    def _identify(self, domid: int) -> bytes | None:
        """The handle of the domain that has this number; None if none lives."""
        try:
            info = self._kernel.hypercalls.getdomaininfo(domid)
        except HypercallNoSuchDomain:
            return None
        alive = info.domain == domid and not info.flags & XEN_DOMINF_dying
        return info.handle if alive else None

    async def _look(self, domid: int) -> None:
        """Connect or close, as XenStore says. One at a time, so that none acts on what is out of date."""
        async with self._looking:
            try:
                keys = await read_keys(self._kernel.store, domid)
            except (BadKeys, StoreError) as error:
                self._log(f"console of domain {domid}: {error}")
                keys = None
            console = self._served.get(domid)
            if console is not None and self._is_dead(console):
                self._end(console, "the domain has died")
            elif console is not None and (keys is None or keys.port != console.port):
                self._end(console, "removed by the toolstack")
            if keys is not None and domid not in self._served:
                self._begin(domid, keys)

    def _begin(self, domid: int, keys: ConsoleKeys) -> None:
        identity = self._identify(domid)
        if identity is None:
            return
        try:
            log = self._logs.new_log(keys.name, domid, keys.log_bytes)
            console = GuestConsole(domid, identity, keys.port, log, self._log)
            console.link = ConsoleLink.connect(
                self._kernel, domid, keys.port, partial(self._enqueue, console)
            )
        except (CannotConnect, OSError) as error:
            self._log(f"domain {domid} gets no console: {error}")
            return
        self._served[domid] = console
        self._ended.pop(domid, None)

    def _end(self, console: GuestConsole, reason: str) -> None:
        console.close(reason)
        del self._served[console.domid]
        self._ended[console.domid] = console
        while len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
