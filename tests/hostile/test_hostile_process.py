"""Processes of guests that break every rule between them and the hypervisor: each ends, or slows, itself alone.

The programs run natively as what they are; they get at the insides of their platform as any code in their process
could.
"""

import array
import ctypes
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dom0.embedding import GuestEnd, RunningGuest, RunningMachine, running_machine
from hypervisor.vcpu.process.doorbell import BELL_BYTES
from hypervisor.vcpu.process.platform import ProcessPlatform
from hypervisor.vcpu.process.wire import MAX_PFNS, MAX_REQUEST_BYTES, REPLY, REQUEST, RequestKind
from kernel.kernel import Kernel
from tests.census import Census, back_to, settled
from tests.witness import memory_disk, more_rounds, witness

Program = Callable[[Kernel], Awaitable[int]]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_fork_servers")]


def platform_of(kernel: Kernel) -> ProcessPlatform:
    assert isinstance(kernel.platform, ProcessPlatform)
    return kernel.platform


def channel_of(kernel: Kernel) -> socket.socket:
    return platform_of(kernel)._connection._channel


@asynccontextmanager
async def watched_machine(folder: Path) -> AsyncIterator[tuple[RunningMachine, RunningGuest, Census]]:
    """A machine with a witness, and what it holds then. In the end it holds the same, and the witness is content."""
    async with running_machine(folder, memory="256MiB", log=lambda _: None) as machine:
        bystander = await machine.start(witness, disks=[memory_disk("xvda")], isolation="process")
        await more_rounds(machine, bystander)
        before = settled(machine, [bystander.domain])
        yield machine, bystander, before
        await back_to(before, machine, [bystander.domain])
        await more_rounds(machine, bystander, 5)
        end = await bystander.shut_down()
        assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ()), end


async def end_of(machine: RunningMachine, program: Program) -> GuestEnd:
    """How a process ends that executes this."""
    guest = await machine.start(program, isolation="process", disks=[memory_disk("xvda")])
    with anyio.fail_after(60):
        return await guest.wait()


async def destroyed(machine: RunningMachine, program: Program, bystander: RunningGuest) -> GuestEnd:
    """How a process ends that executes this for as long as a bystander works."""
    guest = await machine.start(program, isolation="process", disks=[memory_disk("xvda")])
    with anyio.fail_after(20):
        while "begun" not in machine.words_of(guest.domid).text:
            await checkpoint()
    await more_rounds(machine, bystander, 20)
    with anyio.fail_after(20):
        assert await machine.store.read(f"/local/domain/{guest.domid}/name") == guest.name  # dom0 answers
        return await guest.destroy()


# Those that end themselves


async def dereferences_null(kernel: Kernel) -> int:
    ctypes.string_at(0)
    return 0


async def calls_a_system_call_of_another_abi(kernel: Kernel) -> int:
    """int 0x80: getpid of i386, which the filter of system calls ends a process for."""
    import mmap

    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return 0


async def exits(kernel: Kernel) -> int:
    os._exit(3)


async def aborts(kernel: Kernel) -> int:
    os.abort()


async def looks_at_memory_that_is_not_there(kernel: Kernel) -> int:
    """Beyond its RAM, as a wild pointer would."""
    space = platform_of(kernel)._connection.space
    return int(space._view[kernel.platform.nr_pages + 100 << 12])


async def closes_its_channel(kernel: Kernel) -> int:
    channel_of(kernel).close()
    await anyio.sleep_forever()
    return 0


async def says_that_it_will_write_no_more(kernel: Kernel) -> int:
    channel_of(kernel).shutdown(socket.SHUT_WR)
    await anyio.sleep_forever()
    return 0


async def says_that_it_will_read_no_more(kernel: Kernel) -> int:
    channel_of(kernel).shutdown(socket.SHUT_RD)
    channel_of(kernel).send(request(RequestKind.SYNC))
    await anyio.sleep_forever()
    return 0


