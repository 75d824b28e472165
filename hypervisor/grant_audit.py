"""A recount of everything that grants count, from first principles: for tests, and for whoever suspects a
leak.

Every mapping in a maptrack must be a page in its domain's physmap and vice versa; every pin must be the
sum of the mappings on it; an entry must show exactly the in-use bits of its pin; a pinned frame must have
the references of all who map it. Between hypercalls no copy runs, so mappings are the only uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.abi.grant_table import GTF_permit_access, GTF_reading, GTF_type_mask, GTF_writing
from hypervisor.frames import ALLOCATED
from hypervisor.guest_memory import PageKind

if TYPE_CHECKING:
    from hypervisor.grant_pin import Pin
    from hypervisor.grant_table import GrantTable
    from hypervisor.machine import Machine


def audit(table: GrantTable) -> list[str]:
    """What does not agree about `table`, in words; empty when all does. In-use bits that the granter itself
    forged count too.
    """
    return [f"domain {table.domid}: {finding}" for finding in _findings(table)]


def _findings(table: GrantTable) -> Iterator[str]:
    yield from _mapper_findings(table)
    readers: Counter[int] = Counter()
    writers: Counter[int] = Counter()
    for domain in table.domain.machine.domains.values():
        for mapping in domain.grants.maptrack:
            if mapping.granter is table:
                (readers if mapping.readonly else writers)[mapping.reference] += 1
    pins = dict(table.pins())
    for reference in sorted({*pins, *readers, *writers}):
        pin = pins.get(reference)
        found = (pin.readers, pin.writers) if pin else (0, 0)
        counted = (readers[reference], writers[reference])
        if found != counted:
            yield f"grant {reference}: pinned {found}, mapped {counted} times"
    for reference in range(len(table.entries)):
        yield from _entry_findings(table, reference, pins.get(reference))


def _mapper_findings(table: GrantTable) -> Iterator[str]:
    memory = table.domain.memory
    tracked = set()
    for mapping in table.maptrack:
        tracked.add(mapping.gpfn)
        page = memory.mapped(mapping.gpfn)
        shown = None if page is None else (page.kind, page.mfn, page.writable)
        if shown != (PageKind.GRANT, mapping.pin.mfn, not mapping.readonly):
            yield f"gpfn {mapping.gpfn:#x} shows {shown}, mapped is mfn {mapping.pin.mfn:#x}"
    pages = {gpfn for gpfn, page in memory.mappings() if page.kind is PageKind.GRANT}
    if pages != tracked:
        yield f"gpfns {sorted(pages ^ tracked)} are in physmap or maptrack, not in both"


def _entry_findings(table: GrantTable, reference: int, pin: Pin | None) -> Iterator[str]:
    flags = table.entries.flags(reference)
    expected = 0
    if pin is not None:
        expected = GTF_reading | (GTF_writing if pin.writers else 0)
        yield from _frame_findings(table.domain.machine, reference, pin)
    in_use = flags & (GTF_reading | GTF_writing)
    if in_use != expected and (pin is not None or flags & GTF_type_mask == GTF_permit_access):
        yield f"grant {reference}: shows in-use bits {in_use:#x}, expected {expected:#x}"


def _frame_findings(machine: Machine, reference: int, pin: Pin) -> Iterator[str]:
    """References to the frame: its owner's, one for each page that shows it, one for each vcpu_info in it."""
    frames = machine.frames
    refs = 1 if frames.flags[pin.mfn] & ALLOCATED else 0
    writable = 0
    for domain in machine.domains.values():
        for _gpfn, page in domain.memory.mappings():
            if page.mfn == pin.mfn:
                refs += 1
                writable += page.writable
        holders = sum(vcpu.info_frame == pin.mfn for vcpu in domain.vcpus)
        refs += holders
        writable += holders
    if (frames.refs[pin.mfn], frames.writable[pin.mfn]) != (refs, writable):
        found = f"{frames.refs[pin.mfn]} references, {frames.writable[pin.mfn]} writable"
        yield f"grant {reference}: mfn {pin.mfn:#x} has {found}; counted {refs}, {writable}"
