"""What confinement leaves, what it takes, and what it says of a system that lacks something."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

from hypervisor.vcpu.process import landlock, privileges
from hypervisor.vcpu.process.child import Exit
from hypervisor.vcpu.process.confinement import MAX_THREADS
from hypervisor.vcpu.process.spawner import Spawner
from tests.hostile.attempts import NOBODY
from tests.hypervisor.vcpu.process.spawning import Result, run, start

pytestmark = pytest.mark.anyio

CONFINED = "tests.hypervisor.vcpu.process.confined"
ORDINARY_USER = NOBODY if os.getuid() == 0 else None


async def confined(entry: str, told: object = None) -> Result:
    async with Spawner.running([CONFINED]) as spawner:
        return await run(spawner, f"{CONFINED}:{entry}", json.dumps(told).encode())


async def answer(entry: str, told: object = None) -> Any:
    result = await confined(entry, told)
    assert result.exit == Exit(code=0), result
    return json.loads(result.output)


def touch(folder: Path, names: list[str]) -> list[str]:
    """Make files, and the folders in which they are; their paths."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [str(path) for path in paths]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def limits_of(pid: int) -> dict[str, tuple[str, str]]:
    """Soft and hard, by the first word of their names in proc(5)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[4:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def shared_namespaces(pid: int) -> set[str]:
    """Those that `pid` has in common with us, of those that it should not."""
    spaces = {"user": "user", "network": "net", "IPC": "ipc", "UTS": "uts"}
    return {
        n
        for n, s in spaces.items()
        if os.readlink(f"/proc/{pid}/ns/{s}") == os.readlink(f"/proc/self/ns/{s}")
    }


@pytest.mark.parametrize("uid", [None, ORDINARY_USER])
async def test_seen_from_outside(uid: int | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Spawner.running([CONFINED]) as spawner:
            told = {"uid": uid, "open_files": 77, "data_bytes": 1 << 30}
            child = await start(spawner, f"{CONFINED}:stay", [theirs.fileno()], json.dumps(told).encode())
            with anyio.fail_after(20):
                await anyio.wait_readable(ours)
            undone = json.loads(ours.recv(1000))
            status, limits = status_of(child.pid), limits_of(child.pid)
            if os.getuid() == 0:  # it is not dumpable: only root looks
                assert not any("no user in" in what for what in undone)
                shared = shared_namespaces(child.pid)
                assert {f"no {name} namespace" for name in shared} <= {
                    what[: what.find(" of")] for what in undone
                }
            ours.send(b"x")
            assert await child.wait() == Exit(code=0)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert {int(status[f"Cap{s}"], 16) for s in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["Groups"] == ""
    assert limits["open files"] == ("77", "77")
    assert limits["data size"] == (str(1 << 30), str(1 << 30))
    zero = ("core file size", "locked memory", "msgqueue size")
    assert {limits[name] for name in zero} == {("0", "0")}


@pytest.mark.parametrize("uid", [None, ORDINARY_USER])
async def test_it_dies_with_its_server_and_nobody_looks_into_it(uid: int | None) -> None:
    assert await answer("attributes", uid) == [signal.SIGKILL, 0]


async def test_threads_come_later() -> None:
    result = await confined("with_threads")
    assert result.exit == Exit(code=1)
    assert "this one has 2" in result.output


@pytest.mark.parametrize("field", ["readable_paths", "writable_paths"])
async def test_what_is_given_must_be_there(field: str) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    result = await confined("give", {field: ["/nonexistent"]})
    assert result.exit == Exit(code=1)
    assert "FileNotFoundError" in result.output


async def test_exactly_what_is_given_is_reached(tmp_path: Path) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    names = ["a", "b", "c", "read/deep/file", "write/deep/file"]
    paths = touch(tmp_path, names)
    told = {
        "readable_paths": [paths[0], str(tmp_path / "read")],
        "writable_paths": [paths[1], str(tmp_path / "write")],
        "paths": paths,
    }
    found = await answer("reach", told)
    assert [found[path] for path in paths] == [
        ["ok", "EACCES"],
        ["ok", "ok"],
        ["EACCES", "EACCES"],
        ["ok", "EACCES"],
        ["ok", "ok"],
    ]


async def test_of_a_project_only_what_can_be_imported_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    names = ["module.py", "package/__init__.py", "package/data.txt", "thing.dist-info/METADATA"]
    private = [".env", "disk.img", "images/disk", ".git/config", ".hidden/module.py"]
    touch(tmp_path, names + private)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = await answer("reach", {"paths": [str(tmp_path / name) for name in names + private]})
    assert list(found.values()) == [["ok", "EACCES"]] * 4 + [["EACCES", "EACCES"]] * 5


async def test_sockets_with_network_only(tmp_path: Path) -> None:
    abstract = f"domzero-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as nameless,
    ):
        unix.bind(path := str(tmp_path / "socket"))
        nameless.bind("\0" + abstract)
        unix.listen()
        nameless.listen()
        told = {"port": tcp.getsockname()[1], "path": path, "abstract": abstract}
        without = await answer("connect", told)
        with_network = await answer("connect", told | {"network": True})
    assert set(without.values()) == {"EPERM"}
    assert {name: with_network[name] for name in ("tcp", "unix", "packets")} == {
        "tcp": "ok",
        "unix": "ok",
        "packets": "EPERM",
    }
    assert with_network["abstract"] == ("EPERM" if landlock.abi() >= 6 else "ok")


async def test_private_memory_is_limited() -> None:
    result = await confined("allocate")
    assert result.exit == Exit(code=1)
    assert result.output.startswith(str(32 << 20))
    assert "MemoryError" in result.output


async def test_descriptors_are_limited() -> None:
    result = await confined("many_files")
    assert result.output == "EMFILE 17 (20, 20)\n"


async def test_an_ordinary_user_s_threads_are_limited() -> None:
    undone, started = await answer("multiply", ORDINARY_USER)
    if "the number of threads is not limited" not in undone:
        assert started == MAX_THREADS - 1


# ---- systems that lack something


async def lacking(what: str) -> dict[str, Any]:
    async with Spawner.running([CONFINED]) as spawner:
        result = await run(spawner, f"{CONFINED}:lacking", what.encode())
    assert result.exit == Exit(code=0), result
    found: dict[str, Any] = json.loads(result.output)
    assert found["capabilities"] == [0, 0, 0]
    return found


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
async def test_an_older_landlock_protects_files_as_well(version: int) -> None:
    if landlock.abi() < version:
        pytest.skip("this kernel's Landlock is older still")
    found = await lacking(str(version))
    assert found["secret"] == "EACCES"
    assert found["signal"] == "EPERM"
    told = [what for what in found["undone"] if what.startswith("Landlock")]
    assert len(told) == sum(version < since for since in (3, 5, 6))


async def test_no_landlock_is_told() -> None:
    found = await lacking("0")
    assert "no Landlock: files are only protected by their modes" in found["undone"]
    assert found["secret"] == "ok"
    assert found["signal"] == "EPERM"


async def test_no_filter_is_told() -> None:
    found = await lacking("seccomp")
    assert "no filter of system calls: Operation not permitted" in found["undone"]
    if landlock.abi():
        assert found["secret"] == "EACCES"
    if landlock.abi() >= 4:
        assert found["tcp"] == "EACCES"
    if landlock.abi() >= 6:
        assert found["signal"] == "EPERM"


async def test_no_namespaces_are_told() -> None:
    found = await lacking("namespaces")
    for what in ("user", "IPC", "UTS", "network"):
        assert f"no {what} namespace of its own: Operation not permitted" in found["undone"]
    assert "the number of threads is not limited" in found["undone"]
    assert found["signal"] == "EPERM"


async def test_groups_that_cannot_be_left_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setgroups", refuse)
    monkeypatch.setattr(os, "getgroups", lambda: [os.getgid(), 54, 31])
    assert privileges.drop_groups() == ["not permitted to leave the groups [31, 54]"]
    monkeypatch.setattr(os, "getgroups", lambda: [os.getgid()])
    assert privileges.drop_groups() == []


async def test_a_bounding_set_that_stays_is_told() -> None:
    found = await lacking("bounding")
    if not any("user namespace" in what for what in found["undone"]) or os.getuid() == 0:
        assert "not permitted to empty the capability bounding set" in found["undone"]
