"""All tasks of one program, so that they end when the machine does: a program may shield what it does from
cancellation, and a loop waits for every task of it.

On asyncio they are noted as they are made (task_exits.py), and a task's own `cancel` knows no shields. On trio they
are found from nursery to nursery, and the shields that they stand behind are taken away. A program that takes no
notice of being cancelled at all, and goes on, ends with its process alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from trio.lowlevel import Task


class ProgramTasks:
    """The tasks of the program whose first task makes this."""

    def __init__(self) -> None:
        self._of_asyncio: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._first_of_trio: Task | None = None
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            self._first_of_trio = trio.lowlevel.current_task()
        elif (task := asyncio.current_task()) is not None:
            self._of_asyncio.add(task)

    def add(self, task: asyncio.Task[Any]) -> None:
        """It has started another one."""
        self._of_asyncio.add(task)

    def end(self) -> None:
        """Cancel all, whatever shields them. The scope that they run in has been cancelled before."""
        for task in list(self._of_asyncio):
            task.cancel()
        first = self._first_of_trio
        if first is not None and first.parent_nursery is not None:
            outside = _cancel_status(first.parent_nursery)
            for member in _family(first):
                _unshield(member, outside)


def _family(task: Task) -> Iterator[Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _family(child)


def _unshield(task: Task, outside: Any) -> None:
    """Take away the shields between `task` and the scope of `outside`."""
    status = _cancel_status(task)
    while status is not None and status is not outside:
        if status._scope.shield:
            status._scope.shield = False
        status = status._parent


def _cancel_status(where: Any) -> Any:
    # trio shows nobody in which scopes a task is; where this changes, the domain is still named.
    return getattr(where, "_cancel_status", None)


tasks_of_program: ContextVar[ProgramTasks | None] = ContextVar("tasks_of_program", default=None)
"""of the program that the current task belongs to; tasks inherit it from the one that starts them"""
