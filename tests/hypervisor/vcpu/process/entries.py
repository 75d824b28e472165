"""What the tests' children do: each is called by the fork server's child with a payload and descriptors."""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

PR_GET_PDEATHSIG = 2
PR_GET_NAME = 16


def nothing(payload: bytes, fds: list[int]) -> None:
    """Only the way there and back."""


def echo(payload: bytes, fds: list[int]) -> None:
    """The payload goes out, each descriptor says its position, both streams are heard."""
    sys.stdout.write(payload.decode())
    sys.stdout.flush()
    for position, fd in enumerate(fds):
        os.write(fd, f"[{position}]".encode())
    sys.stderr.write(" and stderr")


def describe(payload: bytes, fds: list[int]) -> None:
    """What kind of process this is."""
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    open_descriptors = []
    for fd in descriptors:
        with contextlib.suppress(OSError):  # the listing itself
            os.fstat(fd)
            open_descriptors.append(fd)
    libc = ctypes.CDLL(None)
    number, name = ctypes.c_int(), ctypes.create_string_buffer(16)
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    libc.prctl(PR_GET_NAME, name)
    found = {
        "descriptors": sorted(open_descriptors),
        "given": fds,
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "session": os.getsid(0) == os.getpid(),
        "parent": os.getppid(),
        "death signal": number.value,
        "name": name.value.decode(),
        "argv": sys.argv,
        "environment": sorted(os.environ),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [int(s) for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN],
        "faulthandler": faulthandler.is_enabled(),
        "threads": len(os.listdir("/proc/self/task")),
        "path": sys.path,
        "imported": sorted(sys.modules),
    }
    print(json.dumps(found))


def fail(payload: bytes, fds: list[int]) -> None:
    raise LookupError(payload.decode())


def leave(payload: bytes, fds: list[int]) -> None:
    """By sys.exit, with a number or a text."""
    text = payload.decode()
    print("left", end="")
    sys.exit(int(text) if text.isdigit() else text)


def crash(payload: bytes, fds: list[int]) -> None:
    """As native code does."""
    ctypes.string_at(0)


def say_and_wait(payload: bytes, fds: list[int]) -> None:
    """Says on the first descriptor that it is there, and stays until it is killed."""
    os.write(fds[0], b"here")
    while True:
        time.sleep(1000)


def count(payload: bytes, fds: list[int]) -> None:
    """Answers a byte for each byte."""
    while data := os.read(fds[0], 1):
        os.write(fds[0], data)


def wait_for_end(payload: bytes, fds: list[int]) -> None:
    """Ends when the other end of the first descriptor is closed."""
    while os.read(fds[0], 1):
        pass


def children_of(pid: int) -> list[int]:
    """The processes, zombies included, whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found
