"""How a toolstack learns that a domain has ended, and how."""

from pathlib import Path

import anyio
import pytest

from dom0.embedding import RunningMachine, running_machine
from dom0.toolstack.endings import DESTROYED, OUTCOMES, outcome_of
from dom0.toolstack.toolstack import DomainConfig
from hypervisor.abi import sched
from hypervisor.abi.names import names

pytestmark = pytest.mark.anyio


async def created(machine: RunningMachine) -> int:
    return await machine.services.toolstack.create(DomainConfig("g", 4 << 20, "test"))


def test_every_reason_of_the_header_has_a_name() -> None:
    reasons = {number for number, name in names(sched, "SHUTDOWN_").items() if name != "MAX"}
    assert reasons == set(OUTCOMES)
    assert outcome_of(None) == DESTROYED
    assert outcome_of(77) == "reason 77"


@pytest.mark.parametrize(("reason", "outcome"), sorted(OUTCOMES.items()))
async def test_a_domain_that_shuts_down_for_a_reason(reason: int, outcome: str, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        domid = await created(machine)
        machine.core.domain(domid).shutdown(reason)
        with anyio.fail_after(20):
            assert await machine.services.toolstack.wait_end(domid) == outcome


async def test_a_domain_that_somebody_else_destroys(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        domid = await created(machine)
        machine.services.kernel.hypercalls.destroydomain(domid)
        with anyio.fail_after(20):
            assert await machine.services.toolstack.wait_end(domid) == DESTROYED


async def test_a_number_that_is_free_is_not_mistaken_for_the_next_domain(tmp_path: Path) -> None:
    """XEN_DOMCTL_getdomaininfo answers for the next domain that there is."""
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        first, second, third = [await created(machine) for _ in range(3)]
        await toolstack.destroy(first)
        with anyio.fail_after(20):
            async with machine.store.watch("@releaseDomain") as watch:
                async for _ in watch:
                    if first not in machine.core.domains:
                        break
            toolstack.endings.expect(first)
            machine.core.domain(second).shutdown(sched.SHUTDOWN_poweroff)
            assert await toolstack.wait_end(second) == "poweroff"
            assert await toolstack.wait_end(first) == DESTROYED
        assert third in machine.core.domains


async def test_a_domain_that_was_never_expected(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        assert await machine.services.toolstack.wait_end(99) == DESTROYED


async def test_all_who_wait_are_told_when_it_is_destroyed(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        domid = await created(machine)
        told: list[str] = []

        async def wait() -> None:
            told.append(await toolstack.wait_end(domid))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert told == []
            await toolstack.destroy(domid)
        assert told == [DESTROYED] * 3


async def test_the_end_of_one_is_not_the_end_of_another(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        first, second = await created(machine), await created(machine)
        toolstack = machine.services.toolstack
        machine.core.domain(second).shutdown(sched.SHUTDOWN_reboot)
        with anyio.fail_after(20):
            assert await toolstack.wait_end(second) == "reboot"
        with anyio.move_on_after(0.1) as scope:
            await toolstack.wait_end(first)
        assert scope.cancelled_caught
