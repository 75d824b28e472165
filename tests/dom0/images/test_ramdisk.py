"""Ramdisks: any bytes; exactly one gzip stream is unpacked."""

import gzip
import struct

import pytest

from dom0.images.ramdisk import unpacked_ramdisk

CPIO = b"070701" * 1000


def test_one_gzip_stream_is_unpacked() -> None:
    assert unpacked_ramdisk(gzip.compress(CPIO), len(CPIO)) == CPIO


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f",
        b"\x1f\x8b\x08",
        CPIO,
        CPIO + gzip.compress(CPIO),
        gzip.compress(CPIO) + gzip.compress(CPIO),
        gzip.compress(CPIO) + bytes(512),
        gzip.compress(CPIO)[:-4] + struct.pack("<I", len(CPIO) - 1),
        gzip.compress(CPIO)[:-4] + struct.pack("<I", len(CPIO) + 1),
        gzip.compress(CPIO)[:100] + gzip.compress(CPIO)[-4:],
        b"\xfd7zXZ\0",
    ],
)
def test_anything_else_stays_as_it_is(data: bytes) -> None:
    assert unpacked_ramdisk(data, 1 << 20) == data


def test_one_that_would_be_too_large_stays_packed() -> None:
    packed = gzip.compress(CPIO)
    assert unpacked_ramdisk(packed, len(CPIO) - 1) == packed
