"""Images that are as they should be."""

from pathlib import Path

import pytest

from dom0.images.errors import BadImage
from dom0.images.kernel_image import KernelImage
from dom0.images.load import parse_kernel, read_kernel
from hypervisor.abi import elfnote as abi
from tests.dom0.images.kernels import (
    GRUB_LOADS,
    LINUX_LOADS,
    LINUX_NOTES,
    METHODS,
    P2M,
    START,
    VIRT_BASE,
    ElfImage,
    Load,
    bzimage,
    grub,
    linux,
    payload,
)
from tests.guest_images import guest_image


def contents(image: KernelImage) -> list[Load]:
    return [
        Load(segment.virt - image.virt_base, bytes(segment.data), segment.memory_bytes)
        for segment in image.segments
    ]


def check_linux(image: KernelImage) -> None:
    assert contents(image) == list(LINUX_LOADS)
    assert image.virt_base == VIRT_BASE
    assert image.virt_start == VIRT_BASE + START
    assert image.virt_end == VIRT_BASE + LINUX_LOADS[1].paddr + LINUX_LOADS[1].memory_bytes
    assert image.entry == VIRT_BASE + START + 0x10
    assert image.init_p2m == P2M
    assert image.unmapped_ramdisk
    assert image.hypercall_page is None
    assert image.guest_os == "linux"


def test_an_elf_file() -> None:
    image = parse_kernel(linux(), "vmlinux")
    check_linux(image)
    assert image.file == "vmlinux"


def test_an_elf_file_in_gzip() -> None:
    check_linux(parse_kernel(payload(linux(), "gzip"), "vmlinux.gz"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sectors", [0, 1, 255])
def test_a_bzimage(method: str, sectors: int) -> None:
    image = parse_kernel(bzimage(payload(linux(), method), sectors=sectors), "vmlinuz")
    check_linux(image)
    assert image.file == "vmlinuz (unpacked)"


def test_grub_lies_at_address_0_and_has_the_ramdisk_mapped() -> None:
    image = parse_kernel(grub(), "grub")
    assert contents(image) == list(GRUB_LOADS)
    assert (image.virt_base, image.virt_start, image.entry) == (0, 0, 0)
    assert not image.unmapped_ramdisk
    assert image.init_p2m is None


def test_without_the_note_the_entry_point_is_the_elf_headers() -> None:
    notes = {kind: value for kind, value in LINUX_NOTES.items() if kind != abi.XEN_ELFNOTE_ENTRY}
    image = parse_kernel(linux(notes=notes, entry=VIRT_BASE + START + 0x99), "vmlinux")
    assert image.entry == VIRT_BASE + START + 0x99


def test_physical_addresses_may_begin_elsewhere() -> None:
    notes = LINUX_NOTES | {abi.XEN_ELFNOTE_PADDR_OFFSET: 0xFFFF_0000_0000_0000}
    loads = [Load(load.paddr + 0xFFFF_0000_0000_0000, load.data, load.memory_bytes) for load in LINUX_LOADS]
    check_linux(parse_kernel(linux(notes=notes, loads=loads), "vmlinux"))


def test_segments_may_come_in_any_order_and_empty_ones_do_not_count() -> None:
    loads = [*reversed(LINUX_LOADS), Load(0x7777_7777, b"", 0)]
    check_linux(parse_kernel(linux(loads=loads), "vmlinux"))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_numbers_of_any_size(size: int) -> None:
    notes = LINUX_NOTES | {abi.XEN_ELFNOTE_MOD_START_PFN: (1).to_bytes(size, "little")}
    assert parse_kernel(linux(notes=notes), "vmlinux").unmapped_ramdisk


@pytest.mark.parametrize("p2m", [VIRT_BASE, VIRT_BASE + (1 << 21), P2M + 1, (1 << 64) - 1])
def test_a_p2m_list_that_xens_builder_would_not_move_is_not_moved(p2m: int) -> None:
    notes = LINUX_NOTES | {abi.XEN_ELFNOTE_INIT_P2M: p2m}
    assert parse_kernel(linux(notes=notes), "vmlinux").init_p2m is None


def test_a_hypercall_page() -> None:
    notes = LINUX_NOTES | {abi.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + START + 0x1000}
    assert parse_kernel(linux(notes=notes), "vmlinux").hypercall_page == VIRT_BASE + START + 0x1000


def test_notes_of_others_and_unknown_ones_say_nothing() -> None:
    notes = LINUX_NOTES | {99: b"whatever", abi.XEN_ELFNOTE_L1_MFN_VALID: bytes(16)}
    check_linux(parse_kernel(linux(notes=notes), "vmlinux"))


def test_notes_may_be_in_sections() -> None:
    image = bytearray(ElfImage().pack())
    note_header = 64 + 2 * 56
    offset, size = (
        int.from_bytes(image[note_header + at : note_header + at + 8], "little") for at in (8, 32)
    )
    image[note_header : note_header + 4] = (0).to_bytes(4, "little")
    sections = bytes(64) + bytes(4) + (7).to_bytes(4, "little") + bytes(16)
    sections += offset.to_bytes(8, "little") + size.to_bytes(8, "little") + bytes(24)
    image[40:48] = len(image).to_bytes(8, "little")
    image[60:62] = (2).to_bytes(2, "little")
    check_linux(parse_kernel(bytes(image) + sections, "vmlinux"))


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(linux())
    check_linux(read_kernel(path))


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_kernel(tmp_path / "nothing")
    with pytest.raises(OSError):
        read_kernel(tmp_path)
    with pytest.raises(BadImage, match="no regular file"):
        read_kernel(Path("/dev/zero"))
    large = tmp_path / "large"
    large.touch()
    with pytest.raises(BadImage, match="a file of 0 bytes"):
        read_kernel(large)
    with large.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(BadImage, match="a file of 10737418240 bytes"):
        read_kernel(large)


@pytest.mark.parametrize("name", ["vmlinuz-amd64", "vmlinuz-cloud-amd64"])
def test_debians_kernels(name: str) -> None:
    image = read_kernel(guest_image(name))
    assert (image.virt_base, image.virt_start) == (VIRT_BASE, VIRT_BASE + START)
    assert image.virt_start <= image.entry < image.virt_end
    assert (image.guest_os, image.init_p2m, image.unmapped_ramdisk) == ("linux", P2M, True)


def test_debians_grub() -> None:
    image = read_kernel(guest_image("grub-x86_64-xen.bin"))
    assert (image.virt_base, image.virt_start, image.entry) == (0, 0, 0)
    assert (image.guest_os, image.init_p2m, image.unmapped_ramdisk) == ("GRUB", None, False)
