"""Processes from the fork server: what they get, what they do not get, and that they all end."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import wait_readable
from anyio.lowlevel import checkpoint

from hypervisor.vcpu.process.child import Exit
from hypervisor.vcpu.process.fork_messages import MAX_FDS
from hypervisor.vcpu.process.server_process import kept_environment
from hypervisor.vcpu.process.spawner import (
    ForkServerFailed,
    Spawner,
    SpawnerClosed,
    SpawnError,
    SpawnMisuse,
    SpawnRefused,
)
from tests.hypervisor.vcpu.process.entries import children_of
from tests.hypervisor.vcpu.process.spawning import ENTRIES, full, run, start

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
GONE = ("X", "Z")
"""nobody may reap for a server that was killed"""
HERE = "tests.hypervisor.vcpu.process"


def descriptors(pid: int | str = "self") -> int:
    """How many are open. What other tests have left to the garbage collector is not counted."""
    gc.collect()
    return len(os.listdir(f"/proc/{pid}/fd"))


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not holds():
            await checkpoint()


def state_of(pid: int) -> str:
    """As in proc(5): R, S, T (stopped), Z (zombie); X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def heard(sock: socket.socket, expected: bytes) -> None:
    with anyio.fail_after(PATIENCE_S):
        await wait_readable(sock)
    assert sock.recv(100) == expected


# ---- what a child gets


@pytest.mark.parametrize("payload", [b"", b"payload", b"large " * 100_000])
async def test_payload_descriptors_and_output_arrive(payload: bytes) -> None:
    first, second = os.memfd_create("first"), os.memfd_create("second")
    async with Spawner.running([ENTRIES]) as spawner:
        result = await run(spawner, "echo", payload, [second, first, second])
    assert result.output == payload.decode() + " and stderr"
    assert result.exit == Exit(code=0)
    assert os.pread(first, 100, 0) == b"[1]"
    assert os.pread(second, 100, 0) == b"[0][2]"
    os.close(first)
    os.close(second)


async def test_a_child_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    kept = os.memfd_create("kept")
    os.set_inheritable(kept, True)  # what somebody else has made so shall not get in
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    other, ours = socket.socketpair()
    try:
        async with Spawner.running(["wave", ENTRIES]) as spawner:
            child = await start(spawner, "wait_for_end", [other.fileno()])  # a sibling with a descriptor
            found = json.loads((await run(spawner, "describe", fds=[kept], name="name-of-a-guest")).output)
            assert found["parent"] == spawner.server_pid
            assert found["path"] == sys.path
            child.kill()
    finally:
        signal.signal(signal.SIGTERM, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(kept)
        other.close()
        ours.close()
    assert found["descriptors"] == sorted({0, 1, 2, *found["given"]})
    assert len(found["given"]) == 1
    assert found["stdin"] == os.devnull
    assert found["session"]
    assert found["death signal"] == signal.SIGKILL
    assert found["name"] == "name-of-a-guest"
    assert found["argv"] == ["name-of-a-guest"]
    assert "SECRET_TOKEN" not in found["environment"]
    assert found["blocked"] == []
    assert set(found["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert found["faulthandler"]
    assert found["threads"] == 1
    assert "wave" in found["imported"]
    assert "pytest" not in found["imported"]


def test_only_what_an_interpreter_needs_is_kept_of_the_environment() -> None:
    environment = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PYTHONHOME": "/x",
        "GITHUB_TOKEN": "t",
        "SSH_AUTH_SOCK": "s",
    }
    assert kept_environment(environment) == {"PATH": "/bin", "LC_ALL": "C", "PYTHONHOME": "/x"}


# ---- how a child ends


@pytest.mark.parametrize(
    ("entry", "payload", "exit_", "said"),
    [
        ("nothing", b"", Exit(code=0), ""),
        ("fail", b"lost", Exit(code=1), "LookupError: lost"),
        ("leave", b"0", Exit(code=0), "left"),
        ("leave", b"3", Exit(code=3), "left"),
        ("leave", b"words", Exit(code=1), "words"),
        ("crash", b"", Exit(signal=signal.SIGSEGV), "Fatal Python error: Segmentation fault"),
        ("nobody:there", b"", Exit(code=1), "ModuleNotFoundError: No module named 'nobody'"),
        (f"{ENTRIES}:absent", b"", Exit(code=1), "AttributeError"),
    ],
)
async def test_an_end_is_told(entry: str, payload: bytes, exit_: Exit, said: str) -> None:
    async with Spawner.running() as spawner:
        result = await run(spawner, entry, payload)
    assert result.exit == exit_
    assert said in result.output


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Exit(code=3), "exit code 3"),
        (Exit(signal=signal.SIGSEGV), "killed by SIGSEGV"),
        (Exit(signal=40), "killed by signal 40"),
    ],
)
def test_an_end_in_words(exit_: Exit, words: str) -> None:
    assert exit_.describe() == words


