"""Ordering and atomic updates on shared memory. x86-64 alone: other machines are refused at import.

Four ways to write a word that others read, of which the first that holds is right:

Its only writer stores it  Ring indices, and grant entries that permit nothing. An aligned store through
                           `memoryview.cast` is a single one, and x86-64 keeps stores in order: publishing
                           needs nothing from here.
... and loads another      x86-64 may do the load first; `fence` stands between the two.
Writers take turns         Event words: whoever may write can be sure that nobody else does meanwhile.
                           `plain_fetch_or`, `plain_fetch_and`.
Writers meet               The flags of grant entries: the granter's kernel exchanges 16 bits of a word of
                           which the hypervisor exchanges 32 at the same time, in another process. A bit that
                           gets lost there is a page that its owner uses again while a peer has it mapped.
                           `AtomicWords`.

What `AtomicWords` costs: a compare-and-exchange takes 4 times as long as its plain counterpart (220 and 56 ns
on one machine). libatomic through ctypes costs two to three times as much again, and is not installed everywhere; a
lock in shared memory costs more, and a guest that does not give it back stops everybody; a compiled extension
would cost a tenth, and a compiler on each machine. locked_instructions.py says how it is done.
"""

import platform
import threading
from ctypes import addressof, c_char, c_void_p
from typing import Final

from ringbuffers.errors import RingError, RingMisuse
from ringbuffers.locked_instructions import locked_instructions

_STRONGLY_ORDERED = ("x86_64", "AMD64")


class UnsupportedMachine(RingError):
    """This machine may reorder stores, and neither a barrier nor atomic operations are written for it yet."""

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


class AtomicWords:
    """Shared words that several processes update at the same time.

    words: the same for plain loads and stores. It keeps the memory: a mapping does not close, nor go away,
    while an AtomicWords of it is there.

    Every operation is one locked instruction, a full barrier, and over at once whatever others write.
    Values are taken modulo the size of a word. Mixed use is fine: the halves of a word may be an AtomicWords
    of their own.
    """

    __slots__ = ("_base", "_clear_bits", "_compare_exchange", "_count", "_instructions", "words")

    def __init__(self, words: memoryview) -> None:
        """`words`: naturally aligned, writable, of format "H" or "I". Raises RingMisuse for others, and
        NoExecutableMemory.
        """
        if words.format not in _FORMATS:
            raise RingMisuse("format of shared words", words.format, " or ".join(_FORMATS))
        if words.readonly or not words.c_contiguous or not words.nbytes:
            raise RingMisuse("shared words", words, "a writable, contiguous view that is not empty")
        address = addressof(c_char.from_buffer(words))
        if address % words.itemsize:
            raise RingMisuse("address of shared words", address, f"a multiple of {words.itemsize}")
        instructions = locked_instructions()[words.itemsize]
        self.words = words
        self._count = len(words)
        self._base = c_void_p(address)
        self._compare_exchange = instructions.compare_exchange
        self._clear_bits = instructions.clear_bits
        self._instructions = instructions  # no mapping, no code

    def compare_exchange(self, index: int, expected: int, new: int) -> bool:
        """Store `new` in word `index` if `expected` is there; return whether it was. RingMisuse: no such
        word.
        """
        if not 0 <= index < self._count:
            raise RingMisuse("index of a shared word", index, f"0 to {self._count - 1}")
        return self._compare_exchange(self._base, index, expected, new)

    def clear_bits(self, index: int, bits: int) -> None:
        """Clear `bits` in word `index`. RingMisuse: no such word."""
        if not 0 <= index < self._count:
            raise RingMisuse("index of a shared word", index, f"0 to {self._count - 1}")
        self._clear_bits(self._base, index, bits)


_FORMATS: Final = ("H", "I")


def plain_fetch_or(words: memoryview, index: int, bits: int) -> int:
    """Set `bits` in `words[index]`; return the value before. Not atomic.

    Right for event words, whose writers take turns: those of a vCPU are written by its own thread, and by the
    hypervisor either in that same thread or while the vCPU is stopped inside a hypercall.
    """
    old: int = words[index]
    words[index] = old | bits
    return old


def plain_fetch_and(words: memoryview, index: int, bits: int) -> int:
    """Clear all but `bits` in `words[index]`; return the value before. Not atomic: see plain_fetch_or."""
    old: int = words[index]
    words[index] = old & bits
    return old
