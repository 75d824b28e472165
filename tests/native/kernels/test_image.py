"""Our own kernel is one that a domain builder takes."""

from pathlib import Path

from dom0.images.load import read_kernel

VIRT_BASE = 0xFFFF_FFFF_8000_0000


def test_the_kernel_is_one_for_xen(kernel: Path) -> None:
    image = read_kernel(kernel)
    assert image.virt_base == VIRT_BASE
    assert image.guest_os == "domzero-test"
    assert image.virt_start == VIRT_BASE + (1 << 20)
    assert image.virt_start < image.entry < image.virt_end
    assert image.hypercall_page == image.virt_start
    assert [segment.virt & 4095 for segment in image.segments] == [0, 0]
