"""Where a task sleeps until somebody in the same event loop wakes it, on asyncio and on trio.

An anyio.Event costs about 6.7 us a wait. A request has one waiter and one answer, so an asyncio future or
trio's own rescheduling is enough: 1.7 and 3.7 us. This module alone knows the two loops; both honour anyio's
cancel scopes.

A `Waiter` is for one answer. A `Latch` is for a level that is set again and again, with one task looking at
it.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from kernel.errors import KernelMisuse

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


class Waiter(Protocol[T]):
    """One answer for one task. Waking comes before or after waiting; only the first answer counts."""

    async def wait(self) -> T:
        """The value of `wake`, or raise what was handed to `fail`. If it is cancelled, the answer is lost."""

    def wake(self, value: T) -> None:
        """Hand over the answer. To be called in the loop's own thread."""

    def fail(self, error: Exception) -> None:
        """Hand over an error, to be raised by `wait`."""


class AsyncioWaiter(Generic[T]):
    """A waiter that is an asyncio future."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[T] = loop.create_future()

    async def wait(self) -> T:
        return await self._future

    def wake(self, value: T) -> None:
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # seen: no complaint when nobody waits any more


class TrioWaiter(Generic[T]):
    """A waiter that parks the trio task itself."""

    __slots__ = ("_error", "_task", "_trio", "_value", "_woken")

    def __init__(self) -> None:
        import trio.lowlevel  # noqa: PLC0415 - whoever runs on asyncio shall not pay for importing trio

        self._trio = trio.lowlevel
        self._task: trio.lowlevel.Task | None = None
        self._woken = False
        self._value: T | None = None
        self._error: Exception | None = None

    async def wait(self) -> T:
        if self._task is not None:
            raise KernelMisuse("waiter", "a second waiting task", "one task")
        if not self._woken:
            self._task = self._trio.current_task()
            await self._trio.wait_task_rescheduled(self._abort)
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def _abort(self, _raise_cancel: object) -> "trio.lowlevel.Abort":
        self._task = None
        self._woken = True
        return self._trio.Abort.SUCCEEDED

    def wake(self, value: T) -> None:
        if not self._woken:
            self._value = value
            self._wake()

    def fail(self, error: Exception) -> None:
        if not self._woken:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._woken = True
        if self._task is not None:
            task, self._task = self._task, None
            self._trio.reschedule(task)


NewWaiter = Callable[[], Waiter[T]]


def in_trio() -> bool:
    """Whether the event loop that runs now is trio's."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def waiter_factory() -> NewWaiter[T]:
    """What makes waiters for the event loop that runs now; ask once, it is dearer than a waiter."""
    if in_trio():
        return TrioWaiter
    loop = asyncio.get_running_loop()
    return lambda: AsyncioWaiter(loop)


class Latch:
    """A level that stays set until the one task that looks at it has seen it. Setting is idempotent and
    cheap.
    """

    __slots__ = ("_is_set", "_new_waiter", "_waiter")

    def __init__(self) -> None:
        self._new_waiter: NewWaiter[None] | None = None
        self._waiter: Waiter[None] | None = None
        self._is_set = False

    @property
    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Set the level and wake the waiting task, if there is one. To be called in the loop's own thread."""
        self._is_set = True
        if self._waiter is not None:
            self._waiter.wake(None)

    async def wait(self) -> None:
        """Return once the level is set, and clear it. A cancelled wait leaves the level as it is."""
        if not self._is_set:
            if self._waiter is not None:
                raise KernelMisuse("latch", "a second waiting task", "one task")
            if self._new_waiter is None:
                self._new_waiter = waiter_factory()
            self._waiter = self._new_waiter()
            try:
                await self._waiter.wait()
            finally:
                self._waiter = None
        self._is_set = False


class Broadcast:
    """Something that changes now and then, and any number of tasks that wait for the next change."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[Waiter[None]] = []

    def announce(self) -> None:
        """Wake everybody who waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake(None)

    async def wait(self) -> None:
        """Return at the next `announce`."""
        waiter: Waiter[None] = waiter_factory()()
        self._waiters.append(waiter)
        try:
            await waiter.wait()
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
