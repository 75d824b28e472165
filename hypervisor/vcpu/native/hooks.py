"""What the engine calls when the guest does something that it does not do by itself."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final, Protocol

from hypervisor.vcpu.native.library import (
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_X86_INS_CPUID,
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_INS_SYSCALL,
    UC_X86_INS_SYSENTER,
    Library,
)
from hypervisor.vcpu.native.machine_code import MachineCode, address

if TYPE_CHECKING:
    from hypervisor.vcpu.native.engine import Engine

GENERAL_PROTECTION: Final = 13
SYSCALL_BYTES: Final = 2
_ONE_BYTE_INTERRUPTS: Final = frozenset({1, 3, 4})
"""ICEBP, INT3, INTO"""


class Handler(Protocol):
    """What happens inside run(). What a method raises ends the run and is raised by run() again."""

    def syscall(self) -> None:
        """SYSCALL, of guest kernel or user. rip is the next instruction; whatever it is set to is where the guest
        goes on.
        """

    def sysenter(self) -> None:
        """SYSENTER, the same."""

    def exception(self, vector: int, error_code: int) -> None:
        """A fault; rip is the instruction that met it. For a page fault cr2 is the address. IN, OUT and the like are
        #GP(0), whatever IOPL is.
        """

    def software_interrupt(self, vector: int, next_rip: int) -> None:
        """INT n, INT3, INTO; rip is that of the instruction, still (if it has no prefix)."""

    def invalid_opcode(self) -> None:
        """#UD; rip is the instruction."""

    def cpuid(self) -> None:
        """CPUID without a prefix: put the answer for leaf eax, subleaf ecx into rax, rbx, rcx, rdx. rip stays."""


# The C functions have more arguments; none is converted that is not wanted.
_Procedure: Final = ctypes.PYFUNCTYPE(None)
_Predicate: Final = ctypes.PYFUNCTYPE(ctypes.c_int)
_Interrupt: Final = ctypes.PYFUNCTYPE(None, ctypes.c_size_t, ctypes.c_uint32)


class Hooks:
    """handler: who is called. raised: what it raised in this run. stubs: our machine code."""

    def __init__(self, engine: Engine, library: Library) -> None:
        self.handler: Handler
        self.raised: BaseException | None = None
        self._engine = engine
        self._library = library
        held, opened = library.held, engine.opened
        self.stubs = MachineCode()
        self._kept = [
            _Procedure(self._syscall),
            _Procedure(self._sysenter),
            _Predicate(self._cpuid),
            _Interrupt(self._interrupt),
            _Predicate(self._invalid_opcode),
            _Procedure(self._port_access),
        ]
        syscall, sysenter, cpuid, interrupt, invalid, port_access = map(address, self._kept)
        # Where we say where the guest goes on, the engine leaves the instruction: behind SYSCALL it would add to RIP,
        # and trap for a TF that was set just now.
        leave = address(held.cpu_loop_exit_x86_64), opened.cpu
        ports = self.stubs.call_and_leave(port_access, *leave)
        syscall = self.stubs.step_call_and_leave(opened.env, SYSCALL_BYTES, syscall, *leave)
        sysenter = self.stubs.step_call_and_leave(opened.env, SYSCALL_BYTES, sysenter, *leave)
        for instruction, function in (
            (UC_X86_INS_SYSCALL, syscall),
            (UC_X86_INS_SYSENTER, sysenter),
            (UC_X86_INS_CPUID, cpuid),
            (UC_X86_INS_IN, ports),
            (UC_X86_INS_OUT, ports),
        ):
            self._add(UC_HOOK_INSN, function, ctypes.c_int(instruction))
        self._add(UC_HOOK_INTR, interrupt)
        self._add(UC_HOOK_INSN_INVALID, invalid)
        known = address(held.breakpoint_handler_x86_64)
        raise_exception = address(held.raise_exception_x86_64)
        debug = self.stubs.debug_exception(known, opened.env, raise_exception)
        ctypes.c_uint64.from_address(opened.debug_handler).value = debug

    def _add(self, kind: int, function: int, *extra: ctypes.c_int) -> None:
        hook = ctypes.c_size_t()
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        arguments = (
            ctypes.c_void_p(self._engine.opened.uc),
            ctypes.byref(hook),
            ctypes.c_int(kind),
            ctypes.c_void_p(function),
            None,
            *everywhere,
            *extra,
        )
        self._library.check("uc_hook_add", self._library.held.uc_hook_add(*arguments))

    def _failed(self, error: BaseException) -> None:
        if self.raised is None:
            self.raised = error
        self._engine.stop()

    def _syscall(self) -> None:
        try:
            self.handler.syscall()
        except BaseException as error:
            self._failed(error)

    def _sysenter(self) -> None:
        try:
            self.handler.sysenter()
        except BaseException as error:
            self._failed(error)

    def _cpuid(self) -> int:
        try:
            self.handler.cpuid()
        except BaseException as error:
            self._failed(error)
        return 1

    def _interrupt(self, _uc: int, vector: int) -> None:
        engine = self._engine
        engine.old_exception = -1  # or a second fault would be a double fault
        try:
            if engine.exception_is_int:
                next_rip = engine.rip
                engine.rip = next_rip - (1 if vector in _ONE_BYTE_INTERRUPTS else 2)
                self.handler.software_interrupt(vector, next_rip)
            else:
                self.handler.exception(vector, engine.error_code)
        except BaseException as error:
            self._failed(error)

    def _invalid_opcode(self) -> int:
        self._engine.old_exception = -1
        try:
            self.handler.invalid_opcode()
        except BaseException as error:
            self._failed(error)
        return 1

    def _port_access(self) -> None:
        try:
            self.handler.exception(GENERAL_PROTECTION, 0)
        except BaseException as error:
            self._failed(error)
