"""Which pages of a kernel may be executed at first."""

from dom0.images.kernel_image import KernelImage, Segment
from dom0.toolstack.code_pages import ZEROS_THAT_COUNT, code_pages

PAGE = 4096
BASE = 0xFFFF_FFFF_8000_0000
MANY = bytes(ZEROS_THAT_COUNT * PAGE)


def pages(*segments: Segment, hypercall_page: int | None = None) -> list[range]:
    end = segments[-1].virt + segments[-1].memory_bytes
    image = KernelImage("k", BASE, BASE, BASE, end, segments, hypercall_page=hypercall_page)
    return list(code_pages(image))


def segment(pfn: int, data: bytes, *, executable: bool, offset: int = 0) -> Segment:
    return Segment(BASE + pfn * PAGE + offset, memoryview(data), len(data) + 5 * PAGE, executable)


def test_segments_that_say_so_are_code_as_far_as_their_file_goes() -> None:
    text = segment(2, b"x" * (PAGE + 1), executable=True)
    data = segment(9, b"x" * PAGE, executable=False)
    assert pages(text, data) == [range(2, 4)]


def test_many_zeros_are_not_code_and_few_are() -> None:
    few = b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    assert pages(segment(0, few, executable=True)) == [range(4)]
    init = b"x" * PAGE * ZEROS_THAT_COUNT + MANY + b"x" + MANY
    assert pages(segment(0, init, executable=True)) == [
        range(ZEROS_THAT_COUNT),
        range(2 * ZEROS_THAT_COUNT, 3 * ZEROS_THAT_COUNT + 1),
    ]


def test_a_segment_that_begins_within_a_page_ends_in_whole_pages() -> None:
    assert pages(segment(1, b"x" * PAGE, executable=True, offset=0x1F0)) == [range(1, 3)]


def test_the_hypercall_page_is_code_whatever_is_in_it_yet() -> None:
    empty = segment(0, MANY, executable=True)
    assert pages(empty) == []
    assert pages(empty, hypercall_page=BASE + 3 * PAGE) == [range(3, 4)]
