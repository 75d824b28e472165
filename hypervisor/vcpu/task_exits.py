"""sys.exit in a task that a domain's program has started, which must not end the loop that all domains run in.

asyncio hands a SystemExit that leaves any task to whoever runs the loop, past all task groups. Where a task was
started by a program, its SystemExit is therefore made an error of that task before asyncio sees it. On trio it
stays what it is: its nurseries pass it on like other errors, and it ends in the vCPU's own task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypervisor.vcpu.program_tasks import tasks_of_program

T = TypeVar("T")


class ExitInTask(Exception):
    """A task of a program called sys.exit, which is for the program itself to do. code: what it said."""

    def __init__(self, code: object) -> None:
        super().__init__(f"sys.exit({code!r}) in a task of the program")
        self.code = code


class _TaskFactory:
    """Makes the tasks of a loop. users: machines that run in it."""

    def __init__(self) -> None:
        self.users = 0

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **options: Any,
    ) -> asyncio.Task[T]:
        tasks = tasks_of_program.get()
        if tasks is None or not isinstance(coroutine, Coroutine):
            return asyncio.Task(coroutine, loop=loop, **options)
        task = asyncio.Task(_contained(coroutine), loop=loop, **options)
        tasks.add(task)
        task.add_done_callback(lambda _: coroutine.close())  # of a task that was cancelled before it began
        return task


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        return await coroutine
    except SystemExit as leaving:
        raise ExitInTask(leaving.code) from leaving


@contextmanager
def exits_contained() -> Iterator[None]:
    """Contain the exits of tasks that programs start inside this context. A loop whose tasks are made in a way
    of its own keeps that, and nothing is contained.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # trio's
        yield
        return
    if loop.get_task_factory() is None:
        loop.set_task_factory(_TaskFactory())
    factory = loop.get_task_factory()
    if not isinstance(factory, _TaskFactory):
        yield
        return
    factory.users += 1
    try:
        yield
    finally:
        factory.users -= 1
        if not factory.users and loop.get_task_factory() is factory:
            loop.set_task_factory(None)
