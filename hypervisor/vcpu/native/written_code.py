"""Lets the engine notice every store of the guest's to a page from which it has translated code.

The engine means to: a page that is new in its translation buffer (TLB) is marked so that the first store takes a slow
way, on which code is dropped. But then the mark goes, although other code of that page may still be there, if the
mapping is not executable; and if it is, the mark stays for ever, so that all stores are slow, of which a kernel that
boots has many. And a page's marks come back only for the address at which it is executed. Linux writes code by other
addresses all the time, through its direct map.

So what QEMU, of which the engine is made, does in these places is done here again. Whether a page has code is kept, one
octet a page, by the two functions that are called when it gets its first and loses its last; the mark goes if it has
none, and comes back at all addresses with the first. What others write, unseen by the engine, takes Engine.forget_code.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from hypervisor.fixed_mapping import address_of
from hypervisor.vcpu.native.library import EngineUnavailable, Library
from hypervisor.vcpu.native.machine_code import MachineCode, address, keep
from hypervisor.vcpu.native.replaced import is_known, jump_to, overwrite

MAP_BYTES: Final = 4 << 20
"""an octet for each page of 16 GiB: all memory that an engine may be given, and gaps"""
_MAP_POINTER_OFFSET: Final = 1976
"""in uc_struct, of a field that only Windows uses"""
_NOTDIRTY_WRITE_OFFSET: Final = 0x200
"""behind tlb_set_dirty; it has no name outside of the library"""

_KNOWN_NOTDIRTY_WRITE: Final = bytes.fromhex(
    "41 57 49 89 ff 41 56 41 89 d6 41 55 49 89 cd 41 54 49 89 f4 55 4c 89 cd 53 48 89 f3"
    "81 e3 ff 0f 00 00 48 83 ec 28 48 8b 87 a8 81 00 00 49 8b 71 18 4c 89 44 24 08"
)
_KNOWN_PROTECT_CODE: Final = bytes.fromhex("48 89 f7 ba 01 00 00 00 be 00 10 00 00 e9")
_KNOWN_UNPROTECT_CODE: Final = bytes.fromhex("c3 66 66 2e 0f 1f 84 00 00 00 00 00 0f 1f 40 00")
_KNOWN_RESET_DIRTY: Final = bytes.fromhex("49 89 f9 49 89 f0 48 89 d7 4d 8b 99 28 01 00 00")
_RETURN: Final = b"\xc3"

# notdirty_write(cpu, address, size, ram address of the page - its address, return address, TLB entry)
_WRITE: Final = (
    "4c 8d 1c 0e"  # r11 = ram address
    "48 8b 87 a8 81 00 00  48 8b 80 b8 07 00 00"  # rax = the map
    "4d 89 da  49 c1 ea 0c"  # r10 = page
    "48 85 c0  74 10  42 80 3c 10 00  75 09"  # no map, or the page has code: go on below
    "49 81 61 08 ff fb ff ff  c3"  # clear the mark TLB_NOTDIRTY of addr_write; done
    "53 41 54 41 55 41 56 41 57 41 50 48 83 ec 08"
    "4c 89 cb  4d 89 dc  41 89 d5"  # rbx = entry, r12 = ram address, r13 = size
    "4c 8b b7 a8 81 00 00"  # r14 = uc
    "4c 89 f7  4c 89 e6  4b 8d 14 2c  48 b8",  # page_collection_lock(uc, r12, r12 + r13)
    "ff d0  49 89 c7"
    "4c 89 f7  48 89 c6  4c 89 e2  44 89 e9  4c 8b 44 24 08  48 b8",  # tb_invalidate_phys_page_fast(uc, …)
    "ff d0  4c 89 ff  48 b8",  # page_collection_unlock
    "ff d0  49 8b 86 b8 07 00 00  49 c1 ec 0c"
    "48 85 c0  74 0f  42 80 3c 20 00  75 08"  # if it has no code now, clear the mark
    "48 81 63 08 ff fb ff ff"
    "48 83 c4 08 41 58 41 5f 41 5e 41 5d 41 5c 5b c3",
)
# tlb_protect_code(uc, ram address)
_PROTECT: Final = (
    "48 8b 87 b8 07 00 00  48 85 c0  74 3f"  # rax = the map; none: return
    "48 89 f1  48 c1 e9 0c  c6 04 08 01"  # the page has code
    "57  48 89 f2  31 f6  48 b8",  # qemu_map_ram_ptr(uc, 0, ram address)
    "ff d0  5f  48 8b bf b8 01 00 00"
    "48 25 00 f0 ff ff  48 89 c6  ba 00 10 00 00  48 b8",  # tlb_reset_dirty(cpu, host address, 4096)
    "ff e0  c3",
)
# tlb_unprotect_code(uc, ram address)
_UNPROTECT: Final = ("48 8b 87 b8 07 00 00  48 85 c0  74 08  48 c1 ee 0c  c6 04 30 00  c3",)

_replaced: list[MachineCode] = []


def watch(library: Library, uc: int) -> None:
    """For a new engine; the functions are replaced once a process. EngineUnavailable."""
    if not _replaced:
        _replaced.append(_replace(library))
    code_map = mmap.mmap(-1, MAP_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    keep(code_map)
    pointer = ctypes.c_uint64.from_address(uc + _MAP_POINTER_OFFSET)
    if pointer.value:
        raise EngineUnavailable("its library uses a field that nothing should use")
    pointer.value = address_of(code_map)


def _replace(library: Library) -> MachineCode:
    held = library.held
    write = address(held.tlb_set_dirty_x86_64) + _NOTDIRTY_WRITE_OFFSET
    protect, unprotect = address(held.tlb_protect_code_x86_64), address(held.tlb_unprotect_code_x86_64)
    reset = address(held.tlb_reset_dirty_by_vaddr_x86_64)
    for start, known in (
        (write, _KNOWN_NOTDIRTY_WRITE),
        (protect, _KNOWN_PROTECT_CODE),
        (unprotect, _KNOWN_UNPROTECT_CODE),
        (reset, _KNOWN_RESET_DIRTY),
    ):
        if not is_known(start, known):
            raise EngineUnavailable("its library is of a build that is not known")
    code = MachineCode()
    pages = (held.page_collection_lock_x86_64, held.tb_invalidate_phys_page_fast_x86_64)
    jump_to(write, code.add(_assembled(_WRITE, *pages, held.page_collection_unlock_x86_64)))
    marks = (held.qemu_map_ram_ptr_x86_64, held.tlb_reset_dirty_x86_64)
    jump_to(protect, code.add(_assembled(_PROTECT, *marks)))
    jump_to(unprotect, code.add(_assembled(_UNPROTECT)))
    overwrite(reset, _RETURN)  # what it did after each translation, at one address, is done by the above
    return code


def _assembled(parts: tuple[str, ...], *functions: object) -> bytes:
    """The parts, between two of which is a function's address."""
    octets = bytes.fromhex(parts[0])
    for function, part in zip(functions, parts[1:], strict=True):
        octets += address(function).to_bytes(8, "little") + bytes.fromhex(part)
    return octets
