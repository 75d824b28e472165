"""Native guests that compute for ever, beside others: each on the engine in a process of its own, on fewer
processors than there are guests.
"""

import time
from io import StringIO
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError
from rich.console import Console

from dom0.embedding import RunningGuest, RunningMachine, running_machine
from dom0.launch.run import ScenarioRun
from dom0.scenario.model import Scenario
from dom0.toolstack.errors import NoSuchGuest
from hypervisor.abi.domctl import XEN_DOMINF_running, xen_domctl_sched_credit
from kernel.kernel import Kernel

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

PATIENCE_S = 60.0


async def spin(machine: RunningMachine, kernel: Path, **share: int) -> RunningGuest:
    """A guest whose kernel takes no event and never asks for anything."""
    return await machine.boot(kernel, cmdline="spin", memory="8MiB", **share)  # type: ignore[arg-type]


def used_s(guest: RunningGuest) -> float:
    """Processor time of its process."""
    process = guest.domain.vcpus[0].elsewhere
    return 0.0 if process is None else process.cpu_ns / 1e9


async def until_used(seconds: float, *guests: RunningGuest) -> None:
    """Until they have used so much together."""
    with anyio.fail_after(PATIENCE_S):
        while sum(map(used_s, guests)) < seconds:  # noqa: ASYNC110 - a clock has no event
            await anyio.sleep(0.02)


async def greet(_kernel: Kernel) -> int:
    return 0


async def test_who_spins_starves_nobody(kernel: Path, tmp_path: Path) -> None:
    said: list[str] = []
    async with running_machine(tmp_path, pcpus=1, log=said.append) as machine:
        for _ in range(3):
            await spin(machine, kernel, weight=1024)
        with anyio.fail_after(PATIENCE_S):
            native = await machine.boot(kernel, cmdline="compute 50", memory="8MiB")
            python = await machine.start(greet)
            process = await machine.start(greet, isolation="process")
            assert [(await guest.wait()).outcome for guest in (native, python, process)] == ["poweroff"] * 3
    assert any("result" in line for line in said)


async def test_processors_are_shared_by_weight(kernel: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path, pcpus=1) as machine:
        small = await spin(machine, kernel, weight=128)
        large = await spin(machine, kernel, weight=512)
        await until_used(0.3, small, large)  # both have begun
        before = used_s(small), used_s(large)
        await until_used(sum(before) + 1.2, small, large)
        small_s, large_s = used_s(small) - before[0], used_s(large) - before[1]
        assert 0.1 <= small_s / (small_s + large_s) <= 0.3
        small.set_share(weight=512)
        before = used_s(small), used_s(large)
        await until_used(sum(before) + 1.0, small, large)
        small_s, large_s = used_s(small) - before[0], used_s(large) - before[1]
        assert 0.35 <= small_s / (small_s + large_s) <= 0.65


async def test_a_cap_holds(kernel: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path, pcpus=2) as machine:
        guest = await spin(machine, kernel, cap=20)
        await until_used(0.1, guest)
        info = machine.services.kernel.hypercalls.getdomaininfo(guest.domid)
        assert info.flags & XEN_DOMINF_running
        assert info.cpu_time >= 100_000_000
        before_s, began_s = used_s(guest), time.monotonic()
        await until_used(before_s + 0.4, guest)
        elapsed_s = time.monotonic() - began_s
        assert used_s(guest) - before_s <= 0.2 * elapsed_s + 0.15
        guest.set_share(cap=0)
        before_s = used_s(guest)
        await until_used(before_s + 0.5, guest)


async def test_a_guest_sees_the_time_that_was_stolen_from_it(kernel: Path, tmp_path: Path) -> None:
    said: list[str] = []
    async with running_machine(tmp_path, pcpus=1, log=said.append) as machine:
        await spin(machine, kernel)
        guests = [await machine.boot(kernel, cmdline="stolen 200", memory="8MiB") for _ in range(2)]
        with anyio.fail_after(PATIENCE_S):
            assert [(await guest.wait()).outcome for guest in guests] == ["poweroff"] * 2
    assert sum("7 checks, 0 failed" in line for line in said) == 2, said


async def test_what_a_guest_is_given_is_what_the_hypervisor_knows(kernel: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path, pcpus=3) as machine:
        guest = await spin(machine, kernel, weight=300, cap=40)
        hypercalls = machine.services.kernel.hypercalls
        assert hypercalls.physinfo().nr_cpus == 3
        assert hypercalls.scheduler_op_get(guest.domid) == xen_domctl_sched_credit(300, 40)
        guest.set_share(weight=10)
        assert hypercalls.scheduler_op_get(guest.domid) == xen_domctl_sched_credit(10, 40)
        guest.set_share(cap=0)
        assert hypercalls.scheduler_op_get(guest.domid) == xen_domctl_sched_credit(10, 0)
        for wrong in ({"weight": 0}, {"weight": 65536}, {"cap": -1}, {"cap": 65535}):
            with pytest.raises(ValidationError):
                guest.set_share(**wrong)
            with pytest.raises(ValidationError):
                await spin(machine, kernel, **wrong)
        await guest.destroy()
        with pytest.raises(NoSuchGuest):
            guest.set_share(weight=256)
    with pytest.raises(ValidationError):
        async with running_machine(tmp_path, pcpus=0):
            pass


async def test_a_scenario_says_who_gets_what(kernel: Path, tmp_path: Path) -> None:
    computing = {"kernel": str(kernel), "cmdline": "compute 50", "memory": "8MiB"}
    guests = [computing | {"name": "large", "weight": 512}, computing | {"name": "capped", "cap": 80}]
    scenario = Scenario.model_validate(
        {"name": "shares", "machine": {"pcpus": 1}, "guests": guests, "timeout": PATIENCE_S}
    )
    report = await ScenarioRun(scenario, tmp_path, Console(file=StringIO())).execute()
    assert report.ok, report
