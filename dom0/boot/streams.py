"""File descriptors that a console is shown on and typed into, without ever keeping the event loop waiting."""

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

CHUNK_BYTES: Final = 4096
"""PIPE_BUF: what a pipe takes at once if it is writable at all"""


def can_wait(fd: int) -> bool:
    """Whether one waits for the descriptor: not for a regular file or /dev/null, which are always ready."""
    with select.epoll() as poll:
        try:
            poll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True


class Source:
    """Bytes from a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waits = can_wait(fd)

    async def read(self) -> bytes:
        """At least one byte; b"" at the end, or when the terminal is gone."""
        if self._waits:
            await anyio.wait_readable(self._fd)
        else:
            await checkpoint()
        try:
            return os.read(self._fd, CHUNK_BYTES)
        except OSError:
            return b""


class Sink:
    """Bytes to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waits = can_wait(fd)

    async def write(self, data: bytes) -> None:
        """All of `data`. Raises OSError, BrokenPipeError above all."""
        rest = memoryview(data)
        while rest:
            if self._waits:
                await anyio.wait_writable(self._fd)
            rest = rest[os.write(self._fd, rest[:CHUNK_BYTES]) :]


@contextmanager
def raw_mode(fd: int) -> Iterator[bool]:
    """Hands every key on as it is pressed, if the descriptor is a terminal; says whether. As it was at the end."""
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)
    sys.stdout.flush()
    tty.setraw(fd)
    try:
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
