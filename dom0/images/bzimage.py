"""Linux's bzImage (Documentation/arch/x86/boot.rst): where in it the packed kernel is."""

from struct import Struct as Codec
from typing import Final

from dom0.images.octets import Octets

_MAGIC_AT: Final = 0x202
_MAGIC: Final = b"HdrS"
_SETUP_SECTS_AT: Final = 0x1F1
_SETUP_SECTS_IF_ZERO: Final = 4
_VERSION_AT: Final = 0x206
_PAYLOAD_AT: Final = 0x248
_VERSION: Final = Codec("<H")
_PAYLOAD: Final = Codec("<II")
_FIRST_WITH_PAYLOAD: Final = 0x208
_SECTOR_BYTES: Final = 512


def is_bzimage(octets: Octets) -> bool:
    """Whether the file says that it is one."""
    return octets.holds(_MAGIC, _MAGIC_AT)


def payload(octets: Octets) -> Octets:
    """The packed kernel inside, which ends with its unpacked size as a u32.

    Raises:
        BadImage: an old boot protocol, or a payload outside of the file.
    """
    (version,) = octets.fields(_VERSION, _VERSION_AT, "the boot protocol's version")
    if version < _FIRST_WITH_PAYLOAD:
        found = f"boot protocol {version >> 8}.{version & 0xFF:02}"
        raise octets.bad(_VERSION_AT, found, "2.08 or later, which says where the payload is")
    offset, length = octets.fields(_PAYLOAD, _PAYLOAD_AT, "the payload's place")
    sectors = (octets.view[_SETUP_SECTS_AT] or _SETUP_SECTS_IF_ZERO) + 1
    start = sectors * _SECTOR_BYTES + offset
    return Octets(octets.file, octets.piece(start, length, "the payload"), octets.base + start)
