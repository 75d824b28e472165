"""A new engine: opened, its insides found where we expect them, in long mode.

What we rely on of the insides is tried here once an engine: what the library writes by a register's name must appear
in our field for it. Anything else is EngineUnavailable: the package's version is right (library.py), but it was
built in another way.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

from hypervisor.vcpu.native.library import (
    CODE_BUFFER_BYTES,
    UC_ARCH_X86,
    UC_CTL_TCG_BUFFER_SIZE,
    UC_CTL_USE_EXITS,
    UC_MODE_64,
    EngineUnavailable,
    Library,
)
from hypervisor.vcpu.native.registers import Registers

_CPU_OFFSET: Final = 440
_USE_EXITS_OFFSET: Final = 1428
_NO_EXIT_REQUEST_OFFSET: Final = 2034
_INIT_DONE_OFFSET: Final = 2035
_STOP_REQUEST_OFFSET: Final = 1389
"""in struct uc_struct"""
_ENV_IN_CPU: Final = 35408
_ENV_POINTER_IN_CPU: Final = 296
_CLASS_POINTER_IN_CPU: Final = 33200
_EXIT_REQUEST_IN_CPU: Final = 21
_COUNTDOWN_POINTER_IN_CPU: Final = 304
"""in struct CPUState"""
_DEBUG_HANDLER_IN_CLASS: Final = 120
"""in struct CPUClass"""

_NAMED: Final = {"rax": 35, "rbp": 36, "rbx": 37, "rcx": 38, "rdi": 39, "rdx": 40, "rip": 41, "rsi": 43}
_NAMED.update({"rsp": 44} | {f"r{number}": 106 + number - 8 for number in range(8, 16)})
"""uc_x86_reg"""
_UC_X86_REG_CR2: Final = 52
_UC_X86_REG_CR3: Final = 53
_UC_X86_REG_DR0: Final = 66
_UC_X86_REG_MXCSR: Final = 249
_UC_X86_REG_FS_BASE: Final = 250
_UC_X86_REG_GS_BASE: Final = 251
_NO_EXCEPTION: Final = -1
_ONLY_CPU: Final = -1


@dataclass(frozen=True, slots=True)
class Opened:
    """Addresses in this process. uc: uc_struct. cpu: CPUState. env: CPUX86State. The others are single fields."""

    uc: int
    cpu: int
    env: int
    stop_request: int
    exit_request: int
    countdown: int
    debug_handler: int


def open_engine(library: Library) -> Opened:
    """EngineUnavailable."""
    held = library.held
    handle = ctypes.c_void_p()
    library.check("uc_open", held.uc_open(UC_ARCH_X86, UC_MODE_64, ctypes.byref(handle)))
    assert handle.value is not None
    uc = handle.value
    library.check("uc_ctl", held.uc_ctl(handle, UC_CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(CODE_BUFFER_BYTES)))
    library.check("uc_ctl", held.uc_ctl(handle, UC_CTL_USE_EXITS, ctypes.c_int(1)))
    library.give_hole()
    # a call that needs the CPU makes it, and the buffer for translated code
    library.check("uc_reg_read", held.uc_reg_read(uc, _NAMED["rax"], ctypes.byref(ctypes.c_uint64())))
    cpu = held.qemu_get_cpu_x86_64(uc, _ONLY_CPU)
    _expect("its CPU", cpu, _quad(uc + _CPU_OFFSET))
    _expect("its registers", _quad(cpu + _ENV_POINTER_IN_CPU), cpu + _ENV_IN_CPU)
    _expect("its end addresses", ctypes.c_int.from_address(uc + _USE_EXITS_OFFSET).value, 1)
    _expect("that it is ready", _octet(uc + _INIT_DONE_OFFSET), 1)
    _expect("whether it checks for exits", _octet(uc + _NO_EXIT_REQUEST_OFFSET), 0)
    debug_handler = _quad(cpu + _CLASS_POINTER_IN_CPU) + _DEBUG_HANDLER_IN_CLASS
    expected = ctypes.cast(held.breakpoint_handler_x86_64, ctypes.c_void_p).value
    _expect("its handler of breakpoints", _quad(debug_handler), expected)
    # Only at the borders of blocks is it looked whether to stop: a stop after each load and store would let the
    # instruction run twice.
    ctypes.c_uint8.from_address(uc + _NO_EXIT_REQUEST_OFFSET).value = 1
    opened = Opened(
        uc=uc,
        cpu=cpu,
        env=cpu + _ENV_IN_CPU,
        stop_request=uc + _STOP_REQUEST_OFFSET,
        exit_request=cpu + _EXIT_REQUEST_IN_CPU,
        countdown=_quad(cpu + _COUNTDOWN_POINTER_IN_CPU) + 2,
        debug_handler=debug_handler,
    )
    _try_registers(library, opened)
    return opened


def _try_registers(library: Library, opened: Opened) -> None:
    registers = Registers.from_address(opened.env)
    uc = opened.uc

    def write(number: int, value: int) -> None:
        cell = ctypes.c_uint64(value)
        library.check("uc_reg_write", library.held.uc_reg_write(uc, number, ctypes.byref(cell)))

    for index, (name, number) in enumerate(_NAMED.items()):
        magic = 0x1234_5678_0000_0000 + index
        write(number, magic)
        _expect(name, getattr(registers, name), magic)
    for index, number in enumerate((_UC_X86_REG_FS_BASE, _UC_X86_REG_GS_BASE)):
        write(number, 0x7654_0000_0000 + index)
        _expect("a segment base", registers.segments[4 + index].base, 0x7654_0000_0000 + index)
    write(_UC_X86_REG_CR2, 0x4321_0000)
    _expect("CR2", registers.cr[2], 0x4321_0000)
    write(_UC_X86_REG_CR3, 0x4321_1000)
    _expect("CR3", registers.cr[3], 0x4321_1000)
    write(_UC_X86_REG_MXCSR, 0x1F80)
    _expect("MXCSR", registers.mxcsr, 0x1F80)
    write(_UC_X86_REG_DR0, 0x4321_2000)
    _expect("DR0", registers.dr[0], 0x4321_2000)
    _expect("the exception in flight", registers.old_exception, _NO_EXCEPTION)


def _octet(at: int) -> int:
    return ctypes.c_uint8.from_address(at).value


def _quad(at: int) -> int:
    return ctypes.c_uint64.from_address(at).value


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise EngineUnavailable(
            f"its library keeps {what} elsewhere than we know ({found} is not {expected})"
        )
