"""From an ELF file with Xen notes to a KernelImage: addresses, and whether they can be (XSA-55)."""

from typing import Final

from dom0.images.elf import PT_LOAD, Elf, ProgramHeader
from dom0.images.kernel_image import KernelImage, Segment
from dom0.images.notes import Noted, xen_notes
from dom0.images.octets import Octets
from hypervisor.abi import elfnote as abi
from hypervisor.pv.layout import HYPERVISOR_VIRT_END, PAGE_SIZE

LOWER_HALF_END: Final = 1 << 47
ADDRESS_END: Final = 1 << 64
MAX_SPAN_BYTES: Final = 1 << 30
"""From where pseudo-physical address 0 is mapped to the end of the kernel."""

_LOADER: Final = "generic"
_GUEST_OS: Final = "linux"
_XEN_VERSION: Final = "xen-3.0"
_FEATURES: Final = {
    "writable_page_tables",
    "writable_descriptor_tables",
    "auto_translated_physmap",
    "supervisor_mode_kernel",
    "pae_pgdir_above_4gb",
    "hvm_callback_vector",
}
"""A kernel may say that it needs these; what it then does without them is its own affair, as in Xen's builder."""

_ENTRY_AT: Final = 24
_NOTHING: Final = Noted(0)


def kernel_of(elf: Elf) -> KernelImage:
    """Checks everything that does not depend on the domain.

    Raises:
        BadImage: no kernel for Xen, not for an unprivileged domain, or an address that cannot be.
    """
    octets = elf.octets
    notes = xen_notes(octets, elf.notes)
    _check_kind(octets, notes)
    virt_base, offset = _bases(octets, notes)
    segments = _segments(elf, offset)
    start, end = segments[0].virt, max(segment.virt + segment.memory_bytes for segment in segments)
    loads = next(h.at for h in elf.program_headers if h.kind == PT_LOAD)
    if start < virt_base or start % PAGE_SIZE:
        raise octets.bad(loads, f"a kernel from {start:#x} on", f"a page border from {virt_base:#x} on")
    if end - virt_base > MAX_SPAN_BYTES:
        raise octets.bad(loads, f"a kernel up to {end:#x}", f"its end before {virt_base + MAX_SPAN_BYTES:#x}")
    entry = notes.get(abi.XEN_ELFNOTE_ENTRY, Noted(_ENTRY_AT, number=elf.entry))
    if not start <= entry.number < end:
        raise octets.bad(entry.at, f"an entry point at {entry.number:#x}", f"one in {start:#x}..{end:#x}")
    return KernelImage(
        file=octets.file,
        entry=entry.number,
        virt_base=virt_base,
        virt_start=start,
        virt_end=end,
        segments=segments,
        guest_os=notes.get(abi.XEN_ELFNOTE_GUEST_OS, _NOTHING).text,
        hypercall_page=_hypercall_page(octets, notes, start, end),
        init_p2m=_init_p2m(octets, notes, virt_base),
        unmapped_ramdisk=bool(notes.get(abi.XEN_ELFNOTE_MOD_START_PFN, _NOTHING).number),
    )


def outside_of_xen(start: int, end: int) -> bool:
    """Whether a guest may have these virtual addresses: canonical, in one half, not in Xen's part."""
    if end <= LOWER_HALF_END:
        return start < end
    return HYPERVISOR_VIRT_END <= start < end <= ADDRESS_END