async def test_a_child_is_killed_and_killing_it_again_harms_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running() as spawner:
            child = await start(spawner, "say_and_wait", [theirs.fileno()])
            await heard(ours, b"here")
            child.kill()
            assert await child.wait() == Exit(signal=signal.SIGKILL)
            child.kill()
            child.pause()
            child.resume()
            await until(lambda: state_of(child.pid) == "X")
            assert (await run(spawner, "nothing")).exit == Exit(code=0)


async def test_a_child_is_stopped_and_goes_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running() as spawner:
            child = await start(spawner, "count", [theirs.fileno()])
            ours.send(b"1")
            await heard(ours, b"1")
            child.pause()
            await until(lambda: state_of(child.pid) == "T")
            ours.send(b"2")
            child.resume()
            await heard(ours, b"2")
            child.pause()
            await until(lambda: state_of(child.pid) == "T")
            child.kill()  # also while it is stopped
            assert await child.wait() == Exit(signal=signal.SIGKILL)


# ---- the server


async def test_nothing_is_started_before_it_is_used() -> None:
    before = children_of(os.getpid())
    async with Spawner.running([ENTRIES]) as spawner:
        assert spawner.server_pid is None
        assert children_of(os.getpid()) == before
        spawner.warm()
        spawner.warm()
        assert len(children_of(os.getpid())) == len(before) + 1
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    ("preload", "said"),
    [
        (f"{HERE}.failing_preload", "RuntimeError: it fails on purpose"),
        (f"{HERE}.threaded_preload", "have started 1 threads"),
        ("nobody_has_this_module", "ModuleNotFoundError"),
    ],
)
async def test_a_server_that_does_not_start_says_why(preload: str, said: str) -> None:
    async with Spawner.running([preload]) as spawner:
        for _ in range(2):
            with pytest.raises(ForkServerFailed, match="did not start, exit code 1") as failed:
                await run(spawner, "nothing")
            assert said in failed.value.output
            assert failed.value.exit == Exit(code=1)


async def test_an_interpreter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = descriptors()
    async with Spawner.running() as spawner:
        with pytest.raises(SpawnError, match=r"cannot be started.*nonexistent"):
            await run(spawner, "nothing")
    assert descriptors() == before


async def test_the_children_of_a_killed_server_are_killed_and_it_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running() as spawner:
            child = await start(spawner, "say_and_wait", [theirs.fileno()])
            await heard(ours, b"here")
            assert spawner.server_pid
            os.kill(spawner.server_pid, signal.SIGKILL)
            with anyio.fail_after(PATIENCE_S):
                assert await child.wait() == Exit(signal=signal.SIGKILL)
            assert state_of(child.pid) in GONE
            with pytest.raises(ForkServerFailed, match="has ended, killed by SIGKILL"):
                await run(spawner, "nothing")


async def test_requests_under_way_fail_with_the_server() -> None:
    async with Spawner.running() as spawner:
        assert (await run(spawner, "nothing")).exit.code == 0
        assert spawner.server_pid
        os.kill(spawner.server_pid, signal.SIGSTOP)
        failed = []

        async def ask() -> None:
            with pytest.raises(ForkServerFailed):
                await run(spawner, "nothing")
            failed.append(1)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
            await until(lambda: len(spawner._pending) == 3)
            os.kill(spawner.server_pid, signal.SIGKILL)
        assert len(failed) == 3


async def test_without_descriptors_no_child_is_made_and_nothing_is_lost() -> None:
    import resource

    async with Spawner.running() as spawner:
        assert (await run(spawner, "nothing")).exit.code == 0
        server = spawner.server_pid
        assert server
        limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
        before = descriptors(server)
        given = [0] * 3
        for room in range(5):  # the kernel leaves out some descriptors, or the pidfd finds no place
            resource.prlimit(server, resource.RLIMIT_NOFILE, (before + room, limits[1]))
            with pytest.raises(SpawnRefused, match="Too many open files"):
                await run(spawner, "nothing", fds=given)
            await until(lambda: descriptors(server) == before)
            assert children_of(server) == []
        resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
        assert (await run(spawner, "nothing", fds=given)).exit.code == 0


