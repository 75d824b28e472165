"""Any change to an image: it is read, or refused as a bad image, and what was read can be planned or is too large."""

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from dom0.images.errors import BadImage
from dom0.images.load import parse_kernel
from dom0.images.ramdisk import unpacked_ramdisk
from dom0.toolstack.errors import TooLittleMemory
from dom0.toolstack.first_memory import Rings, first_context, first_memory
from dom0.toolstack.start_of_day import plan
from hypervisor.pv.layout import RAM_FIRST
from tests.dom0.images.kernels import (
    HEADER,
    LINUX_NOTES,
    METHODS,
    PROGRAM_HEADER,
    bzimage,
    grub,
    linux,
    note,
    payload,
)

PAGES: Final = 16384
MOST_BYTES: Final = 32 << 20
"""No image here has more than 30 kB in it, however it lies."""

INTERESTING: Final = [
    0,
    1,
    0xFFF,
    0x1000,
    1 << 31,
    (1 << 32) - 1,
    1 << 47,
    (1 << 47) - 0x1000,
    0xFFFF_8000_0000_0000,
    0xFFFF_8800_0000_0000,
    0xFFFF_FFFF_8000_0000,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 0x1000,
    (1 << 64) - 1,
]
words = st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1)
widths = st.sampled_from([1, 2, 4, 8])


@contextmanager
def within_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def survive(data: bytes) -> None:
    """Only BadImage comes out. What is left is a kernel: all of its first memory lies in the domain."""
    with within_memory():
        try:
            image = parse_kernel(data, "fuzzed")
            start = plan(image, PAGES, b"", 0x12345)
        except (BadImage, TooLittleMemory):
            return
        p2m = range(RAM_FIRST, RAM_FIRST + PAGES)
        for address, piece in first_memory(start, p2m, Rings(1, 2), 0x100, bytes(0x12345)):
            assert 0 <= address <= address + len(piece) <= PAGES * 4096
        first_context(start, p2m).pack()


def changed(data: bytes, at: int, width: int, value: int) -> bytes:
    image = bytearray(data)
    at %= len(image)
    new = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    image[at : at + width] = new[: len(image) - at]
    return bytes(image)


Change = tuple[int, int, int]
ELF_FIELDS: Final = [*range(0, 64, 2), *range(HEADER, HEADER + 3 * PROGRAM_HEADER, 4)]
elf_changes = st.lists(st.tuples(st.sampled_from(ELF_FIELDS), widths, words), min_size=1, max_size=4)


@given(elf_changes, st.sampled_from([linux, grub]))
@example([(56, 2, 65535)], linux)
@example([(HEADER + 32, 8, 1 << 63), (HEADER + 40, 8, 1 << 63)], linux)
@example([(HEADER + 40, 8, 1 << 30)], grub)
def test_every_field_of_the_elf_headers(changes: list[Change], made: object) -> None:
    data = grub() if made is grub else linux()
    for change in changes:
        data = changed(data, *change)
    survive(data)


@given(st.dictionaries(st.sampled_from(sorted(LINUX_NOTES)), words | st.binary(max_size=40), max_size=3))
def test_every_note(changes: dict[int, bytes | int]) -> None:
    survive(linux(notes=LINUX_NOTES | changes))


@given(st.lists(st.tuples(st.integers(0, 20), words, st.binary(max_size=8)), max_size=4), st.integers(0, 40))
def test_notes_out_of_place(extra: list[tuple[int, int, bytes]], cut: int) -> None:
    data = linux() + b"".join(note(kind, value, name) for kind, value, name in extra)
    size_at = HEADER + 2 * PROGRAM_HEADER + 32
    (size,) = struct.unpack_from("<Q", data, size_at)
    survive(changed(data, size_at, 8, size + cut))


@given(st.lists(st.tuples(st.integers(0, 1 << 16), widths, words), min_size=1, max_size=8))
def test_any_bytes_of_an_elf_file(changes: list[Change]) -> None:
    data = linux()
    for change in changes:
        data = changed(data, *change)
    survive(data)


@cache
def images() -> dict[str, bytes]:
    return {method: bzimage(payload(linux(), method)) for method in METHODS}


BZIMAGE_FIELDS: Final = [0x1F1, 0x202, 0x206, 0x248, 0x24A, 0x24C, 0x24E]


@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(st.sampled_from(BZIMAGE_FIELDS), widths, words), min_size=1, max_size=3),
)
@example("zstd", [(0x24C, 1, 0)])
def test_every_field_of_a_bzimage(method: str, changes: list[Change]) -> None:
    data = images()[method]
    for change in changes:
        data = changed(data, *change)
    survive(data)


@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(st.integers(0, 1 << 16), widths, words), min_size=1, max_size=8),
)
def test_any_bytes_of_a_packed_kernel(method: str, changes: list[Change]) -> None:
    data = images()[method]
    start = 4 * 512 + 0x40
    packed = data[start:]
    for change in changes:
        packed = changed(packed, *change)
    survive(data[:start] + packed)


@given(st.sampled_from(METHODS), st.integers(0, 1 << 16))
def test_packed_kernels_that_are_cut_off(method: str, length: int) -> None:
    data = images()[method]
    survive(data[: length % len(data)])


@given(st.binary(max_size=3000), st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x08"]))
def test_any_bytes(data: bytes, first: bytes) -> None:
    survive(first + data)


@given(st.binary(max_size=300), st.integers(0, 5000))
def test_any_ramdisk_is_taken(data: bytes, most: int) -> None:
    for ramdisk in (data, b"\x1f\x8b\x08" + data):
        found = unpacked_ramdisk(ramdisk, most)
        assert found == ramdisk or 0 < len(found) <= most
