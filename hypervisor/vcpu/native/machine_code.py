"""A few instructions of our own, for what the engine's library has no call for.

The library leaves the guest's execution in the middle of an instruction by a long jump, which must not cross Python.
So where a hook has to end its instruction, a stub stands between the two: it calls the hook, and when Python is gone,
it jumps. The engine makes executable memory anyway; these are some hundred bytes more.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Final

from hypervisor.fixed_mapping import address_of

ARGUMENT: Final = b"\x48\xbf"  # mov rdi, imm64
SECOND_ARGUMENT: Final = b"\xbe"  # mov esi, imm32
_CALL: Final = b"\x48\xb8%b\xff\xd0"  # mov rax, imm64; call rax
_ALIGN_STACK: Final = b"\x48\x83\xec\x08"  # sub rsp, 8
_NEVER: Final = b"\x0f\x0b"  # ud2


def keep(thing: Any) -> None:
    """Never drop `thing`, not even when Python ends: other threads still use what it stands for."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def address(function: Any) -> int:
    """Where a function of a library, or one that ctypes made of Python's, begins."""
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


def _quad(value: int) -> bytes:
    return value.to_bytes(8, "little")


class MachineCode:
    """Executable memory, filled once from its beginning."""

    def __init__(self) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
        keep(self._memory)
        self._address = address_of(self._memory)

    def add(self, code: bytes) -> int:
        """Where `code` now is."""
        start = self._address + self._memory.tell()
        self._memory.write(code)
        return start

    def call_and_leave(self, hook: int, leave: int, engine_cpu: int) -> int:
        """A function that calls `hook` with its own arguments and then `leave(engine_cpu)`, which does not return."""
        return self.add(
            _ALIGN_STACK + _CALL % _quad(hook) + ARGUMENT + _quad(engine_cpu) + _CALL % _quad(leave) + _NEVER
        )

    def step_call_and_leave(self, env: int, octets: int, hook: int, leave: int, engine_cpu: int) -> int:
        """The same, but first rip, at 128 in `env`, is moved on by `octets`."""
        step = b"\x48\xb8" + _quad(env) + b"\x48\x83\x80\x80\x00\x00\x00" + bytes([octets])
        start = self.add(step)  # mov rax, env; add qword [rax + 128], octets
        self.call_and_leave(hook, leave, engine_cpu)
        return start

    def debug_exception(self, known: int, env: int, raise_exception: int) -> int:
        """A function of the engine's CPU that calls `known`, which returns only if no breakpoint of the guest's was
        met. Then `raise_exception(env, 1)`, which does not return: the engine would turn for ever.
        """
        return self.add(
            _ALIGN_STACK
            + _CALL % _quad(known)
            + ARGUMENT
            + _quad(env)
            + SECOND_ARGUMENT
            + (1).to_bytes(4, "little")
            + _CALL % _quad(raise_exception)
            + _NEVER
        )
