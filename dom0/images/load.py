"""From a file to a KernelImage."""

import os
from pathlib import Path
from stat import S_ISREG
from typing import Final

from dom0.images import bzimage, elf
from dom0.images.errors import BadImage
from dom0.images.kernel_elf import kernel_of
from dom0.images.kernel_image import MAX_IMAGE_BYTES, KernelImage
from dom0.images.octets import Octets
from dom0.images.unpack import unpack

_GZIP: Final = b"\x1f\x8b"


def read_kernel(path: Path) -> KernelImage:
    """A kernel from a file: an ELF image, one compressed with gzip, or a bzImage.

    Raises:
        OSError: the file cannot be read.
        BadImage, MissingDecompressor.
    """
    return parse_kernel(read_image(path), path.name)


def read_image(path: Path, most_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """A whole file. Raises OSError, and BadImage where it is none or larger than `most_bytes`."""
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise BadImage(path.name, 0, "no regular file", "a file")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
        if not data or len(data) > most_bytes:
            raise BadImage(path.name, 0, f"a file of {status.st_size} bytes", f"1 to {most_bytes} bytes")
        return data


def _open(path: str, flags: int) -> int:
    """Without waiting for whoever writes into it, if it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse_kernel(data: bytes | memoryview, file: str) -> KernelImage:
    """The same, of bytes that are in memory. They are kept alive by the result and must not change."""
    octets = Octets(file, data)
    if bzimage.is_bzimage(octets):
        octets = bzimage.payload(octets)
    if not octets.holds(elf.MAGIC):
        if octets.base == 0 and not octets.holds(_GZIP):
            raise octets.bad(0, f"magic {bytes(octets.view[:4])!r}", "an ELF file, one in gzip, or a bzImage")
        octets = Octets(f"{file} (unpacked)", unpack(octets))
    return kernel_of(elf.parse_elf(octets))
