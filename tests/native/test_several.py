"""Several native guests at once, next to Python ones: each has its own, and an end of its own."""

import os
import random
import signal
from pathlib import Path

import anyio
import pytest

from dom0.embedding.guest import RunningGuest
from dom0.embedding.machine import RunningMachine
from hypervisor.vcpu.native.execution import NativeVcpu
from tests.native.guests import at_console, at_shell, disk, grub, hash_of, linux, native_machine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("native_guests"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]

MIB = 1 << 20


def execution_of(machine: RunningMachine, guest: RunningGuest) -> NativeVcpu:
    execution = machine.host._executions[guest.domain.vcpus[0]]
    assert isinstance(execution, NativeVcpu)
    return execution


async def test_two_linuxes_and_a_python_guest(tmp_path: Path) -> None:
    contents = [random.Random(number).randbytes(8 * MIB) for number in range(2)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.img").write_bytes(content)
    async with native_machine(tmp_path) as machine:
        guests = [
            await linux(machine, name=f"linux{number}", disks=[disk("xvda", tmp_path / f"{number}.img")])
            for number in range(2)
        ]
        python = await machine.start("hello", {"times": 2}, name="python")

        async def work(number: int) -> None:
            async with at_shell(guests[number]) as shell:
                assert (await shell.run("md5sum /dev/xvda")).split()[0] == hash_of(contents[number])
                await shell.run(
                    f"echo guest {number} | dd of=/dev/xvda bs=512 conv=sync,notrunc,fsync 2>/dev/null"
                )
                await shell.type("poweroff")
                assert (await guests[number].wait()).outcome == "poweroff"

        async with anyio.create_task_group() as tasks:
            for number in range(2):
                tasks.start_soon(work, number)
        assert (await python.wait()).exit_code == 0
        for number in range(2):
            assert (tmp_path / f"{number}.img").read_bytes().startswith(f"guest {number}\n".encode())
        assert not machine.core.audit()


async def test_an_engine_that_is_killed_ends_its_domain_alone(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        doomed = await linux(machine, name="doomed")
        other = await grub(machine, name="other")
        python = await machine.start("idle", {"seconds": 600}, name="python", isolation="process")
        async with at_shell(doomed) as shell, at_console(other, "grub> ") as console:
            assert await shell.run("echo alive") == "alive\n"
            os.kill(execution_of(machine, doomed).child.pid, signal.SIGSEGV)
            end = await doomed.wait()
            assert end.outcome == "crash"
            assert "SIGSEGV" in end.crash
            await console.type("echo alive")
            await console.expect("alive")
            await console.type("halt")
            assert (await other.wait()).outcome == "poweroff"
        assert python.runs
        await python.destroy()
        assert not machine.core.audit()


async def test_a_guest_that_spins_keeps_nobody_from_working(tmp_path: Path) -> None:
    async with native_machine(tmp_path) as machine:
        spinner = await linux(machine, "while :; do :; done", name="spinner")
        await spinner.printed("domzero: init")
        guest = await linux(machine, name="worker")
        async with at_shell(guest) as shell:
            assert await shell.run("echo done") == "done\n"
        await spinner.destroy()
