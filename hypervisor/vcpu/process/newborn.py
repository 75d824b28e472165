"""What a forked child does before its entry is called: it keeps what it was given, and nothing else of its
server.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TextIO

from hypervisor.vcpu.process.fork_messages import read_payload
from hypervisor.vcpu.process.libc import PR_SET_PDEATHSIG, close_range, prctl, set_process_name

Entry = Callable[[bytes, list[int]], None]
"""Called with the payload and the given descriptors in their order. Returning is exit code 0."""

FIRST_FREE_FD: Final = 3
LAST_FD: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child is made of. entry: module:function. parent: the server's pid. The descriptors are the
    child's own copies: payload is a memfd, output becomes stdout and stderr, fds go to the entry.
    """

    entry: str
    name: str
    parent: int
    payload: int
    output: int
    fds: Sequence[int]


def live(birth: Birth) -> NoReturn:
    """Call the entry in a process that was just forked, and exit when it returns."""
    code = 1
    try:
        _leave_the_server(birth)
        code = _run(birth)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _leave_the_server(birth: Birth) -> None:
    die_with(birth.parent)
    os.setsid()
    os.dup2(birth.output, 1)
    os.dup2(birth.output, 2)
    close_others(sorted({birth.payload, *birth.fds}))
    set_process_name(birth.name)
    sys.argv = [birth.name]
    sys.stdout = _text_output(1)
    sys.stderr = _text_output(2)
    faulthandler.enable(2)


def _text_output(fd: int) -> TextIO:
    """A new stream: the server's was made for a file that can be sought in, and holds what it was."""
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def die_with(parent: int) -> None:
    """Be killed when the process `parent`, which has forked this one, ends; at once if it has ended."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def close_others(kept: Sequence[int]) -> None:
    """Close every descriptor but 0, 1, 2 and `kept`, which is in ascending order."""
    first = FIRST_FREE_FD
    for fd in kept:
        close_range(first, fd - 1)
        first = fd + 1
    close_range(first, LAST_FD)


def _run(birth: Birth) -> int:
    entry, payload = resolve(birth.entry), read_payload(birth.payload)
    try:
        entry(payload, list(birth.fds))
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    return 0


def resolve(entry: str) -> Entry:
    """The function that `module:function` names. Raises ImportError, AttributeError."""
    module, _, function = entry.partition(":")
    found: Entry = getattr(importlib.import_module(module), function)
    return found


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or the program has closed it
            continue
