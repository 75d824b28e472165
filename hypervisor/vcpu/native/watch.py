"""What stops the engine in time, though the guest turns in a loop: a thread that waits for a timer and for bells.

The engine runs with Python's lock held, since every hook would have to take it back otherwise; no thread of Python
could stop it. So the thread is of machine code. It knows one block of memory:

    running   u64  which run it is, 0 between runs; the engine's thread writes it
    pending   u64  not 0: a bell rang, maybe between runs; this thread sets it, the engine's clears it
    epoll     u64  what to wait for
    stop, exit, countdown   addresses of the engine's fields that stop it
    event     what epoll_wait writes
    timer     u64  the timer's descriptor

A stop that comes while a run is about to begin is undone by the engine, so it is repeated every millisecond until
that run is over. Waiting is edge-triggered: nobody has to tell the thread that a bell was answered.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
from typing import Final

from hypervisor.fixed_mapping import address_of
from hypervisor.vcpu.native.machine_code import MachineCode, keep
from hypervisor.vcpu.native.opening import Opened

_CODE: Final = bytes.fromhex(
    "53 41 54 41 55"  # push rbx, r12, r13
    "48 89 fb"  # mov rbx, rdi
    "49 c7 c5 ff ff ff ff"  # forever: r13 = -1
    # wait: epoll_wait([epoll], event, 1, r13)
    "b8 e8 00 00 00  8b 7b 10  48 8d 73 30  ba 01 00 00 00  4d 89 ea  0f 05"
    "85 c0  74 16  78 3d"  # nothing within r13 ms: to again; an error: to error
    "8b 43 34  3b 43 40  74 09"  # is it the timer?
    "b8 01 00 00 00  48 87 43 08"  # no: pending = 1, before running is read
    "4c 8b 23"  # r12 = running
    "4d 85 e4  74 c4  4c 3b 23  75 bf"  # again: to forever if it was no run, or is another by now
    "48 8b 43 18  c6 00 01"  # [stop] = 1
    "48 8b 43 20  c6 00 01"  # [exit] = 1
    "48 8b 43 28  66 c7 00 ff ff"  # [countdown] = -1
    "41 bd 01 00 00 00  eb a7"  # r13 = 1; to wait
    "83 f8 f7  75 9b"  # error: to forever, unless it is EBADF
    "41 5d 41 5c 5b 31 c0 c3"  # return 0
)
_BLOCK: Final = struct.Struct("<6Q16xQ")
_RUNNING, _PENDING = 0, 1
_ITIMERSPEC: Final = struct.Struct("<4Q")
_CLOCK_MONOTONIC: Final = 1
_NANOSECONDS: Final = 1_000_000_000


class Watch:
    """Made in the process that runs the engine, after it was confined: it starts a thread."""

    def __init__(self, code: MachineCode, opened: Opened) -> None:
        libc = ctypes.PyDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._timer = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._epoll = select.epoll()
        self._epoll.register(self._timer, select.EPOLLIN | select.EPOLLET)
        self._fd = -1
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        keep(self._memory)
        keep(self._epoll)
        self._block = memoryview(self._memory)[: _BLOCK.size].cast("Q")
        _BLOCK.pack_into(
            self._memory,
            0,
            0,
            0,
            self._epoll.fileno(),
            opened.stop_request,
            opened.exit_request,
            opened.countdown,
            self._timer,
        )
        start = address_of(self._memory) + _BLOCK.size
        self._when = memoryview(self._memory)[_BLOCK.size : _BLOCK.size + _ITIMERSPEC.size].cast("Q")
        self._when_address = start
        self._runs = 0
        self._start(libc, code.add(_CODE))

    def _start(self, libc: ctypes.PyDLL, routine: int) -> None:
        thread = ctypes.c_uint64()
        libc.pthread_create.argtypes = (ctypes.c_void_p,) * 4
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            error = libc.pthread_create(ctypes.byref(thread), None, routine, address_of(self._memory))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        if error:
            raise OSError(error, "a thread to watch the engine")

    def begin(self, slice_ns: int, fd: int) -> bool:
        """A run begins: it is to end after `slice_ns`, or when `fd` can be read (-1: none). False: not to begin at
        all, since something came before.
        """
        if fd != self._fd:
            self._watch(fd)
        block = self._block
        self._runs += 1
        block[_RUNNING] = self._runs
        seconds, self._when[3] = divmod(slice_ns if slice_ns > 0 else 1, _NANOSECONDS)
        self._when[2] = seconds
        self._settime(self._timer, 0, self._when_address, None)
        if block[_PENDING]:
            self.end()
            return False
        return True

    def end(self) -> None:
        """The run is over. Whatever came, the caller looks for it now."""
        self._block[_RUNNING] = 0
        self._block[_PENDING] = 0

    def _watch(self, fd: int) -> None:
        if self._fd >= 0:
            self._epoll.unregister(self._fd)
        if fd >= 0:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._fd = fd
