"""The legacy frame format of LZ4, which Linux's build makes and bindings do not read: blocks of 8 MiB, each
behind its packed size.
"""

from struct import Struct as Codec
from typing import Final

from dom0.images.errors import MissingDecompressor
from dom0.images.octets import Octets

MAGIC: Final = b"\x02\x21\x4c\x18"
BLOCK_BYTES: Final = 8 << 20
_SIZE: Final = Codec("<I")


def unpack(octets: Octets, size: int) -> tuple[bytes, int]:
    """What is packed, at most a block more than `size` bytes, and how many bytes are behind the last block.

    Every block but the last must be a full one, so that there are no more of them than `size` has room for.

    Raises:
        BadImage: a block is broken.
        MissingDecompressor.
    """
    try:
        from lz4 import block as lz4_block  # type: ignore[import-untyped]  # noqa: PLC0415  # of the extra `native`
    except ImportError:
        raise MissingDecompressor(octets.file, "lz4", "lz4") from None
    blocks: list[bytes] = []
    at, end = len(MAGIC), len(octets) - _SIZE.size
    total = 0
    while at < end and total <= size:
        if total % BLOCK_BYTES:
            raise octets.bad(at, f"a block after one of {len(blocks[-1]):#x} bytes", "that to be the last")
        (packed,) = octets.fields(_SIZE, at, "a block's size")
        at += _SIZE.size
        if at + packed > end:
            raise octets.bad(at, f"a block of {packed:#x} bytes", f"one that ends before {end:#x}")
        try:
            blocks.append(lz4_block.decompress(octets.view[at : at + packed], uncompressed_size=BLOCK_BYTES))
        except (lz4_block.LZ4BlockError, ValueError) as error:
            raise octets.bad(at, f"lz4: {error}", "a block of LZ4") from error
        at += packed
        total += len(blocks[-1])
        if not blocks[-1]:
            raise octets.bad(at, "an empty block", "one that holds something")
    return b"".join(blocks), len(octets) - at
