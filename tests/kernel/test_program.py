"""A program from boot to shutdown: exit codes, crashes, arguments, leaks."""

import sys
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff
from kernel.kernel import Kernel
from tests.kernel.guests import RunningMachine, running_machine

pytestmark = pytest.mark.anyio


async def exit_code(world: RunningMachine, domid: int) -> str | None:
    return (await world.dom0.store.read_many([f"/local/domain/{domid}/data/exit-code"]))[0]


@pytest.mark.parametrize(("returned", "code"), [(None, "0"), (0, "0"), (3, "3")])
async def test_the_exit_code_is_in_the_store(anyio_backend: str, returned: int | None, code: str) -> None:
    async def program(kernel: Kernel, value: int | None) -> int | None:
        return value

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program, value=returned)
            assert await world.ended(domid) == SHUTDOWN_poweroff
            assert await exit_code(world, domid) == code


async def test_a_program_that_raises_has_crashed(anyio_backend: str) -> None:
    async def program(kernel: Kernel) -> None:
        raise LookupError("what I looked for")

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            assert await world.ended(domid) == SHUTDOWN_crash
            assert await exit_code(world, domid) is None
            assert "LookupError: what I looked for" in world.console[domid]
            assert 'raise LookupError("what I looked for")' in world.console[domid]


@pytest.mark.parametrize(("handed", "code"), [(None, "0"), (0, "0"), (3, "3")])
async def test_sys_exit_ends_the_program_and_not_the_loop(
    anyio_backend: str, handed: int | None, code: str
) -> None:
    async def program(kernel: Kernel) -> None:
        sys.exit(handed)

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            assert await world.ended(domid) == SHUTDOWN_poweroff
            assert await exit_code(world, domid) == code


async def exits() -> None:
    sys.exit(3)


async def exits_in_a_task_of_the_kernel(kernel: Kernel) -> None:
    kernel.tasks.start_soon(exits)
    await anyio.sleep_forever()


async def exits_in_a_task_of_its_own(kernel: Kernel) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exits)
        tasks.start_soon(anyio.sleep_forever)


async def exits_beside_another_error(kernel: Kernel) -> None:
    async def raises() -> None:
        raise LookupError("beside")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exits)
        tasks.start_soon(raises)


@pytest.mark.parametrize(
    "program", [exits_in_a_task_of_the_kernel, exits_in_a_task_of_its_own, exits_beside_another_error]
)
async def test_sys_exit_in_a_task_crashes_the_program_alone(
    anyio_backend: str, program: Callable[[Kernel], Awaitable[None]]
) -> None:
    """asyncio would end the loop, and every domain with it. What the program has used is ended in order."""

    async def with_a_grant(kernel: Kernel) -> None:
        kernel.grants.grant(0, kernel.pages.allocate().pfn)
        await program(kernel)

    with anyio.fail_after(10):
        async with running_machine() as world:
            _, bystander = await world.boot_guest()
            domid = await world.create_guest(with_a_grant)
            assert await world.ended(domid) == SHUTDOWN_crash
            assert await exit_code(world, domid) is None
            assert "sys.exit(3)" in world.console[domid]
            assert "leaked" in world.console[domid]
            await bystander.store.write("data/x", "still here")


async def test_what_is_no_exit_code_is_named(anyio_backend: str) -> None:
    async def program(kernel: Kernel) -> None:
        sys.exit("a text")

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            assert await world.ended(domid) == SHUTDOWN_crash
            assert "returned 'a text', expected an int or None" in world.console[domid]


async def test_a_task_of_a_program_that_raises_crashes_it(anyio_backend: str) -> None:
    async def fail() -> None:
        raise LookupError("in a task")

    async def program(kernel: Kernel) -> None:
        kernel.tasks.start_soon(fail)
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            assert await world.ended(domid) == SHUTDOWN_crash
            assert "LookupError: in a task" in world.console[domid]


async def test_a_program_that_is_asked_to_end_has_no_exit_code(anyio_backend: str) -> None:
    with anyio.fail_after(10):
        async with running_machine() as world:
            domid, _ = await world.boot_guest()
            await world.dom0.store.write(f"/local/domain/{domid}/control/shutdown", "poweroff")
            assert await world.ended(domid) == SHUTDOWN_poweroff
            assert await exit_code(world, domid) is None


async def test_leaked_grants_are_named_at_the_end(anyio_backend: str) -> None:
    kernels: list[Kernel] = []

    async def program(kernel: Kernel) -> None:
        kernels.append(kernel)
        pages = kernel.pages.allocate()
        kernel.grants.grant(0, pages.pfn)

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            assert await world.ended(domid) == SHUTDOWN_poweroff
            (leak,) = kernels[0].leaks
            assert leak.entry.owner == "program"
            assert world.console[domid] == f"leaked: {leak}\n"


async def test_a_program_that_is_destroyed_is_cancelled(anyio_backend: str) -> None:
    ended: list[bool] = []

    async def program(kernel: Kernel) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            while not await world.dom0.store.exists(f"/local/domain/{domid}/control/feature-reboot"):
                await anyio.lowlevel.checkpoint()
            await world.dom0.clock.sleep(0.01)
            execution = world.executions[domid]
            world.dom0.hypercalls.destroydomain(domid)
            await execution.finished.wait()
            assert ended == [True]
            assert not world.host.crashes


async def test_a_domain_without_a_data_area_still_ends_well(anyio_backend: str) -> None:
    async def program(kernel: Kernel) -> int:
        with kernel.shutdown_requested.deferred():
            await kernel.shutdown_requested.wait()
        return 1

    with anyio.fail_after(10):
        async with running_machine() as world:
            domid = await world.create_guest(program)
            await world.dom0.store.rm(f"/local/domain/{domid}/data")
            await world.dom0.store.write(f"/local/domain/{domid}/control/shutdown", "poweroff")
            assert await world.ended(domid) == SHUTDOWN_poweroff
            assert "data/exit-code: WRITE data/exit-code: EACCES" in world.console[domid]
