"""Ramdisks: any bytes. One that is gzip as a whole is unpacked here, as Xen's builder does: the guest is slower."""

import zlib
from struct import Struct as Codec
from typing import Final

GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_SIZE: Final = Codec("<I")


def unpacked_ramdisk(data: bytes, most_bytes: int) -> bytes:
    """What `data` holds if it is exactly one gzip stream of no more than that; otherwise `data`."""
    if not data.startswith(GZIP_MAGIC) or len(data) < _SIZE.size:
        return data
    (size,) = _SIZE.unpack_from(data, len(data) - _SIZE.size)
    if not 0 < size <= most_bytes:
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(data, size + 1)
    except zlib.error:
        return data
    return found if stream.eof and not stream.unused_data and len(found) == size else data
