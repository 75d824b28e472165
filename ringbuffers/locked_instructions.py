"""x86-64's atomic read-modify-write instructions, as functions that Python can call.

CPython has none for memory that processes share, so that a few bytes of position-independent machine code are
written into a private mapping and called through ctypes. The mapping is writable while it is filled and
executable from then on, never both. Nothing is needed but the C library that the interpreter runs on.

All functions take the address of the first word, an index, and 32-bit values (System V calling convention:
rdi, esi, edx, ecx). Neither ctypes nor the code checks anything: `ringbuffers.atomics` does.
"""

import mmap
import os
from ctypes import CDLL, PYFUNCTYPE, addressof, c_bool, c_char, c_size_t, c_void_p, get_errno
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from ringbuffers.errors import RingError

_FILL: Final = mmap.PROT_READ | mmap.PROT_WRITE
_EXECUTE: Final = mmap.PROT_READ | mmap.PROT_EXEC
_ALIGNMENT: Final = 16

_ENTER: Final = (
    "f3 0f 1e fa"  # endbr64: indirect calls may land here
    "89 f6"  #       mov esi, esi: the index as 64 bits
)
_COMPARE: Final = "89 d0"  # mov eax, edx: what is expected
_COMPARED: Final = (
    "0f 94 c0"  #    sete al: whether it was there
    "c3"  #          ret
)
_INVERT: Final = "f7 d2"  # not edx: the bits that stay
_RETURN: Final = "c3"

_CODE: Final = {
    2: (
        # lock cmpxchg [rdi + 2 * rsi], cx
        _ENTER + _COMPARE + "f0 66 0f b1 0c 77" + _COMPARED,
        # lock and [rdi + 2 * rsi], dx
        _ENTER + _INVERT + "f0 66 21 14 77" + _RETURN,
    ),
    4: (
        # lock cmpxchg [rdi + 4 * rsi], ecx
        _ENTER + _COMPARE + "f0 0f b1 0c b7" + _COMPARED,
        # lock and [rdi + 4 * rsi], edx
        _ENTER + _INVERT + "f0 21 14 b7" + _RETURN,
    ),
}
"""by the size of a word in bytes: compare and exchange; clear bits"""


class NoExecutableMemory(RingError):
    """The system lets this process have no executable memory of its own, and no atomic operation works
    without.

    errno: what mprotect failed with.
    """

    def __init__(self, errno: int) -> None:
        why = os.strerror(errno)
        super().__init__(
            f"atomic operations need a page of executable memory, and the system refused it: {why}"
        )
        self.errno = errno


class CompareExchange(Protocol):
    """Store `new` in a word if `expected` is there; whether it was."""

    def __call__(self, words: c_void_p, index: int, expected: int, new: int, /) -> bool: ...


class ClearBits(Protocol):
    """Clear bits in a word."""

    def __call__(self, words: c_void_p, index: int, bits: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class LockedInstructions:
    """The operations on words of one size. They work as long as `code`, the mapping that they lie in, is
    kept.
    """

    compare_exchange: CompareExchange
    clear_bits: ClearBits
    code: mmap.mmap


@cache
def locked_instructions() -> dict[int, LockedInstructions]:
    """The operations by the size of a word in bytes: 2 and 4. NoExecutableMemory.

    The first call makes them. A process that will give up the right to make memory executable calls it
    before.
    """
    functions = [bytes.fromhex(code) for pair in _CODE.values() for code in pair]
    code, addresses = _place(functions)
    # These keep the GIL, as a few nanoseconds are not worth giving it up. No argument types are declared:
    # ctypes is twice as slow with them, and passes a c_void_p and ints as they are meant without.
    prototype_exchange, prototype_clear = PYFUNCTYPE(c_bool), PYFUNCTYPE(None)
    return {
        size: LockedInstructions(prototype_exchange(exchange), prototype_clear(clear), code)
        for size, exchange, clear in zip(_CODE, addresses[::2], addresses[1::2])
    }


def _place(functions: list[bytes]) -> tuple[mmap.mmap, list[int]]:
    """Make `functions` executable: the mapping that they lie in, and the address of each."""
    code = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, _FILL)
    start = addressof(c_char.from_buffer(code))
    addresses = []
    offset = 0
    for function in functions:
        code[offset : offset + len(function)] = function
        addresses.append(start + offset)
        offset += -(-len(function) // _ALIGNMENT) * _ALIGNMENT
    mprotect = CDLL(None, use_errno=True).mprotect
    if mprotect(c_void_p(start), c_size_t(mmap.PAGESIZE), _EXECUTE):
        raise NoExecutableMemory(get_errno())
    return code, addresses
