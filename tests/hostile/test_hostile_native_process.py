"""A native domain's process is trusted by its own domain alone: whatever it sends, it harms nobody else."""

from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding import RunningGuest, RunningMachine, running_machine
from hypervisor.abi.sched import SHUTDOWN_poweroff
from hypervisor.vcpu.native import execution
from hypervisor.vcpu.native.execution import NotRunning
from tests.census import Census, back_to, settled
from tests.dom0.images.kernels import linux
from tests.hostile import raw_natives

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0


async def begin(
    machine: RunningMachine, folder: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> RunningGuest:
    """A native domain that another program than ours executes."""
    monkeypatch.setattr(execution, "ENTRY", f"{raw_natives.__name__}:{entry}")
    kernel = folder / "kernel"
    kernel.write_bytes(linux())
    return await machine.boot(kernel, memory="32MiB", vcpus=2)


async def with_a_fork_server(
    machine: RunningMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Census:
    """What there is when there has been a process."""
    guest = await begin(machine, folder, "end_well", monkeypatch)
    assert (await guest.wait()).outcome == "poweroff"
    while len(machine.host._executions) > 1:  # dom0's is left
        await checkpoint()
    return settled(machine)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("be_a_vcpu_that_is_not", "a request of vCPU 99, expected 0 to 1"),
        ("save_unasked", "it has saved a state that nobody has asked for"),
        ("audit_unasked", "it has counted what nobody has asked for"),
    ],
)
async def test_what_no_process_sends_ends_its_domain(
    entry: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with running_machine(tmp_path) as machine:
            before = await with_a_fork_server(machine, tmp_path, monkeypatch)
            guest = await begin(machine, tmp_path, entry, monkeypatch)
            end = await guest.wait()
            assert end.outcome == "crash"
            assert why in end.crash
            await back_to(before, machine)


@pytest.mark.parametrize("entry", ["save_nonsense", "save_garbage"])
async def test_a_state_that_is_none_ends_its_domain(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with running_machine(tmp_path) as machine:
            before = await with_a_fork_server(machine, tmp_path, monkeypatch)
            guest = await begin(machine, tmp_path, entry, monkeypatch)
            assert guest.native is not None
            monkeypatch.undo()  # what comes after it is ours
            while guest.runs:  # from when there is a process until the domain has ended
                with suppress(NotRunning):
                    await guest.native.hop()
                await checkpoint()
            assert (await guest.wait()).outcome == "crash"
            await back_to(before, machine)


@pytest.mark.parametrize("entry", ["call_with_any_root", "scribble_over_what_it_shares"])
async def test_nonsense_in_requests_and_memory_concerns_nobody(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with running_machine(tmp_path) as machine:
            before = await with_a_fork_server(machine, tmp_path, monkeypatch)
            guest = await begin(machine, tmp_path, entry, monkeypatch)
            assert (await guest.wait()).outcome == "poweroff"
            assert guest.domain.shutdown_reason == SHUTDOWN_poweroff
            await back_to(before, machine)
