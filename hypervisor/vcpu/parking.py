"""Where one task sleeps until somebody in the same event loop wakes it, on asyncio and on trio.

An anyio.Event costs about 6 us a round, because it must be made anew for every wait and serves many waiters.
A vCPU has one waiter and a level that is kept elsewhere (is it runnable?), so an asyncio future or trio's own
parking is enough: 1.7 and 3.7 us. This module, task_exits.py and program_tasks.py alone know
the two loops; both honour anyio's cancel scopes.
"""

import asyncio
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import trio


class ParkingMisuse(RuntimeError):
    """A second task parked where one sleeps already. Our own misuse, never a guest's."""


class Parker(Protocol):
    """A place for one sleeper. A wake-up is forgotten if nobody sleeps: look at the level before parking."""

    async def park(self) -> None:
        """Sleep until `unpark`. Cancellation leaves the place free."""

    def unpark(self) -> None:
        """Wake the sleeper, if there is one. To be called in the loop's own thread."""


class AsyncioParker:
    """A parker made of one future a sleep."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    async def park(self) -> None:
        if self._future is not None:
            raise ParkingMisuse("a task is parked here already")
        self._future = future = self._loop.create_future()
        try:
            await future
        finally:
            self._future = None

    def unpark(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)


class TrioParker:
    """A parker made of trio's own rescheduling."""

    __slots__ = ("_task", "_trio")

    def __init__(self) -> None:
        import trio  # noqa: PLC0415 - whoever runs on asyncio shall not pay for importing trio

        self._trio = trio.lowlevel
        self._task: trio.lowlevel.Task | None = None

    async def park(self) -> None:
        if self._task is not None:
            raise ParkingMisuse("a task is parked here already")
        self._task = self._trio.current_task()
        await self._trio.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> "trio.lowlevel.Abort":
        self._task = None
        return self._trio.Abort.SUCCEEDED

    def unpark(self) -> None:
        task = self._task
        if task is not None:
            self._task = None
            self._trio.reschedule(task)


def new_parker() -> Parker:
    """A parker for the event loop that runs now."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioParker()
    return AsyncioParker()
