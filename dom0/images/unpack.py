"""Unpacks what a kernel is compressed with: any of Linux's methods but LZO, which Debian does not use.

A packed kernel ends with its unpacked size as a little-endian u32: gzip's own last field, and with the other
methods four bytes that Linux's build puts behind the stream. So the size is known before anything is unpacked;
a stream that yields another size is refused as soon as that shows (XSA-25).
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from struct import Struct as Codec
from typing import Final

from dom0.images import lz4_legacy
from dom0.images.errors import BadImage, MissingDecompressor
from dom0.images.kernel_image import MAX_IMAGE_BYTES
from dom0.images.octets import Octets

_SIZE: Final = Codec("<I")
_LZMA_MEMORY_BYTES: Final = 192 << 20
_ZSTD_WINDOW_BYTES: Final = 128 << 20
"""Linux's build packs with dictionaries of at most 128 MiB."""

_ZSTD_PIECE_BYTES: Final = 4 << 20
"""The binding makes room for all that it is asked for, whether it is there or not."""

Unpack = Callable[[Octets, int], tuple[bytes, int]]
"""Given the packed bytes and a size, returns at most one byte more than that, and how many packed bytes follow
the end of the stream. Raises one of _BROKEN, or BadImage.
"""

_BROKEN: Final = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class _CutOff(EOFError):
    """The stream goes on where the bytes end."""

    def __init__(self) -> None:
        super().__init__("the stream is cut off")


def unpack(octets: Octets) -> bytes:
    """What is packed in `octets`.

    Raises:
        BadImage: an unknown method, a broken stream, or another size than the last four bytes say.
        MissingDecompressor.
    """
    name, method, trailing = _method(octets)
    size_at = len(octets) - _SIZE.size
    (size,) = octets.fields(_SIZE, size_at, "the unpacked size") if size_at > 0 else (0,)
    if not 0 < size <= MAX_IMAGE_BYTES:
        raise octets.bad(
            max(size_at, 0), f"an unpacked size of {size:#x}", f"1 to {MAX_IMAGE_BYTES:#x} bytes"
        )
    try:
        data, behind = method(octets, size)
    except BadImage:
        raise
    except _BROKEN as error:
        raise octets.bad(0, f"{name}: {error}", f"a stream of {size:#x} bytes") from error
    if len(data) != size:
        found = f"{name}: " + (f"only {len(data):#x} bytes" if len(data) < size else "more bytes")
        raise octets.bad(size_at, found, f"the {size:#x} bytes that the last field says")
    if behind != trailing:
        raise octets.bad(len(octets) - behind, f"{behind} bytes behind the {name} stream", f"{trailing}")
    return data


def _method(octets: Octets) -> tuple[str, Unpack, int]:
    for magic, name, method, trailing in _METHODS:
        if octets.holds(magic):
            return name, method, trailing
    found = bytes(octets.view[:6])
    raise octets.bad(0, f"packed bytes that begin with {found!r}", "gzip, bzip2, xz, lzma, lz4 or zstd")


def _gzip(octets: Octets, size: int) -> tuple[bytes, int]:
    stream = zlib.decompressobj(wbits=31)
    data = stream.decompress(octets.view, size + 1)
    if not stream.eof and len(data) <= size:
        raise _CutOff
    return data, len(stream.unused_data)


def _bzip2(octets: Octets, size: int) -> tuple[bytes, int]:
    stream = bz2.BZ2Decompressor()
    data = stream.decompress(octets.view, size + 1)
    if not stream.eof and len(data) <= size:
        raise _CutOff
    return data, len(stream.unused_data)


def _lzma(octets: Octets, size: int) -> tuple[bytes, int]:
    """Both of LZMA's formats."""
    stream = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)
    data = stream.decompress(octets.view, size + 1)
    if not stream.eof and len(data) <= size:
        raise _CutOff
    return data, len(stream.unused_data)


def _lz4(octets: Octets, size: int) -> tuple[bytes, int]:
    return lz4_legacy.unpack(octets, size)


def _zstd(octets: Octets, size: int) -> tuple[bytes, int]:
    try:
        import zstandard  # noqa: PLC0415  # of the extra `native`
    except ImportError:
        raise MissingDecompressor(octets.file, "zstd", "zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    stream = decompressor.stream_reader(octets.view[: -_SIZE.size])
    pieces: list[bytes] = []
    left = size + 1
    try:
        while left and (piece := stream.read(min(left, _ZSTD_PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return b"".join(pieces), _SIZE.size


_METHODS: Final[tuple[tuple[bytes, str, Unpack, int], ...]] = (
    (b"\x1f\x8b", "gzip", _gzip, 0),
    (b"BZh", "bzip2", _bzip2, _SIZE.size),
    (b"\xfd7zXZ\0", "xz", _lzma, _SIZE.size),
    (b"\x5d\0\0", "lzma", _lzma, _SIZE.size),
    (lz4_legacy.MAGIC, "lz4", _lz4, _SIZE.size),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd, _SIZE.size),
)
"""By the first bytes: the method, and how many bytes are behind its stream."""