async def closes_its_bells(kernel: Kernel) -> int:
    """And goes on, so that nobody could wake it."""
    platform = platform_of(kernel)
    os.close(platform._connection.routes._to_hypervisor._pipe)
    os.close(platform._connection.listening.hypervisor.pipe)
    while True:
        kernel.hypercalls.xen_version()
        await checkpoint()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (dereferences_null, "its process has ended: killed by SIGSEGV"),
        (closes_its_bells, "it has closed its bell"),
        (calls_a_system_call_of_another_abi, "its process has ended: killed by SIGSYS"),
        (exits, "its process has ended: exit code 3"),
        (aborts, "its process has ended: killed by SIGABRT"),
        (looks_at_memory_that_is_not_there, "its process has ended: killed by SIG"),
        (closes_its_channel, "it has closed its channel"),
        (says_that_it_will_write_no_more, "it has closed its channel"),
        (says_that_it_will_read_no_more, "its channel is broken: "),
    ],
)
async def test_it_ends_and_it_is_said_how(
    tmp_path: Path, program: Program, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervisor.vcpu.process.execution.LEAVING_SECONDS", 0.05)
    async with watched_machine(tmp_path) as (machine, _, _):
        end = await end_of(machine, program)
        assert end.outcome == "crash"
        assert why in end.crash


# Those that talk nonsense


def request(kind: int, number: int = 0, *args: int, counted: tuple[int, ...] = ()) -> bytes:
    """A request as the wire has it; fields that are not given are 0."""
    fields = REQUEST.size // 8
    values = [kind, number, *(*args, 0, 0, 0, 0, 0, 0)[:6], *counted]
    return REQUEST.pack(*values, *[0] * (fields - len(values)))


NONSENSE = {
    "a byte": b"x",
    "too short": bytes(REQUEST.size - 1),
    "no multiple of eight": bytes(REQUEST.size + 1),
    "no kind": bytes(REQUEST.size),
    "a kind that there is not": request(99),
    "a kind beyond bounds": request((1 << 64) - 1),
    "too long": request(RequestKind.SHARE) + bytes(8 * (MAX_PFNS + 1)),
    "much too long": bytes(16 * MAX_REQUEST_BYTES),
    "random": random.Random(1).randbytes(REQUEST.size + 80),
}


async def test_nonsense_on_the_channel_ends_it(tmp_path: Path) -> None:
    def talker(data: bytes) -> Program:
        async def talks_nonsense(kernel: Kernel) -> int:
            channel_of(kernel).send(data)
            await anyio.sleep_forever()
            return 0

        return talks_nonsense

    async with watched_machine(tmp_path) as (machine, _, _):
        for what, data in NONSENSE.items():
            end = await end_of(machine, talker(data))
            assert (what, end.outcome) == (what, "crash")
            assert end.crash.startswith("a request of "), (what, end)


@pytest.mark.parametrize("kind", [RequestKind.SAVED, RequestKind.AUDITED])
async def test_answers_to_what_nobody_has_asked_end_it(tmp_path: Path, kind: RequestKind) -> None:
    async def answers(kernel: Kernel) -> int:
        channel_of(kernel).send(request(kind, 0, 1 << 40))
        await anyio.sleep_forever()
        return 0

    async with watched_machine(tmp_path) as (machine, _, _):
        end = await end_of(machine, answers)
        assert end.outcome == "crash"
        assert "nobody has asked" in end.crash, end


async def asks_for_anything(kernel: Kernel) -> int:
    """Well-formed requests with any numbers, and descriptors that nobody has asked for."""
    channel = channel_of(kernel)
    rng = random.Random(3)
    numbers = [0, 1, 2, 3, 7, 12, 20, 24, 29, 32, 34, 35, 36, 38, 63, 64, 1 << 31, (1 << 64) - 1]
    values = [0, 1, 2, 5, 255, 1 << 12, 1 << 31, 1 << 44, (1 << 63) - 1, (1 << 64) - 1]
    for _ in range(2000):
        kind = rng.choice((RequestKind.HYPERCALL, RequestKind.SHARE, RequestKind.RECLAIM, RequestKind.SYNC))
        args = [rng.choice(values) for _ in range(6)]
        number = rng.choice(numbers)
        if number == 29:  # SCHEDOP, which would end it
            continue
        data = request(kind, number, *args, counted=tuple(rng.choice(values) for _ in range(2)))
        data += rng.randbytes(8 * rng.randrange(10))
        fds = array.array("i", [0, 1, 2] if rng.random() < 0.1 else [])
        channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        while REPLY.unpack_from(channel.recv(1 << 16))[2]:  # there is more
            pass
    os._exit(7)


async def test_requests_for_anything_harm_nobody(tmp_path: Path) -> None:
    async with watched_machine(tmp_path) as (machine, _, _):
        end = await end_of(machine, asks_for_anything)
        assert "exit code 7" in end.crash, end.crash


# Those that go on and on


def _begun(kernel: Kernel) -> None:
    """The last thing that it says in order."""
    kernel.log("begun")


async def asks_without_end(kernel: Kernel) -> int:
    _begun(kernel)
    while True:
        kernel.hypercalls.xen_version()


async def never_receives(kernel: Kernel) -> int:
    _begun(kernel)
    while True:
        channel_of(kernel).send(request(RequestKind.SYNC))


async def rings_without_end(kernel: Kernel) -> int:
    """For every port there could be."""
    _begun(kernel)
    ringer = platform_of(kernel)._connection.routes._to_hypervisor
    while True:
        for port in range(4096):
            ringer.ring(port)


async def writes_anything_into_its_bells(kernel: Kernel) -> int:
    _begun(kernel)
    platform, rng = platform_of(kernel), random.Random(5)
    while True:
        for memory in (
            platform._connection.routes._to_hypervisor.memory,
            platform._connection.listening.hypervisor.memory,
        ):
            memory.header[:] = rng.randbytes(BELL_BYTES // 2)
            memory.ports[:] = rng.randbytes(BELL_BYTES // 2)
        platform._connection.routes._to_hypervisor.wake()


async def prints_without_end(kernel: Kernel) -> int:
    _begun(kernel)
    while True:
        with suppress(OSError):
            os.write(1, b"and so on, " * 1000)


async def stops_itself(kernel: Kernel) -> int:
    _begun(kernel)
    with suppress(PermissionError):
        os.kill(os.getpid(), signal.SIGSTOP)
    await anyio.sleep_forever()
    return 0


@pytest.mark.parametrize(
    "program",
    [
        asks_without_end,
        never_receives,
        rings_without_end,
        writes_anything_into_its_bells,
        prints_without_end,
        stops_itself,
    ],
)
async def test_others_go_on_and_it_can_be_destroyed(tmp_path: Path, program: Program) -> None:
    async with watched_machine(tmp_path) as (machine, bystander, _):
        end = await destroyed(machine, program, bystander)
        assert end.outcome == "destroyed", end
