"""Kernel images made of nothing: ELF files with Xen notes, and bzImages around them, field by field."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import lz4.block  # type: ignore[import-untyped]
import zstandard

from hypervisor.abi import elfnote as abi

PAGE: Final = 4096
VIRT_BASE: Final = 0xFFFF_FFFF_8000_0000
START: Final = 0x100_0000
P2M: Final = 0x80_0000_0000
HEADER: Final = 64
PROGRAM_HEADER: Final = 56
PT_LOAD: Final = 1
PT_NOTE: Final = 4

LINUX_NOTES: Final[Mapping[int, bytes | int]] = {
    abi.XEN_ELFNOTE_GUEST_OS: b"linux\0",
    abi.XEN_ELFNOTE_GUEST_VERSION: b"2.6\0",
    abi.XEN_ELFNOTE_XEN_VERSION: b"xen-3.0\0",
    abi.XEN_ELFNOTE_VIRT_BASE: VIRT_BASE,
    abi.XEN_ELFNOTE_INIT_P2M: P2M,
    abi.XEN_ELFNOTE_ENTRY: VIRT_BASE + START + 0x10,
    abi.XEN_ELFNOTE_FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb",
    abi.XEN_ELFNOTE_PAE_MODE: b"yes\0",
    abi.XEN_ELFNOTE_LOADER: b"generic\0",
    abi.XEN_ELFNOTE_SUSPEND_CANCEL: 1,
    abi.XEN_ELFNOTE_MOD_START_PFN: 1,
    abi.XEN_ELFNOTE_PADDR_OFFSET: 0,
}
"""What Linux says of itself."""

GRUB_NOTES: Final[Mapping[int, bytes | int]] = {
    abi.XEN_ELFNOTE_GUEST_OS: b"GRUB\0",
    abi.XEN_ELFNOTE_LOADER: b"generic\0",
    abi.XEN_ELFNOTE_XEN_VERSION: b"xen-3.0\0",
    abi.XEN_ELFNOTE_ENTRY: 0,
    abi.XEN_ELFNOTE_VIRT_BASE: 0,
}


@dataclass(frozen=True)
class Load:
    """A segment to be loaded."""

    paddr: int
    data: bytes
    memory_bytes: int

    @classmethod
    def of(cls, paddr: int, data: bytes, zeros: int = 0) -> "Load":
        return cls(paddr, data, len(data) + zeros)


LINUX_LOADS: Final = (
    Load.of(START, b"text" * 2000),
    Load.of(START + 0x20_0000, b"data" * 500, zeros=0x1_0000),
)
GRUB_LOADS: Final = (Load.of(0, b"grub" * 3000, zeros=0x1230), Load.of(0x4110, b"mods" * 5000))


@dataclass
class ElfImage:
    """Every field may be changed before `pack`."""

    loads: Sequence[Load] = LINUX_LOADS
    notes: Mapping[int, bytes | int] = field(default_factory=lambda: dict(LINUX_NOTES))
    magic: bytes = b"\x7fELF"
    elf_class: int = 2
    encoding: int = 1
    kind: int = 2
    machine: int = 62
    entry: int = 0

    def pack(self) -> bytes:
        """The file: header, program headers, segments, notes."""
        count = len(self.loads) + 1
        at = HEADER + count * PROGRAM_HEADER
        headers, bodies = b"", b""
        for load in self.loads:
            headers += program_header(
                PT_LOAD, at + len(bodies), load.paddr, len(load.data), load.memory_bytes
            )
            bodies += load.data
        bodies += bytes(-len(bodies) % 4)
        notes = b"".join(note(kind, value) for kind, value in self.notes.items())
        headers += program_header(PT_NOTE, at + len(bodies), 0, len(notes), len(notes))
        return self._header(count) + headers + bodies + notes

    def _header(self, count: int) -> bytes:
        ident = self.magic + bytes([self.elf_class, self.encoding, 1]) + bytes(9)
        rest = (self.kind, self.machine, 1, self.entry, HEADER, 0, 0, HEADER, PROGRAM_HEADER, count, 64, 0, 0)
        return ident + struct.pack("<HHIQQQIHHHHHH", *rest)


def program_header(kind: int, offset: int, paddr: int, file_bytes: int, memory_bytes: int) -> bytes:
    """One, with a virtual address that nobody should look at."""
    return struct.pack("<IIQQQQQQ", kind, 7, offset, 0xDEAD, paddr, file_bytes, memory_bytes, PAGE)


def note(kind: int, value: bytes | int, name: bytes = b"Xen\0") -> bytes:
    """One note; a number takes eight bytes."""
    descriptor = value if isinstance(value, bytes) else value.to_bytes(8, "little")
    padded = descriptor + bytes(-len(descriptor) % 4)
    return struct.pack("<III", len(name), len(descriptor), kind) + name + bytes(-len(name) % 4) + padded


def linux(**changes: object) -> bytes:
    """An ELF file as Linux's is."""
    return ElfImage(**changes).pack()  # type: ignore[arg-type]


def grub() -> bytes:
    """An ELF file as GRUB's is."""
    return ElfImage(loads=GRUB_LOADS, notes=GRUB_NOTES).pack()


def lz4_legacy(data: bytes) -> bytes:
    """Packed in blocks of 8 MiB."""
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


def xz(data: bytes) -> bytes:
    """As Linux's scripts/xz_wrap.sh packs a kernel."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


PACKERS: Final = {
    "bzip2": bz2.compress,
    "xz": xz,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def payload(data: bytes, method: str) -> bytes:
    """`data` packed as a kernel is: with its size at the end."""
    if method == "gzip":
        return gzip.compress(data)
    return PACKERS[method](data) + struct.pack("<I", len(data))


METHODS: Final = ("gzip", *PACKERS)


def bzimage(packed: bytes, *, version: int = 0x20F, sectors: int = 3, offset: int = 0x40) -> bytes:
    """A bzImage with this payload; `sectors` of 512 bytes come before the protected-mode code."""
    head = bytearray((sectors or 4) * 512 + 512 + offset)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(packed))
    return bytes(head) + packed + b"what follows the payload"
