"""Ordering and atomic updates on shared memory.

Plain aligned stores through a `memoryview.cast('I')` are single stores, and x86-64 keeps stores in order, so
that publishing needs nothing from here. What x86-64 does reorder is a store with a later load of something
else; `fence` stands between the two.

The read-modify-write operations below hold while every party runs in one thread of one process. Domains in
processes of their own replace their bodies, not their callers.
"""

import platform
import threading

from ringbuffers.errors import RingError

_STRONGLY_ORDERED = ("x86_64", "AMD64")


class UnsupportedMachine(RingError):
    """This machine may reorder stores, and no barrier for it is written yet."""

    def __init__(self, machine: str) -> None:
        super().__init__(f"shared rings need x86-64 store ordering; this machine is {machine!r}")
        self.machine = machine


def require_store_ordering(machine: str) -> None:
    """Check that stores of `machine`, named as by `platform.machine()`, become visible in program order.

    Raises UnsupportedMachine if they may not.
    """
    if machine not in _STRONGLY_ORDERED:
        raise UnsupportedMachine(machine)


require_store_ordering(platform.machine())

_lock = threading.Lock()
_acquire, _release = _lock.acquire, _lock.release


def fence() -> None:
    """Let all stores before it become visible before any load after it: a full barrier (xen_mb).

    CPython offers none. Taking a free lock is a locked instruction, which is one on x86-64.
    """
    if _acquire(False):
        _release()
    else:
        # Another thread stands here, or an interrupt or a fork left the lock taken: nobody waits for it.
        threading.Lock().acquire()


def compare_exchange(words: memoryview, index: int, expected: int, new: int) -> bool:
    """Store `new` at `words[index]` if `expected` is there; return whether it was."""
    if words[index] != expected:
        return False
    words[index] = new
    return True


def fetch_or(words: memoryview, index: int, bits: int) -> int:
    """Set `bits` in `words[index]`; return the value before."""
    old: int = words[index]
    words[index] = old | bits
    return old


def fetch_and(words: memoryview, index: int, bits: int) -> int:
    """Clear all but `bits` in `words[index]`; return the value before."""
    old: int = words[index]
    words[index] = old & bits
    return old
