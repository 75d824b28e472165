"""The x86-64 engine's library, as the `unicorn` package brings it: found, checked, and called without its binding.

The package's Python binding costs microseconds a call, and some of what a hypervisor needs (flush one translation,
forget one page's code) it does not offer at all. So the library is called directly, and a few of its internal
functions and fields are used. That ties us to one version: it is asked for, and where the fields are is tried
out when an engine is made (engine.py). Who finds another layout gets EngineUnavailable, not a crash.

Numbers are those of unicorn/unicorn.h and unicorn/x86.h.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hypervisor.fixed_mapping import reserve, unmap

PACKAGE: Final = "unicorn"
VERSION: Final = "2.1.4"
"""the one whose insides are known"""
_LIBRARY_FILE: Final = "lib/libunicorn.so.2"

UC_ARCH_X86: Final = 4
UC_MODE_64: Final = 1 << 3
UC_PROT_READ: Final = 1
UC_PROT_WRITE: Final = 2
UC_PROT_ALL: Final = 7
UC_HOOK_INTR: Final = 1 << 0
UC_HOOK_INSN: Final = 1 << 1
UC_HOOK_INSN_INVALID: Final = 1 << 14
UC_X86_INS_CPUID: Final = 113
UC_X86_INS_IN: Final = 218
UC_X86_INS_OUT: Final = 500
UC_X86_INS_SYSCALL: Final = 699
UC_X86_INS_SYSENTER: Final = 700

_pointer = ctypes.c_void_p
_u64 = ctypes.c_uint64
_int = ctypes.c_int

_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "uc_version": (ctypes.c_uint, (_pointer, _pointer)),
    "uc_strerror": (ctypes.c_char_p, (_int,)),
    "uc_open": (_int, (_int, _int, _pointer)),
    "uc_close": (_int, (_pointer,)),
    "uc_emu_start": (_int, (_pointer, _u64, _u64, _u64, ctypes.c_size_t)),
    "uc_emu_stop": (_int, (_pointer,)),
    "uc_mem_map_ptr": (_int, (_pointer, _u64, ctypes.c_size_t, ctypes.c_uint32, _pointer)),
    "uc_reg_read": (_int, (_pointer, _int, _pointer)),
    "uc_reg_write": (_int, (_pointer, _int, _pointer)),
    # internal ones, of the x86-64 target
    "qemu_get_cpu_x86_64": (_pointer, (_pointer, _int)),
    "cpu_get_tsc_x86_64": (_u64, (_pointer,)),
    "helper_check_exit_request_x86_64": (None, (_pointer, ctypes.c_uint32)),
    "cpu_loop_exit_x86_64": (None, (_pointer,)),
    "breakpoint_handler_x86_64": (None, (_pointer,)),
    "raise_exception_x86_64": (None, (_pointer, _int)),
    "qemu_ram_addr_from_host_x86_64": (_u64, (_pointer, _pointer)),
    "cpu_x86_update_cr0_x86_64": (None, (_pointer, ctypes.c_uint32)),
    "cpu_x86_update_cr4_x86_64": (None, (_pointer, ctypes.c_uint32)),
    "cpu_x86_update_dr7_x86_64": (None, (_pointer, ctypes.c_uint32)),
    "helper_read_eflags_x86_64": (_u64, (_pointer,)),
    "update_fp_status_x86_64": (None, (_pointer,)),
    "update_mxcsr_status_x86_64": (None, (_pointer,)),
    "tlb_flush_x86_64": (None, (_pointer,)),
    "tlb_flush_page_x86_64": (None, (_pointer, _u64)),
    "tlb_set_dirty_x86_64": (None, (_pointer, _u64)),
    "tlb_reset_dirty_x86_64": (None, (_pointer, _u64, _u64)),
    "tlb_reset_dirty_by_vaddr_x86_64": (None, (_pointer, _u64, _u64)),
    "tlb_protect_code_x86_64": (None, (_pointer, _u64)),
    "tlb_unprotect_code_x86_64": (None, (_pointer, _u64)),
    "page_collection_lock_x86_64": (_pointer, (_pointer, _u64, _u64)),
    "page_collection_unlock_x86_64": (None, (_pointer,)),
    "tb_invalidate_phys_page_fast_x86_64": (None, (_pointer, _pointer, _u64, _int, _u64)),
    "qemu_map_ram_ptr_x86_64": (_pointer, (_pointer, _pointer, _u64)),
    "tb_flush_x86_64": (None, (_pointer,)),
    "tb_invalidate_phys_range_x86_64": (None, (_pointer, _u64, _u64)),
    "cpu_x86_cpuid_x86_64": (
        None,
        (_pointer, ctypes.c_uint32, ctypes.c_uint32, _pointer, _pointer, _pointer, _pointer),
    ),
}
UC_CTL_USE_EXITS: Final = 4 | 1 << 26 | 1 << 30
UC_CTL_CPU_MODEL: Final = 7 | 1 << 26 | 1 << 30
UC_CTL_TCG_BUFFER_SIZE: Final = 13 | 1 << 26 | 1 << 30
_VARIADIC: Final = ("uc_hook_add", "uc_ctl")


class EngineUnavailable(RuntimeError):
    """Native kernels cannot be executed here. `package` and `version` are what is needed."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"native kernels need the package {PACKAGE} {VERSION} (pip install 'domzero[native]'): {why}"
        )
        self.package = PACKAGE
        self.version = VERSION


