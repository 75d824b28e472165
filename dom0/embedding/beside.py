"""A service that runs beside the body of an `async with`, wherever that body is entered and left.

A task group binds a body to one task. Fixtures of pytest-asyncio are entered in one task and left in another,
so that on asyncio the service gets a task of its own. trio has no tasks outside of nurseries, and fixtures
there stay in one task.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio

from kernel.parking import in_trio

Service = Callable[[anyio.Event], Awaitable[None]]
"""Sets the event when it is up; returns when it was told to, or cannot go on."""


@asynccontextmanager
async def beside(service: Service, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Runs `service` while inside the context; at its end calls `stop` and waits for the service to return.

    What the body raises passes as it is. What the service raises comes out where the context is entered, if
    it did not come up, and else at its end, unless the body raised.
    """
    up = anyio.Event()
    errors: list[Exception] = []

    async def run() -> None:
        try:
            await service(up)
        except Exception as error:
            errors.append(error)
        finally:
            up.set()

    failure: BaseException | None = None
    async with _nursery(run) if in_trio() else _own_task(run):
        try:
            await up.wait()
            if not errors:
                yield
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # a test that is skipped or fails, above all
            failure = error
        finally:
            stop()
    if failure is not None or errors:
        raise failure or errors[0]


@asynccontextmanager
async def _nursery(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async def shielded() -> None:
        with anyio.CancelScope(shield=True):  # a body that is cancelled stops the service, in order
            await run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shielded)
        yield


@asynccontextmanager
async def _own_task(run: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(run())
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await task
