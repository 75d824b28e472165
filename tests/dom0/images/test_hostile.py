"""Images that lie: BadImage says where and what, and nothing large or endless happens (XSA-25, XSA-55)."""

import gzip
import lzma
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import pytest
import zstandard

from dom0.images import lz4_legacy, unpack
from dom0.images.errors import BadImage, MissingDecompressor
from dom0.images.load import parse_kernel, read_kernel
from hypervisor.abi import elfnote as abi
from tests.dom0.images.kernels import (
    HEADER,
    LINUX_LOADS,
    LINUX_NOTES,
    METHODS,
    PROGRAM_HEADER,
    PT_NOTE,
    START,
    VIRT_BASE,
    ElfImage,
    Load,
    bzimage,
    linux,
    note,
    payload,
    program_header,
)

TOP = 1 << 64
GIB = 1 << 30


def refused(data: bytes) -> BadImage:
    with pytest.raises(BadImage) as caught:
        parse_kernel(data, "evil")
    assert caught.value.file.startswith("evil")
    return caught.value


@pytest.mark.parametrize(
    ("changes", "offset", "what"),
    [
        ({"magic": b"\x7fELG"}, 0, "magic"),
        ({"elf_class": 1}, 4, "class 1"),
        ({"encoding": 2}, 5, "encoding 2"),
        ({"kind": 1}, 16, "type 1"),
        ({"kind": 4}, 16, "type 4"),
        ({"machine": 3}, 18, "32-bit x86"),
        ({"machine": 183}, 18, "AArch64"),
        ({"machine": 0xFFFF}, 18, "unknown"),
    ],
)
def test_what_the_header_says(changes: dict[str, object], offset: int, what: str) -> None:
    error = refused(linux(**changes))
    assert error.offset == offset
    assert what in error.what


@pytest.mark.parametrize(
    ("at", "codec", "value"),
    [
        (32, "<Q", 1 << 63),  # program headers lie outside of the file
        (32, "<Q", TOP - 1),
        (54, "<H", 0),
        (54, "<H", 57),
        (56, "<H", 0),
        (56, "<H", 65535),
        (56, "<H", 129),
    ],
)
def test_where_the_program_headers_are(at: int, codec: str, value: int) -> None:
    image = bytearray(linux())
    struct.pack_into(codec, image, at, value)
    refused(bytes(image))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", TOP - 1),
        ("offset", 1 << 32),
        ("file_bytes", TOP - 1),
        ("file_bytes", 1 << 20),
        ("memory_bytes", 1),
        ("memory_bytes", TOP - 1),
        ("memory_bytes", 2 * GIB),
        ("paddr", TOP - 1),
        ("paddr", START + 0x20_0000),
        ("paddr", START + 0x20_0000 - 1),
        ("paddr", 1 << 46),
        ("paddr", 2 * GIB - 0x1000),
    ],
)
def test_what_a_segment_says(field: str, value: int) -> None:
    load = LINUX_LOADS[0]
    fields = {
        "offset": HEADER + 3 * PROGRAM_HEADER,
        "paddr": load.paddr,
        "file_bytes": len(load.data),
        "memory_bytes": load.memory_bytes,
    }
    image = bytearray(linux())
    image[HEADER : HEADER + PROGRAM_HEADER] = program_header(1, **(fields | {field: value}))
    refused(bytes(image))


def test_segments_that_overlap() -> None:
    loads = (Load.of(START, bytes(0x2000)), Load.of(START + 0x1FFF, bytes(0x1000)))
    error = refused(linux(loads=loads))
    assert error.offset == HEADER + PROGRAM_HEADER
    parse_kernel(linux(loads=(loads[0], Load.of(START + 0x2000, bytes(0x1000)))), "good")