class EngineFailed(RuntimeError):
    """The engine refuses a call, or stopped for a reason that no guest should be able to bring about."""

    def __init__(self, call: str, code: int, why: str) -> None:
        super().__init__(f"{call}: {why} (error {code})")
        self.call = call
        self.code = code


CODE_BUFFER_BYTES: Final = 256 << 20
"""what an engine's translated code may take; when it is full, all of it is dropped"""
_ALIGNMENT_BYTES: Final = 4 << 20
"""the kernel likes to place large mappings at such borders"""


class Library:
    """The library, of which each call keeps Python's lock."""

    def __init__(self, held: ctypes.PyDLL) -> None:
        self.held = held
        # Translated code calls the library. If it lies within 2 GiB, these are direct calls, and half as dear.
        # By the time an engine is made, a domain's memory may be in between: its place is kept free here.
        self._hole = reserve(CODE_BUFFER_BYTES + _ALIGNMENT_BYTES)

    def give_hole(self) -> None:
        """Let what is mapped next, and has CODE_BUFFER_BYTES, be near to the library."""
        if self._hole:
            unmap(self._hole, CODE_BUFFER_BYTES + _ALIGNMENT_BYTES)
            self._hole = 0

    def check(self, call: str, code: int) -> None:
        """Raise EngineFailed unless `code` (uc_err) is success."""
        if code:
            raise EngineFailed(call, code, self.held.uc_strerror(code).decode())


@cache
def library() -> Library:
    """The library, loaded. EngineUnavailable if it is not there or another version than the one that we know."""
    path = find_library()
    try:
        held = ctypes.PyDLL(str(path))
    except OSError as error:
        raise EngineUnavailable(f"{path} cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = _symbol(held, name)
        function.restype, function.argtypes = result, arguments
    for name in _VARIADIC:
        _symbol(held, name).restype = _int
    return Library(held)


def find_library() -> Path:
    """Where it is. EngineUnavailable if it is not there or another version than the one that we know."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EngineUnavailable("it is not installed")
    found = metadata.version(PACKAGE)
    if found != VERSION:
        raise EngineUnavailable(f"{found} is installed, whose insides are not known")
    path = Path(spec.origin).parent / _LIBRARY_FILE
    if not path.exists():
        raise EngineUnavailable(f"{path} is missing")
    return path


def _symbol(loaded: ctypes.PyDLL, name: str) -> Any:
    try:
        return getattr(loaded, name)
    except AttributeError:
        raise EngineUnavailable(f"its library was built without {name}") from None