@pytest.mark.parametrize("name", ["guest", "x" * 5000])
async def test_what_fits_no_message_is_refused(name: str) -> None:
    async with Spawner.running() as spawner:
        with pytest.raises(SpawnMisuse):
            await run(spawner, "nothing", fds=[0] * (MAX_FDS if name == "guest" else 0), name=name)
        assert (await run(spawner, "nothing", fds=[0] * (MAX_FDS - 2))).exit == Exit(code=0)


# ---- nothing is left


async def test_hundreds_of_children_leave_nothing_behind() -> None:
    async with Spawner.running([ENTRIES]) as spawner:
        await run(spawner, "nothing")
        server = spawner.server_pid
        assert server
        ours, theirs = descriptors(), descriptors(server)
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(run, spawner, "nothing", b"payload", [0])
        await until(lambda: children_of(server) == [])
        assert descriptors() == ours
        assert descriptors(server) == theirs
    assert server not in children_of(os.getpid())


async def test_leaving_kills_all_children_and_the_server() -> None:
    before = descriptors()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running() as spawner:
            children = [await start(spawner, "wait_for_end", [theirs.fileno()]) for _ in range(5)]
            children[0].pause()
        assert [await child.wait() for child in children] == [Exit(signal=signal.SIGKILL)] * 5
        assert {state_of(child.pid) for child in children} == {"X"}
        assert spawner.server_pid
        assert state_of(spawner.server_pid) == "X"
    assert descriptors() == before


async def test_leaving_waits_for_nobody_who_is_cancelled() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with anyio.CancelScope() as scope:
            async with Spawner.running() as spawner:
                child = await start(spawner, "say_and_wait", [theirs.fileno()])
                await heard(ours, b"here")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert child.exit == Exit(signal=signal.SIGKILL)
        assert spawner.server_pid
        assert {state_of(child.pid), state_of(spawner.server_pid)} == {"X"}


async def test_a_server_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisor.vcpu.process.spawner.ENDING_SECONDS", 0.01)
    sink = os.memfd_create("sink")
    async with Spawner.running() as spawner:
        child = await start(spawner, "say_and_wait", [sink])
        os.close(sink)
        assert spawner.server_pid
        os.kill(spawner.server_pid, signal.SIGSTOP)
    assert child.exit == Exit(signal=signal.SIGKILL)
    assert state_of(child.pid) in GONE
    assert state_of(spawner.server_pid) == "X"


async def test_what_the_body_raises_passes_as_it_is() -> None:
    async def fail() -> None:
        async with Spawner.running() as spawner:
            await run(spawner, "nothing")
            raise LookupError("of the body")

    with pytest.raises(LookupError, match="of the body"):
        await fail()


async def test_a_closed_spawner_spawns_no_more() -> None:
    async with Spawner.running() as spawner:
        await run(spawner, "nothing")
    with pytest.raises((SpawnerClosed, ForkServerFailed)):
        await run(spawner, "nothing")


async def test_whoever_is_cancelled_while_spawning_leaves_no_child() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running() as spawner:
            await run(spawner, "nothing")
            server = spawner.server_pid
            assert server
            os.kill(server, signal.SIGSTOP)  # so that no answer comes before the cancellation
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(start, spawner, "wait_for_end", [theirs.fileno()])
                await until(lambda: len(spawner._pending) == 3)
                tasks.cancel_scope.cancel()
            os.kill(server, signal.SIGCONT)
            await until(lambda: not spawner._pending and not spawner._children)
            assert (await run(spawner, "nothing")).exit == Exit(code=0)
            await until(lambda: children_of(server) == [])


HYPERVISOR = """
import os
import anyio
from hypervisor.vcpu.process.spawner import Spawner

async def main():
    async with Spawner.running() as spawner:
        child = await spawner.spawn({entry!r}, b"", [os.memfd_create("sink")], 2)
        print(spawner.server_pid, child.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_everything_ends_with_a_hypervisor_that_is_killed() -> None:
    program = HYPERVISOR.format(entry=full("say_and_wait"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(  # noqa: ASYNC220 - it says a line at once
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout
    with process.stdout:
        server, child = map(int, process.stdout.readline().split())
    pidfds = [os.pidfd_open(pid) for pid in (server, child)]
    process.kill()
    process.wait()
    for pidfd in pidfds:
        with anyio.fail_after(PATIENCE_S), suppress(ProcessLookupError):
            await wait_readable(pidfd)
        os.close(pidfd)
