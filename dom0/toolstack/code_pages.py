"""Which of a kernel's pages may hold instructions when it begins.

Its file says it by segment, but roughly: Linux has its .bss, most of what it writes while it boots, in a segment that
can be executed. Pages that it begins with as zeros hold no instructions yet; later it makes page tables of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dom0.images.kernel_image import KernelImage, Segment
from kernel.platform import PAGE_SHIFT, PAGE_SIZE

ZEROS_THAT_COUNT: Final = 16
"""pages: fewer may be between two functions"""
_ZEROS: Final = bytes(ZEROS_THAT_COUNT << PAGE_SHIFT)


def code_pages(image: KernelImage) -> Iterator[range]:
    """Runs of PFNs, in order."""
    for segment in image.segments:
        if segment.executable:
            first = segment.virt - image.virt_base
            for start, end in _parts(segment):
                yield range(first + start >> PAGE_SHIFT, (first + end + PAGE_SIZE - 1) >> PAGE_SHIFT)
    if image.hypercall_page is not None:
        pfn = image.hypercall_page - image.virt_base >> PAGE_SHIFT
        yield range(pfn, pfn + 1)


def _parts(segment: Segment) -> Iterator[tuple[int, int]]:
    """What is not zeros, as offsets into the segment."""
    data, size, step = segment.data, len(segment.data), len(_ZEROS)
    offset = -segment.virt % PAGE_SIZE
    start = 0
    while offset + step <= size:
        if bytes(data[offset : offset + step]) == _ZEROS:
            if start < offset:
                yield start, offset
            start = offset + step
        offset += step
    if start < size:
        yield start, size
