"""A recount of what grants count, from first principles: for tests, and for whoever suspects a leak.

Every mapping in a maptrack must be a page of the physmap and vice versa; every pin must be the sum of the
mappings on it (between hypercalls no copy runs, so mappings are the only uses, and those that last until a page
has moved back). References to frames are
recounted by audit.py, of which this is a part. The in-use bits of the shared entries are apart: a granter can
write there what it likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.abi.grant_table import GTF_permit_access, GTF_reading, GTF_type_mask, GTF_writing
from hypervisor.guest_memory import PageKind

if TYPE_CHECKING:
    from hypervisor.grant_table import GrantTable


def audit(table: GrantTable) -> list[str]:
    """What does not agree about the pins and mappings of `table`, in words; empty when all does."""
    return [f"domain {table.domid}: {finding}" for finding in (*_pins(table), *_mappings(table))]


def audit_entries(table: GrantTable) -> list[str]:
    """Which entries do not show exactly the in-use bits of their pins. Only the granter can cause that."""
    pins = dict(table.pins())
    found = []
    for reference in range(table.entries.count):
        pin = pins.get(reference)
        flags = table.entries.flags(reference)
        if pin is None and flags & GTF_type_mask != GTF_permit_access:
            continue
        expected = 0 if pin is None else GTF_reading | GTF_writing if pin.writers else GTF_reading
        if flags & (GTF_reading | GTF_writing) != expected:
            found.append(f"domain {table.domid}: grant {reference} has flags {flags:#x}, uses {expected:#x}")
    return found


def _pins(table: GrantTable) -> Iterator[str]:
    """Pins against the mappings of all domains."""
    readers: Counter[int] = Counter()
    writers: Counter[int] = Counter()
    for domain in table.domain.machine.domains.values():
        for mapping in domain.grants.maptrack:
            if mapping.granter is table:
                (readers if mapping.readonly else writers)[mapping.reference] += 1
                if mapping.pin.domid != domain.domid:
                    yield f"grant {mapping.reference}: pinned for {mapping.pin.domid}, in {domain.domid}"
    for use in table.domain.moves.ending() if table.domain.moves is not None else ():
        (readers if use.readonly else writers)[use.reference] += 1
    pins = dict(table.pins())
    for reference in sorted({*pins, *readers, *writers}):
        pin = pins.get(reference)
        found = (pin.readers, pin.writers) if pin else (0, 0)
        counted = (readers[reference], writers[reference])
        if found != counted or found == (0, 0):
            yield f"grant {reference}: pinned {found}, mapped {counted} times"


def _mappings(table: GrantTable) -> Iterator[str]:
    """The maptrack against the physmap."""
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
