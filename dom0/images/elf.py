"""ELF files (System V ABI, x86-64): the header, the program headers, and where notes are.

Section headers are looked at only for notes of kernels that have no note segment, as Xen's builder does.
"""

from dataclasses import dataclass
from struct import Struct as Codec
from typing import Final

from dom0.images.octets import Octets

MAGIC: Final = b"\x7fELF"
PT_LOAD: Final = 1
PT_NOTE: Final = 4
SHT_NOTE: Final = 7

_CLASS64: Final = 2
_LITTLE_ENDIAN: Final = 1
_EXECUTABLES: Final = {2, 3}
"""ET_EXEC, and ET_DYN, of which Xen loads the same parts."""
_X86_64: Final = 62
_MACHINES: Final = {3: "32-bit x86", 40: "ARM", 183: "AArch64"}

_HEADER: Final = Codec("<16xHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = Codec("<IIQQQQQQ")
_SECTION_HEADER: Final = Codec("<IIQQQQIIQQ")
_CLASS_AT: Final = 4
_DATA_AT: Final = 5
_TYPE_AT: Final = 16
_MACHINE_AT: Final = 18
_PHENTSIZE_AT: Final = 54
_PHNUM_AT: Final = 56
_SHENTSIZE_AT: Final = 58

_MAX_PROGRAM_HEADERS: Final = 128
_MAX_SECTION_HEADERS: Final = 1024
"""Far more than any kernel has; 65535 of either would be read over and over."""


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One program header. at: its offset in the file, for errors."""

    at: int
    kind: int
    offset: int
    paddr: int
    file_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A file whose headers have been looked at. notes: offset and length of what may hold notes."""

    octets: Octets
    entry: int
    program_headers: tuple[ProgramHeader, ...]
    notes: tuple[tuple[int, int], ...]


def parse_elf(octets: Octets) -> Elf:
    """Reads the headers. The ranges that they name are not checked here but when they are read.

    Raises:
        BadImage: not an executable for x86-64, or its headers are cut off or too many.
    """
    entry, at, sections_at, size, count, section_size, sections = _header(octets)
    if count and size != _PROGRAM_HEADER.size:
        raise octets.bad(_PHENTSIZE_AT, f"program headers of {size} bytes", f"{_PROGRAM_HEADER.size} bytes")
    if not 0 < count <= _MAX_PROGRAM_HEADERS:
        raise octets.bad(_PHNUM_AT, f"{count} program headers", f"1 to {_MAX_PROGRAM_HEADERS}")
    headers = tuple(_program_header(octets, at + index * size) for index in range(count))
    # A note segment at offset 0 comes from binutils that did not set the offset.
    notes = tuple((h.offset, h.file_bytes) for h in headers if h.kind == PT_NOTE and h.offset)
    if not notes and sections:
        notes = _note_sections(octets, sections_at, section_size, sections)
    return Elf(octets, entry, headers, notes)


def _header(octets: Octets) -> tuple[int, ...]:
    kind, machine, _version, entry, at, sections_at, *rest = octets.fields(_HEADER, 0, "the ELF header")
    if not octets.holds(MAGIC):
        raise octets.bad(0, f"magic {bytes(octets.view[:4])!r}", f"{MAGIC!r}, an ELF file")
    if octets.view[_CLASS_AT] != _CLASS64:
        raise octets.bad(_CLASS_AT, f"ELF class {octets.view[_CLASS_AT]}", f"{_CLASS64}, a 64-bit kernel")
    if octets.view[_DATA_AT] != _LITTLE_ENDIAN:
        raise octets.bad(_DATA_AT, f"ELF data encoding {octets.view[_DATA_AT]}", "1, little endian")
    if machine != _X86_64:
        named = _MACHINES.get(machine, "unknown")
        raise octets.bad(_MACHINE_AT, f"machine {machine} ({named})", f"{_X86_64}, x86-64")
    if kind not in _EXECUTABLES:
        raise octets.bad(_TYPE_AT, f"ELF type {kind}", "2 or 3, an executable")
    _flags, _size, size, count, section_size, sections, _names = rest
    return entry, at, sections_at, size, count, section_size, sections


def _program_header(octets: Octets, at: int) -> ProgramHeader:
    kind, _flags, offset, _vaddr, paddr, file_bytes, memory_bytes, _align = octets.fields(
        _PROGRAM_HEADER, at, "a program header"
    )
    return ProgramHeader(at, kind, offset, paddr, file_bytes, memory_bytes)


def _note_sections(octets: Octets, at: int, size: int, count: int) -> tuple[tuple[int, int], ...]:
    if size != _SECTION_HEADER.size:
        raise octets.bad(_SHENTSIZE_AT, f"section headers of {size} bytes", f"{_SECTION_HEADER.size} bytes")
    if count > _MAX_SECTION_HEADERS:
        raise octets.bad(_SHENTSIZE_AT + 2, f"{count} sections", f"at most {_MAX_SECTION_HEADERS}")
    found = []
    for index in range(1, count):
        header = octets.fields(_SECTION_HEADER, at + index * size, "a section header")
        if header[1] == SHT_NOTE:
            found.append((header[4], header[5]))
    return tuple(found)
