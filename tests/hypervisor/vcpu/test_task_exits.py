"""What is done to asyncio's tasks so that a program's sys.exit ends the program alone; all else is as it was."""

import asyncio
import gc
import sys

import pytest

from hypervisor.vcpu.program_tasks import ProgramTasks, tasks_of_program
from hypervisor.vcpu.task_exits import ExitInTask, exits_contained

pytestmark = pytest.mark.asyncio


async def exits(code: object = 3) -> None:
    await asyncio.sleep(0)
    sys.exit(code)  # type: ignore[arg-type]


async def in_a_program(code: object) -> asyncio.Task[None]:
    tasks_of_program.set(ProgramTasks())
    return asyncio.create_task(exits(code), name="it exits")


@pytest.mark.parametrize("code", [None, 0, 3, "for a reason"])
async def test_an_exit_is_an_error_of_the_task(code: object) -> None:
    with exits_contained():
        task = await asyncio.create_task(in_a_program(code))
        with pytest.raises(ExitInTask) as caught:
            await task
        assert caught.value.code == code
        assert task.get_name() == "it exits"


async def test_results_errors_and_cancellations_are_what_they_are() -> None:
    async def returns() -> int:
        return 7

    async def raises() -> None:
        raise LookupError("mine")

    with exits_contained():
        tasks_of_program.set(ProgramTasks())
        assert await asyncio.create_task(returns()) == 7
        with pytest.raises(LookupError):
            await asyncio.create_task(raises())
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_task_that_never_began_leaves_no_warning() -> None:
    with exits_contained():
        tasks_of_program.set(ProgramTasks())
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await asyncio.sleep(0)
        gc.collect()


async def test_tasks_of_nobody_s_program_are_left_alone() -> None:
    async def anything() -> None:
        pass

    with exits_contained():
        coroutine = anything()
        task = asyncio.create_task(coroutine)
        assert task.get_coro() is coroutine
        await task


async def test_a_loop_has_its_own_way_back_when_the_last_machine_ends() -> None:
    loop = asyncio.get_running_loop()
    with exits_contained():
        with exits_contained():
            assert loop.get_task_factory() is not None
        assert loop.get_task_factory() is not None
    assert loop.get_task_factory() is None


async def test_a_loop_that_makes_tasks_in_its_own_way_goes_on_doing_so() -> None:
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: object, **options: object) -> asyncio.Task[None]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)  # type: ignore[arg-type]

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    with exits_contained():
        tasks_of_program.set(ProgramTasks())
        coroutine = asyncio.sleep(0)
        await asyncio.create_task(coroutine)
        assert made == [coroutine]
    assert loop.get_task_factory() is factory
    loop.set_task_factory(None)
