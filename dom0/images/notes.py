"""Xen's ELF notes (public/elfnote.h): what a kernel says of itself and asks for."""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct as Codec
from typing import Final

from dom0.images.octets import Octets
from hypervisor.abi import elfnote as abi

_HEADER: Final = Codec("<III")
_NAME: Final = b"Xen\0"
_MAX_NOTES: Final = 1024
_MAX_STRING: Final = 256

_NUMBER_SIZES: Final = (1, 2, 4, 8)
_STRINGS: Final = {
    abi.XEN_ELFNOTE_XEN_VERSION,
    abi.XEN_ELFNOTE_GUEST_OS,
    abi.XEN_ELFNOTE_GUEST_VERSION,
    abi.XEN_ELFNOTE_LOADER,
    abi.XEN_ELFNOTE_FEATURES,
}
_NUMBERS: Final = {
    abi.XEN_ELFNOTE_ENTRY,
    abi.XEN_ELFNOTE_HYPERCALL_PAGE,
    abi.XEN_ELFNOTE_VIRT_BASE,
    abi.XEN_ELFNOTE_PADDR_OFFSET,
    abi.XEN_ELFNOTE_INIT_P2M,
    abi.XEN_ELFNOTE_MOD_START_PFN,
}
"""Those that are looked at; the others say nothing to a builder of 64-bit PV domains."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What one note says, and at which offset of the file its descriptor is."""

    at: int
    text: str = ""
    number: int = 0


def xen_notes(octets: Octets, ranges: tuple[tuple[int, int], ...]) -> dict[int, Noted]:
    """Xen's notes by type; of two of one type the later counts.

    Raises:
        BadImage: a note runs out of its range or of the file, there are too many, or a value has no sensible
            form.
    """
    found: dict[int, Noted] = {}
    for kind, at, descriptor in _notes(octets, ranges):
        if kind in _STRINGS:
            found[kind] = Noted(at, text=_text(octets, at, descriptor))
        elif kind in _NUMBERS:
            found[kind] = Noted(at, number=_number(octets, at, descriptor))
    return found


def _notes(octets: Octets, ranges: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int, memoryview]]:
    """Each note of Xen's: its type, the offset of its descriptor, the descriptor."""
    count = 0
    for start, length in ranges:
        octets.piece(start, length, "the notes")
        at, end = start, start + length
        while at + _HEADER.size <= end:
            name_bytes, descriptor_bytes, kind = octets.fields(_HEADER, at, "a note")
            name_at = at + _HEADER.size
            descriptor_at = name_at + _aligned(name_bytes)
            after = descriptor_at + _aligned(descriptor_bytes)
            if descriptor_at + descriptor_bytes > end:
                what = (
                    f"a note with a name of {name_bytes:#x} and a descriptor of {descriptor_bytes:#x} bytes"
                )
                raise octets.bad(at, what, f"one that ends before {end:#x}")
            count += 1
            if count > _MAX_NOTES:
                raise octets.bad(at, "one more note", f"at most {_MAX_NOTES}")
            if name_bytes == len(_NAME) and octets.holds(_NAME, name_at):
                yield kind, descriptor_at, octets.view[descriptor_at : descriptor_at + descriptor_bytes]
            at = after


def _aligned(size: int) -> int:
    return size + 3 & ~3


def _text(octets: Octets, at: int, descriptor: memoryview) -> str:
    if len(descriptor) > _MAX_STRING:
        raise octets.bad(at, f"a note's text of {len(descriptor):#x} bytes", f"at most {_MAX_STRING}")
    text, _, _ = bytes(descriptor).partition(b"\0")  # Linux ends some of them with zero, others not
    if not all(0x20 <= byte < 0x7F for byte in text):
        raise octets.bad(at, f"a note's text {text[:32]!r}", "printable ASCII")
    return text.decode("ascii")


def _number(octets: Octets, at: int, descriptor: memoryview) -> int:
    if len(descriptor) not in _NUMBER_SIZES:
        raise octets.bad(at, f"a note's number of {len(descriptor)} bytes", "1, 2, 4 or 8 bytes")
    return int.from_bytes(descriptor, "little")
