"""Doorbells: how one process tells another that an event has come for a port, without the hypervisor.

A bell is for one sender and one listener. It consists of two pages that both have mapped, and a pipe that wakes
the listener when it sleeps:

byte 0 of page 0      the listener sleeps: written by the listener, read by the sender
byte 1 of page 0      the listener shall ask for what has changed (SYNC): set by the hypervisor
byte `port` of page 1 an event for the listener's port: set by the sender, cleared by the listener

A byte is set by a plain store, as often as one likes; nobody reads, modifies and writes. The order is all:

sender     publish in the ring, set the byte, fence, read `asleep`
listener   set `asleep`, fence, read the bytes, sleep
listener   clear the byte, fence, look into the ring

Whatever the sender writes here is a hint: the listener takes no event for a port that this sender is not bound
to. Neither can stop the other: each has an end of the pipe of its own, whose flags the other cannot change.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

from ringbuffers.atomics import fence

PAGE_SIZE: Final = 4096
BELL_BYTES: Final = 2 * PAGE_SIZE
ASLEEP: Final = 0
SYNC: Final = 1
DRAIN_BYTES: Final = 4096

_NO_RESIZING: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS: Final = 1033


class BellMemory:
    """The two pages, mapped by whoever holds this."""

    __slots__ = ("_map", "header", "ports")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BELL_BYTES)
        view = memoryview(self._map)
        self.header = view[:PAGE_SIZE]
        self.ports = view[PAGE_SIZE:]

    def close(self) -> None:
        """Unmap the pages."""
        for view in (self.header, self.ports):
            view.release()
        with suppress(BufferError):
            self._map.close()


class Ringer:
    """The sender's end: owns the pipe's writing end."""

    __slots__ = ("_header", "_pipe", "_ports", "memory")

    def __init__(self, memory: BellMemory, pipe: int) -> None:
        self.memory = memory
        self._header = memory.header
        self._ports = memory.ports
        self._pipe = pipe

    def ring(self, port: int) -> None:
        """Tell the listener of an event for its `port`; wake it if it sleeps."""
        self._ports[port] = 1
        fence()
        if self._header[ASLEEP]:
            self.wake()

    def ask_to_sync(self) -> None:
        """Let the listener ask for what has changed."""
        self._header[SYNC] = 1
        self.rouse()

    def rouse(self) -> None:
        """Let the listener look what was written for it; wake it if it sleeps."""
        fence()
        if self._header[ASLEEP]:
            self.wake()

    def wake(self) -> None:
        """End the listener's sleep. A pipe that is full does that already; one that nobody reads, nobody
        sleeps at.
        """
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipe, b"\x01")

    def close(self) -> None:
        """Give up this end."""
        os.close(self._pipe)
        self.memory.close()


class Listener:
    """The listener's end: owns the pipe's reading end. `bound`: the ports that the sender may ring for; None:
    all (the hypervisor's own bell). `early`: others that the last `collect` has found rung.
    """

    __slots__ = ("_header", "_ports", "bound", "early", "memory", "pipe")

    def __init__(self, memory: BellMemory, pipe: int, bound: set[int] | None) -> None:
        self.memory = memory
        self.bound = bound
        self.early: list[int] = []
        self.pipe = pipe
        self._header = memory.header
        self._ports = memory.ports

    def collect(self) -> list[int]:
        """The ports that were rung for since the last time."""
        self.early = _NOTHING
        seen = self._ports.tobytes()
        at = seen.find(1)
        if at < 0:
            return _NOTHING
        found: list[int] = []
        early: list[int] = []
        while at >= 0:
            self._ports[at] = 0
            (found if self.bound is None or at in self.bound else early).append(at)
            at = seen.find(1, at + 1)
        self.early = early
        fence()
        return found

    def put_back(self) -> None:
        """Let those be found again that were early: the sender may have been told of a port a moment before the
        listener, who is asked to sync by then.
        """
        for port in self.early:
            self._ports[port] = 1
        self.early = _NOTHING

    @property
    def wants_sync(self) -> bool:
        """Whether the hypervisor has changed something."""
        return bool(self._header[SYNC])

    def synced(self) -> None:
        """It is about to be asked for."""
        self._header[SYNC] = 0
        fence()

    def fall_asleep(self) -> None:
        """Be woken by the pipe from now on. Fence, and collect once more, before sleeping."""
        self._header[ASLEEP] = 1

    def awake(self) -> None:
        """Be woken no more."""
        self._header[ASLEEP] = 0

    def drain(self) -> bool:
        """Forget the wake-ups so far. False: there will be none any more, as nobody has the sender's end."""
        try:
            return bool(os.read(self.pipe, DRAIN_BYTES))
        except BlockingIOError:
            return True

    def close(self) -> None:
        """Give up this end."""
        os.close(self.pipe)
        self.memory.close()


_NOTHING: Final[list[int]] = []


class Bell:
    """A new bell, as the hypervisor makes it: three descriptors to be handed on. Raises OSError."""

    __slots__ = ("listener_end", "memory_fd", "sender_end")

    def __init__(self) -> None:
        self.memory_fd = os.memfd_create("domzero-bell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.memory_fd, BELL_BYTES)
            fcntl.fcntl(self.memory_fd, _F_ADD_SEALS, _NO_RESIZING)
            self.listener_end, self.sender_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            os.close(self.memory_fd)
            raise

    def close(self) -> None:
        """The descriptors that were not taken over."""
        for fd in (self.memory_fd, self.listener_end, self.sender_end):
            if fd >= 0:
                os.close(fd)
