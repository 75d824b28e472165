"""Children that confine themselves in one way or another, and tell what came of it as JSON."""

import ctypes
import json
import os
import resource
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn
from unittest.mock import patch

from hypervisor.vcpu.process import confinement, landlock, namespaces, privileges, seccomp
from hypervisor.vcpu.process.confinement import Confinement, confine
from hypervisor.vcpu.process.libc import PR_GET_DUMPABLE, PR_GET_PDEATHSIG, prctl
from tests.hostile.attempts import become, outcome


def of(told: dict[str, Any]) -> Confinement:
    """As the test has described it."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return Confinement(**fields)


def stay(payload: bytes, fds: list[int]) -> None:
    """Confined; says on the first descriptor what could not be done, and waits until the other end closes."""
    told = json.loads(payload)
    if os.getuid() == 0:
        os.setgroups([54, 31])
    become(told.pop("uid", None))
    undone = confine(of(told))
    channel = socket.socket(fileno=fds[0])
    channel.send(json.dumps(undone).encode())
    channel.recv(1)


def attributes(payload: bytes, fds: list[int]) -> None:
    """The signal that comes when the server dies, and whether others may look into the process."""
    number = ctypes.c_int()
    become(json.loads(payload))
    confine(Confinement())
    prctl(PR_GET_PDEATHSIG, ctypes.addressof(number))
    print(json.dumps([number.value, prctl(PR_GET_DUMPABLE)]))


def with_threads(payload: bytes, fds: list[int]) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        confine(Confinement())
    finally:
        done.set()


def give(payload: bytes, fds: list[int]) -> None:
    """Only asks for what the payload says."""
    confine(of(json.loads(payload)))


def reach(payload: bytes, fds: list[int]) -> None:
    """Files by name, for reading and for writing."""
    told = json.loads(payload)
    paths = told.pop("paths")
    confine(of(told))
    found = {}
    for path in paths:
        found[path] = [
            outcome(lambda path=path, flags=flags: os.open(path, flags)) for flags in (os.O_RDONLY, os.O_RDWR)
        ]
    print(json.dumps(found))


def connect(payload: bytes, fds: list[int]) -> None:
    """To a TCP port and to a Unix socket."""
    told = json.loads(payload)
    port, path, abstract = told.pop("port"), told.pop("path"), told.pop("abstract")
    confine(of(told))
    print(
        json.dumps(
            {
                "tcp": outcome(lambda: socket.create_connection(("127.0.0.1", port))),
                "unix": outcome(lambda: socket.socket(socket.AF_UNIX).connect(path)),
                "abstract": outcome(lambda: socket.socket(socket.AF_UNIX).connect("\0" + abstract)),
                "packets": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            }
        )
    )


def allocate(payload: bytes, fds: list[int]) -> None:
    """More private memory than it may have."""
    confine(Confinement(data_bytes=256 << 20))
    print(len(bytearray(32 << 20)))
    bytearray(512 << 20)


def multiply(payload: bytes, fds: list[int]) -> None:
    """More threads than it may have."""
    become(json.loads(payload))
    undone = confine(Confinement())
    done = threading.Event()
    started = 0
    try:
        for _ in range(confinement.MAX_THREADS + 20):
            threading.Thread(target=done.wait).start()
            started += 1
    except RuntimeError as error:
        assert str(error) == "can't start new thread"  # noqa: PT017 - no test, but a child of one
    finally:
        done.set()
    print(json.dumps([undone, started]))


def many_files(payload: bytes, fds: list[int]) -> None:
    """More descriptors than it may have."""
    confine(Confinement(open_files=20))
    kept: list[int] = []
    print(
        outcome(lambda: kept.extend(os.dup(0) for _ in range(30))),
        len(kept),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    )


def lacking(payload: bytes, fds: list[int]) -> None:
    """On a system that lacks something: named by the payload, or a number: the version of Landlock."""
    lack = payload.decode()
    secret = "/etc/passwd"
    if lack.isdigit():
        with patch.object(landlock, "abi", lambda: int(lack)):
            undone = confine(Confinement())
    else:
        module = {"seccomp": seccomp, "namespaces": namespaces, "groups": os, "bounding": privileges}[lack]
        name = {"groups": "setgroups", "bounding": "prctl"}.get(lack, "syscall")
        original = getattr(module, name)
        with patch.object(module, name, refusing(original) if lack == "bounding" else refuse):
            undone = confine(Confinement())
    print(
        json.dumps(
            {
                "undone": undone,
                "secret": outcome(lambda: os.open(secret, os.O_RDONLY)),
                "signal": outcome(lambda: os.kill(os.getppid(), 0)),
                "tcp": outcome(lambda: socket.create_connection(("127.0.0.1", 9))),
                "capabilities": privileges.held(),
            }
        )
    )


def refuse(*args: object) -> NoReturn:
    raise PermissionError(1, "Operation not permitted")


def refusing(original: Callable[..., int]) -> Callable[..., int]:
    """prctl but for PR_CAPBSET_DROP."""
    return lambda option, *args: refuse() if option == 24 else original(option, *args)
