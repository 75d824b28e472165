"""What the domain builder knows of a kernel: where its parts go, where it begins, what it asks for."""

from dataclasses import dataclass
from typing import Final

MAX_IMAGE_BYTES: Final = 256 << 20
"""No kernel file, and nothing unpacked from one, may be larger."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the kernel to be loaded: `data` at `virt`, followed by zeros up to `memory_bytes`."""

    virt: int
    data: memoryview
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A paravirtualized x86-64 kernel. Addresses are virtual; the notes are described in public/elfnote.h.

    virt_base is where pseudo-physical address 0 is mapped; virt_start and virt_end are the first byte of the
    lowest segment, and the one behind the highest. All are checked: the segments lie in that order inside
    virt_start..virt_end without overlap, in one half of the address space, outside of Xen's part of it.
    """

    file: str
    entry: int
    virt_base: int
    virt_start: int
    virt_end: int
    segments: tuple[Segment, ...]
    guest_os: str = ""
    hypercall_page: int | None = None
    init_p2m: int | None = None
    """Where it wants its p2m list, if not inside the region at virt_base."""
    unmapped_ramdisk: bool = False
    """The ramdisk may lie outside of the first mapping; the kernel is then told its PFN (MOD_START_PFN)."""
