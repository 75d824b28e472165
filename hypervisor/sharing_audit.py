"""A recount of what lies on memfds of its own for others, against what the processes of others have mapped.

A part of audit.py, which looks at the references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.guest_memory import PageKind

if TYPE_CHECKING:
    from hypervisor.machine import Machine
    from hypervisor.shared_page import SharedPage


def audit(machine: Machine) -> Iterator[str]:
    """What does not agree about shared pages, in words."""
    frames = machine.frames
    mapped: dict[int, Counter[int]] = {}
    written: set[int] = set()
    for domain in machine.domains.values():
        for _, seen in domain.memory.mappings() if domain.isolated else ():
            if seen.kind is not PageKind.SPECIAL and frames.owners[seen.mfn] != domain.domid:
                mapped.setdefault(seen.mfn, Counter())[domain.domid] += 1
                if seen.writable:
                    written.add(seen.mfn)
    shared = {
        extent.mfn + offset: page for extent in frames.extents() for offset, page in extent.shared.items()
    }
    for mfn in sorted(mapped.keys() - shared.keys()):
        yield f"mfn {mfn:#x} is mapped by processes of domains {sorted(mapped[mfn])}, and not shared"
    for mfn, page in shared.items():
        found = mapped.get(mfn, Counter())
        if page.mappings != found:
            yield f"shared mfn {mfn:#x} counts mappings {page.mappings}; there are {dict(found)}"
        if page.readonly and mfn in written:
            yield f"mfn {mfn:#x} is shared read-only, and mapped writable"
        if found and not page.sealed:
            yield f"mfn {mfn:#x} is mapped by others, and not sealed"
        yield from _page(machine, mfn, page)


def _page(machine: Machine, mfn: int, page: SharedPage) -> Iterator[str]:
    """A shared page against its owner."""
    if not machine.frames.exists(mfn):
        yield f"mfn {mfn:#x} is shared and free"
        return
    owner = machine.domains.get(machine.frames.owners[mfn])
    if owner is None:
        return  # the frame table's recount says so
    if not owner.isolated and not page.mappings:
        yield f"mfn {mfn:#x} of domain {owner.domid} is shared, and nobody maps it"
    seen_by = page.mappings.keys()
    if not seen_by <= page.seen or (owner.isolated and not seen_by <= page.peers):
        yield f"mfn {mfn:#x} is mapped by domains {sorted(seen_by)}, not all of which it was shared with"
