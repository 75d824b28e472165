"""A program in a process of its own, hostile, as root and as an ordinary user: it reaches nothing but what it
was given.
"""

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from hypervisor.vcpu.process import landlock
from hypervisor.vcpu.process.child import Exit
from hypervisor.vcpu.process.spawner import Spawner
from tests.hostile.attempts import NOBODY
from tests.hypervisor.vcpu.process.spawning import run, start

ATTEMPTS = "tests.hostile.attempts"
ORDINARY_USERS = [None] if os.getuid() else [None, NOBODY]
REFUSED = {"EPERM", "EACCES"}

HARMLESS = [
    *["signal the victim", "signal a thread of the victim", "open the victim", "read the victim"],
    *["trace the victim", "open the memory of the victim", "open the environment of the victim"],
    *["pin the victim", "write the victim", "look at the victim's limits", "queue a signal for the victim"],
    *[
        "read a secret",
        "write a secret",
        "append to a secret",
        "link a secret",
        "list a folder",
        "list the root",
    ],
    *["read a secret by a symbolic link", "create a file", "create a folder", "create a symbolic link"],
    *["write what is readable", "read the passwords", "read the own status", "watch a folder"],
    *["fork", "fork by the kernel's name", "vfork", "clone3", "be dumpable", "outlive the server"],
    *["a TCP socket", "a UDP socket", "a Unix socket", "a netlink socket", "a pair that sends anywhere"],
]
"""what an unconfined program of the same user can do: refusing these is the confinement's own doing"""

UP_TO_THE_HOST = {
    "read the victim",
    "write the victim",
    "trace the victim",
    "open the memory of the victim",
    "clone3",
}
"""which some containers refuse everybody"""


@dataclass
class Ground:
    """Files with the most generous modes, so that nothing but the confinement protects them."""

    root: Path

    def __post_init__(self) -> None:
        self.root.chmod(0o777)
        for folder in (self.outside, self.writable):
            folder.mkdir()
            folder.chmod(0o777)
        for file in (self.secret, self.readable):
            file.write_bytes(b"secret" if file == self.secret else b"readable")
            file.chmod(0o666)

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def writable(self) -> Path:
        return self.root / "writable"

    @property
    def secret(self) -> Path:
        return self.outside / "secret"

    @property
    def readable(self) -> Path:
        return self.root / "readable"


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="domzero-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def attempted(ground: Ground, uid: int | None, *, confined: bool) -> dict[str, Any]:
    """What came of all attempts by one child."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running([ATTEMPTS, "anyio", "trio", "asyncio"]) as spawner:
            victim = await start(spawner, f"{ATTEMPTS}:victim", [theirs.fileno()], json.dumps(uid).encode())
            with anyio.fail_after(20):
                await anyio.wait_readable(ours)
            told = {
                "uid": uid,
                "confined": confined,
                "harmless": HARMLESS,
                "hypervisor": os.getpid(),
                "victim": victim.pid,
                "address": int(ours.recv(100)),
                "secret": str(ground.secret),
                "readable": str(ground.readable),
                "writable": str(ground.writable),
            }
            result = await run(spawner, f"{ATTEMPTS}:main", json.dumps(told).encode(), [theirs.fileno()])
            assert result.exit == Exit(code=0), result
            report: dict[str, Any] = json.loads(result.output)
            return report


@pytest.fixture(scope="module", params=ORDINARY_USERS, ids=lambda uid: "as ordinary user" if uid else "as is")
def report(request: pytest.FixtureRequest, temporary: Path) -> dict[str, Any]:
    """Of a confined program."""
    root = temporary / f"confined {request.param}"
    root.mkdir()
    ground = Ground(root)

    async def attempt() -> dict[str, Any]:
        return await attempted(ground, request.param, confined=True)

    found = anyio.run(attempt)
    found["left"] = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    found["secret"] = ground.secret.read_bytes()
    return found


def test_every_attempt_is_refused(report: dict[str, Any]) -> None:
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock: files are protected by their modes only")
    otherwise = {"clone3": {"ENOSYS"}, "x32": {"ENOSYS"}, "link a secret": {"EXDEV"}}
    wrong = {
        name: outcome
        for name, outcome in report["attempts"].items()
        if outcome not in otherwise.get(name, REFUSED)
    }
    assert wrong == {}
    assert set(HARMLESS) <= set(report["attempts"])


def test_nothing_has_changed(report: dict[str, Any]) -> None:
    assert report["secret"] == b"secret"
    assert report["left"] == [
        "outside",
        "outside/secret",
        "readable",
        "writable",
        "writable/file",
        "writable/to the secret",
    ]


def test_only_given_descriptors_are_open(report: dict[str, Any]) -> None:
    assert report["descriptors"] == sorted({0, 1, 2, *report["given"]})
    assert len(report["given"]) == 1


def test_what_every_program_may_do_works(report: dict[str, Any]) -> None:
    assert {name: outcome for name, outcome in report["works"].items() if outcome != "ok"} == {}


@pytest.mark.parametrize("uid", ORDINARY_USERS)
def test_without_confinement_the_attempts_succeed(temporary: Path, uid: int | None) -> None:
    root = temporary / f"free {uid}"
    root.mkdir()

    async def attempt() -> dict[str, Any]:
        return await attempted(Ground(root), uid, confined=False)

    found = anyio.run(attempt)["attempts"]
    assert sorted(found) == sorted(HARMLESS)
    refused = {name: outcome for name, outcome in found.items() if outcome != "ok"}
    assert {name: outcome for name, outcome in refused.items() if name not in UP_TO_THE_HOST} == {}


@pytest.mark.anyio
async def test_system_calls_of_another_instruction_set_end_the_process() -> None:
    async with Spawner.running() as spawner:
        result = await run(spawner, f"{ATTEMPTS}:other_instruction_set")
    assert result.exit == Exit(signal=signal.SIGSYS)
