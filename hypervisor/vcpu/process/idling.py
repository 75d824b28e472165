"""What a domain's process does when its event loop has nothing else to do: it looks at its bells for a while, and
only then it sleeps.

To wake a process that sleeps costs both sides as much as a hundred requests of a ring. So a vCPU that was woken
soon after it had fallen asleep looks longer before the next time, and one that was not looks less, down to not
at all: as KVM's halt polling does it. The loop itself says when it is about to block: asyncio by its selector,
trio by an instrument. `asleep` is said to others only for as long as it does block.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from hypervisor.vcpu.process.listening import Listening

if TYPE_CHECKING:
    import trio

SHORTEST_LOOK_NS: Final = 20_000
LONGEST_LOOK_NS: Final = 500_000
PREEMPTED_NS: Final = 50_000
"""so long between two looks: somebody else wants this processor, perhaps the very one that is waited for"""
NANOSECONDS: Final = 1_000_000_000


class Idling:
    """look: enters what was rung, and wakes the vCPU if that is something; whether it was. looks: whether there
    is a processor to spare for looking.
    """

    def __init__(self, listening: Listening, look: Callable[[], bool]) -> None:
        self.listening = listening
        self.look = look
        self.looks = len(os.sched_getaffinity(0)) > 1
        self._look_ns = 0
        self._began_ns = 0

    def before_blocking(self, timeout: float | None) -> bool:
        """The loop would block for `timeout` seconds. Whether it must not, since something has come."""
        if timeout is not None and timeout <= 0:
            return self.look()
        if self._look_for_a_while(timeout):
            return True
        self._began_ns = time.monotonic_ns()
        self.listening.fall_asleep()
        if self.look():
            self.after_blocking()
            return True
        return False

    def after_blocking(self) -> None:
        """The loop has blocked, or has not after all."""
        if not self._began_ns:
            return
        self.listening.awake()
        if self.looks:
            self._adapt(time.monotonic_ns() - self._began_ns)
        self._began_ns = 0

    def woken(self) -> None:
        """A pipe says that a bell was rung."""
        self.listening.drain()
        self.look()

    def _look_for_a_while(self, timeout: float | None) -> bool:
        look_ns = self._look_ns if timeout is None else min(self._look_ns, int(timeout * NANOSECONDS))
        if self.look():
            return True
        now_ns = time.monotonic_ns()
        until_ns = now_ns + look_ns
        while now_ns < until_ns:
            if self.look():
                return True
            before_ns, now_ns = now_ns, time.monotonic_ns()
            if now_ns - before_ns > PREEMPTED_NS:
                self._look_ns = 0
                break
        return False

    def _adapt(self, slept_ns: int) -> None:
        if slept_ns < LONGEST_LOOK_NS:
            self._look_ns = min(LONGEST_LOOK_NS, max(SHORTEST_LOOK_NS, 2 * self._look_ns))
        else:
            self._look_ns = self._look_ns // 2 if self._look_ns > SHORTEST_LOOK_NS else 0


def run(idling: Idling, main: Callable[[], Awaitable[object]], loop: str) -> None:
    """Run `main` in a loop of its own, asyncio's or trio's, that idles so."""
    if loop == "trio":
        instruments = [_trio_instrument(idling)]
        anyio.run(
            partial(_beside_a_watch, idling, main), backend=loop, backend_options={"instruments": instruments}
        )
    else:
        anyio.run(main, backend=loop, backend_options={"loop_factory": lambda: _asyncio_loop(idling)})


class _BellSelector(selectors.EpollSelector):
    """Asks before it blocks."""

    def __init__(self, idling: Idling) -> None:
        super().__init__()
        self._idling = idling

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._idling.before_blocking(timeout):
            timeout = 0
        try:
            return super().select(timeout)
        finally:
            self._idling.after_blocking()


def _asyncio_loop(idling: Idling) -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop(_BellSelector(idling))
    loop.add_reader(idling.listening.fileno(), idling.woken)
    return loop


def _trio_instrument(idling: Idling) -> trio.abc.Instrument:
    import trio  # noqa: PLC0415 - whoever runs on asyncio shall not pay for importing trio

    class Instrument(trio.abc.Instrument):
        """Asks before trio blocks; trio has chosen how long by then, so that it must be woken."""

        def before_io_wait(self, timeout: float) -> None:
            if idling.before_blocking(timeout) and timeout > 0:
                trio.lowlevel.current_trio_token().run_sync_soon(_nothing, idempotent=True)

        def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
            idling.after_blocking()

    return Instrument()


async def _beside_a_watch(idling: Idling, main: Callable[[], Awaitable[object]]) -> None:
    trio = sys.modules["trio"]

    async def watch() -> None:
        while True:
            await trio.lowlevel.wait_readable(idling.listening.fileno())
            idling.woken()

    trio.lowlevel.spawn_system_task(watch)
    await main()


def _nothing(*_: Any) -> None:
    """To be called soon, so that something is."""