def _check_kind(octets: Octets, notes: dict[int, Noted]) -> None:
    if not notes:
        raise octets.bad(0, "no Xen notes", "a kernel built for Xen PV (Linux: CONFIG_XEN_PV)")
    loader = notes.get(abi.XEN_ELFNOTE_LOADER, _NOTHING)
    system = notes.get(abi.XEN_ELFNOTE_GUEST_OS, _NOTHING)
    if not (loader.text.startswith(_LOADER) or system.text.startswith(_GUEST_OS)):
        raise octets.bad(loader.at, f"a kernel for the loader {loader.text!r}", f"{_LOADER!r}")
    version = notes.get(abi.XEN_ELFNOTE_XEN_VERSION, _NOTHING)
    if not version.text.startswith(_XEN_VERSION):
        raise octets.bad(version.at, f"a kernel for Xen {version.text!r}", f"{_XEN_VERSION!r}")
    features = notes.get(abi.XEN_ELFNOTE_FEATURES, _NOTHING)
    for feature in features.text.split("|"):
        if feature.startswith("!") and feature[1:] not in _FEATURES:
            raise octets.bad(features.at, f"a kernel that needs {feature[1:]!r}", "one that does without")


def _bases(octets: Octets, notes: dict[int, Noted]) -> tuple[int, int]:
    """Where pseudo-physical address 0 is mapped, and what is added to an ELF physical address."""
    virt_base = notes.get(abi.XEN_ELFNOTE_VIRT_BASE)
    paddr_offset = notes.get(abi.XEN_ELFNOTE_PADDR_OFFSET)
    if virt_base is None:
        if paddr_offset is not None:
            raise octets.bad(paddr_offset.at, "PADDR_OFFSET without VIRT_BASE", "both or none")
        return 0, 0
    base = virt_base.number
    if base % PAGE_SIZE or not outside_of_xen(base, base + PAGE_SIZE):
        raise octets.bad(virt_base.at, f"VIRT_BASE {base:#x}", "a page that is the guest's to map")
    return base, base - (paddr_offset.number if paddr_offset else 0)


def _segments(elf: Elf, offset: int) -> tuple[Segment, ...]:
    """In the order of their addresses."""
    octets = elf.octets
    loads = [header for header in elf.program_headers if header.kind == PT_LOAD and header.memory_bytes]
    if not loads:
        raise octets.bad(0, "nothing to load", "at least one segment of type PT_LOAD")
    loads.sort(key=lambda header: header.paddr)
    end = 0
    segments = []
    for header in loads:
        segment = _segment(octets, header, offset)
        if segment.virt < end:
            raise octets.bad(
                header.at, f"a segment at {segment.virt:#x}", f"{end:#x}, where another one ends"
            )
        end = segment.virt + segment.memory_bytes
        segments.append(segment)
    return tuple(segments)


def _segment(octets: Octets, header: ProgramHeader, offset: int) -> Segment:
    if header.file_bytes > header.memory_bytes:
        sizes = f"{header.file_bytes:#x} bytes in the file for {header.memory_bytes:#x} in memory"
        raise octets.bad(header.at, sizes, "no more in the file than in memory")
    data = octets.piece(header.offset, header.file_bytes, f"the segment of the header at {header.at:#x}")
    virt = header.paddr + offset
    if not outside_of_xen(virt, virt + header.memory_bytes):
        at = f"a segment of {header.memory_bytes:#x} bytes at {virt:#x}"
        raise octets.bad(header.at, at, "addresses that are the guest's to map")
    return Segment(virt, data, header.memory_bytes)


def _hypercall_page(octets: Octets, notes: dict[int, Noted], start: int, end: int) -> int | None:
    note = notes.get(abi.XEN_ELFNOTE_HYPERCALL_PAGE)
    if note is None:
        return None
    if note.number % PAGE_SIZE or not start <= note.number <= end - PAGE_SIZE:
        raise octets.bad(note.at, f"HYPERCALL_PAGE {note.number:#x}", f"a page in {start:#x}..{end:#x}")
    return note.number


def _init_p2m(octets: Octets, notes: dict[int, Noted], virt_base: int) -> int | None:
    """Xen's builder heeds this note only where it names a page border below the first mapping."""
    note = notes.get(abi.XEN_ELFNOTE_INIT_P2M)
    if note is None or note.number >= virt_base or note.number % PAGE_SIZE:
        return None
    if not outside_of_xen(note.number, note.number + PAGE_SIZE):
        raise octets.bad(note.at, f"INIT_P2M {note.number:#x}", "a page that is the guest's to map")
    return note.number