@pytest.mark.parametrize("loads", [(), (Load(START, b"", 0),), (Load.of(START + 1, b"x" * 100),)])
def test_nothing_to_load_or_not_on_a_page(loads: tuple[Load, ...]) -> None:
    refused(linux(loads=loads))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({abi.XEN_ELFNOTE_LOADER: b"other\0", abi.XEN_ELFNOTE_GUEST_OS: b"other\0"}, "loader 'other'"),
        ({abi.XEN_ELFNOTE_XEN_VERSION: b"xen-2.0\0"}, "xen-2.0"),
        ({abi.XEN_ELFNOTE_FEATURES: b"pae_pgdir_above_4gb|!dom0"}, "'dom0'"),
        ({abi.XEN_ELFNOTE_FEATURES: b"!something_else\0"}, "something_else"),
        ({abi.XEN_ELFNOTE_GUEST_OS: b"linux\n\0"}, "linux"),
        ({abi.XEN_ELFNOTE_GUEST_OS: b"\xff\0"}, "text"),
        ({abi.XEN_ELFNOTE_GUEST_OS: b"l" * 300}, "0x12c"),
        ({abi.XEN_ELFNOTE_ENTRY: b""}, "0 bytes"),
        ({abi.XEN_ELFNOTE_ENTRY: bytes(3)}, "3 bytes"),
        ({abi.XEN_ELFNOTE_ENTRY: bytes(16)}, "16 bytes"),
        ({abi.XEN_ELFNOTE_ENTRY: VIRT_BASE + START - 1}, "entry point"),
        ({abi.XEN_ELFNOTE_ENTRY: 0}, "entry point"),
        ({abi.XEN_ELFNOTE_ENTRY: TOP - 1}, "entry point"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: VIRT_BASE + 1}, "VIRT_BASE"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: 0xFFFF_8000_0000_0000}, "VIRT_BASE"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: 0xFFFF_87FF_FFFF_F000}, "VIRT_BASE"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: 0x8000_0000_0000}, "VIRT_BASE"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: TOP - 0x1000}, "segment"),
        ({abi.XEN_ELFNOTE_VIRT_BASE: (1 << 47) - 0x1000}, "segment"),
        ({abi.XEN_ELFNOTE_PADDR_OFFSET: START + 0x1000}, "kernel from"),
        ({abi.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + START + 8}, "HYPERCALL_PAGE"),
        ({abi.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE}, "HYPERCALL_PAGE"),
        ({abi.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + START + (1 << 22)}, "HYPERCALL_PAGE"),
        ({abi.XEN_ELFNOTE_INIT_P2M: 0xFFFF_8000_0000_0000}, "INIT_P2M"),
        ({abi.XEN_ELFNOTE_INIT_P2M: 1 << 60}, "INIT_P2M"),
    ],
)
def test_what_the_notes_say(changes: dict[int, bytes | int], what: str) -> None:
    data = linux(notes=LINUX_NOTES | changes)
    error = refused(data)
    assert what in error.what
    if not {"segment", "kernel from"} & {what}:
        assert data.index(note(*next(iter(changes.items())))[:-4]) <= error.offset or what == "loader 'other'"


def test_a_physical_offset_alone() -> None:
    notes = {kind: value for kind, value in LINUX_NOTES.items() if kind != abi.XEN_ELFNOTE_VIRT_BASE}
    assert "PADDR_OFFSET" in refused(linux(notes=notes)).what


def test_no_notes() -> None:
    assert "no Xen notes" in refused(linux(notes={})).what
    assert "no Xen notes" in refused(linux(notes={77: b"x"})).what


@pytest.mark.parametrize(
    "notes",
    [
        struct.pack("<III", 0xFFFF_FFFF, 4, 1) + b"Xen\0",
        struct.pack("<III", 4, 0xFFFF_FFFF, 1) + b"Xen\0",
        struct.pack("<III", 0, 64, 1) + b"Xen\0",
        note(1, 5) * 2000,
        note(1, 5, name=b"") * 2000,
        bytes(12) * 2000,
    ],
)
def test_notes_that_run_out_or_do_not_end(notes: bytes) -> None:
    image = bytearray(linux())
    at = HEADER + 2 * PROGRAM_HEADER
    image[at : at + PROGRAM_HEADER] = program_header(PT_NOTE, len(image), 0, len(notes), 0)
    refused(bytes(image) + notes)


@pytest.mark.parametrize(("offset", "size"), [(1 << 40, 1), (8, TOP - 1), (TOP - 1, TOP - 1)])
def test_notes_outside_of_the_file(offset: int, size: int) -> None:
    image = bytearray(linux())
    at = HEADER + 2 * PROGRAM_HEADER
    image[at : at + PROGRAM_HEADER] = program_header(PT_NOTE, offset, 0, size, 0)
    refused(bytes(image))


@pytest.mark.parametrize("count", [2, 65535])
@pytest.mark.parametrize("size", [0, 64, 65535])
def test_sections_that_are_not_there(count: int, size: int) -> None:
    image = bytearray(linux(notes={}))
    at = HEADER + 2 * PROGRAM_HEADER
    image[at : at + PROGRAM_HEADER] = bytes(PROGRAM_HEADER)
    struct.pack_into("<Q", image, 40, len(image) - 10)
    struct.pack_into("<HH", image, 58, size, count)
    refused(bytes(image))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 63, 64, 100, 231])
def test_a_file_that_is_cut_off(length: int) -> None:
    refused(linux()[:length])


# bzImages


def test_an_old_boot_protocol() -> None:
    error = refused(bzimage(payload(linux(), "gzip"), version=0x207))
    assert (error.offset, error.what) == (0x206, "boot protocol 2.07")


@pytest.mark.parametrize(("offset", "length"), [(0xFFFF_FFFF, 1), (0, 0xFFFF_FFFF), (1 << 20, 5), (0, 0)])
def test_a_payload_outside_of_the_file(offset: int, length: int) -> None:
    image = bytearray(bzimage(payload(linux(), "gzip")))
    struct.pack_into("<II", image, 0x248, offset, length)
    refused(bytes(image))


@pytest.mark.parametrize("length", [0x206, 0x207, 0x248, 0x24F, 0x250, 0x800])
def test_a_bzimage_that_is_cut_off(length: int) -> None:
    refused(bzimage(payload(linux(), "gzip"))[:length])


def test_offsets_are_those_in_the_file() -> None:
    packed = payload(linux(), "lz4")
    error = refused(bzimage(packed[:6] + b"\xff\xff" + packed[8:], sectors=1, offset=0x40))
    assert error.offset == 2 * 512 + 0x40 + 8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spoil", ["cut", "size less", "size more", "no size", "huge", "zero", "more behind"])
def test_a_payload_that_lies(method: str, spoil: str) -> None:
    data = linux()
    packed = payload(data, method)
    size = {
        "size less": len(data) - 1,
        "size more": len(data) + 1,
        "huge": 0xFFFF_FFFF,
        "zero": 0,
        "cut": len(data),
    }
    if spoil == "cut":
        packed = packed[: len(packed) // 2]
    if spoil == "no size":
        packed = packed[:-4]
    if spoil == "more behind":
        if method == "zstd":
            return  # its binding does not say where a frame ends; what is behind it is not looked at
        packed = packed[:-4] + b"more" + packed[-4:]
    if spoil in size:
        packed = packed[:-4] + struct.pack("<I", size[spoil])
    refused(bzimage(packed))


@pytest.mark.parametrize("first", [b"", b"\x89LZO\0\r\n", b"\0\0\0\0\0\0\0\0", b"\x1f", b"BZ"])
def test_an_unknown_method(first: bytes) -> None:
    assert "packed bytes that begin with" in refused(bzimage(first + b"\xff" * 20)).what


@cache
def bombs() -> dict[str, bytes]:
    """A few KiB each that unpack to 64 MiB."""
    packers = {"gzip": zlib.compressobj(wbits=31), "xz": lzma.LZMACompressor(preset=0)}
    packers["zstd"] = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 20)
    return {
        name: b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
        for name, packer in packers.items()
    }


@pytest.mark.parametrize("method", ["gzip", "xz", "zstd"])
@pytest.mark.parametrize("said", [4096, unpack.MAX_IMAGE_BYTES + 1, 0xFFFF_FFFF])
def test_a_bomb(method: str, said: int) -> None:
    packed = bombs()[method]
    assert len(packed) < 1 << 17
    body = packed[:-4] if method == "gzip" else packed
    error = refused(bzimage(body + struct.pack("<I", said)))
    assert "more bytes" in error.what or "an unpacked size" in error.what


def test_blocks_of_lz4_are_full_ones() -> None:
    """Otherwise a few MiB of tiny ones would be unpacked for minutes."""
    packed = lz4_legacy.MAGIC + (struct.pack("<I", 2) + b"\x10x") * 1000 + struct.pack("<I", 1000)
    assert "a block after one of 0x1 bytes" in refused(bzimage(packed)).what
    empty = lz4_legacy.MAGIC + (struct.pack("<I", 1) + b"\0") * 1000 + struct.pack("<I", 1000)
    refused(bzimage(empty))


def test_a_window_that_takes_gigabytes() -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3])
    refused(bzimage(header + b"\x01\0\0" + struct.pack("<I", 4096)))


def test_a_dictionary_that_takes_gigabytes() -> None:
    alone = bytearray(payload(linux(), "lzma"))
    struct.pack_into("<I", alone, 1, 0xFFFF_0000)
    refused(bzimage(bytes(alone)))


@pytest.mark.parametrize(("method", "module"), [("lz4", "lz4"), ("zstd", "zstandard")])
def test_what_is_not_installed(method: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDecompressor, match=f"install {module}") as caught:
        parse_kernel(bzimage(payload(linux(), method)), "vmlinuz")
    assert caught.value.method == method


def test_a_gzip_file_that_holds_no_kernel() -> None:
    assert "(unpacked)" in refused(gzip.compress(b"no kernel" * 100)).file


def test_no_file_stays_open(tmp_path: Path) -> None:
    """XSA-160."""
    bad, good, pipe = tmp_path / "bad", tmp_path / "good", tmp_path / "pipe"
    bad.write_bytes(b"bad")
    good.write_bytes(ElfImage().pack())
    os.mkfifo(pipe)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_kernel(good)
        for path in (bad, pipe):
            with pytest.raises(BadImage):
                read_kernel(path)
        with pytest.raises(IsADirectoryError):
            read_kernel(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
