"""The recount: every count that the core keeps, computed again from what it is a count of.

It trusts nothing but the physmaps, the vCPUs and the extents. Tests call it after each step: whatever went
wrong shows where it began, not where it hurts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.abi.xen import DOMID_INVALID
from hypervisor.frames import ALLOCATED, SPECIAL
from hypervisor.guest_memory import PageKind
from hypervisor.lifecycle import Life
from hypervisor.sharing_audit import audit as audit_sharing

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.extent import Extent
    from hypervisor.machine import Machine


def audit(machine: Machine) -> list[str]:
    """What does not agree, in words; empty when all is well."""
    found = list(_frames(machine))
    for extent in machine.frames.extents():
        found += _extent(machine, extent)
    found += audit_sharing(machine)
    for domid, domain in machine.domains.items():
        if domain.domid != domid:
            found.append(f"domain {domain.domid} is listed as {domid}")
        found += [f"domain {domid}: {what}" for what in _domain(machine, domain)]
        found += domain.events.audit()
        found += domain.grants.audit()
    return found


def _frames(machine: Machine) -> Iterator[str]:
    """The frame table against all references that there are."""
    frames = machine.frames
    refs: Counter[int] = Counter()
    writable: Counter[int] = Counter()
    for domain in machine.domains.values():
        for _, page in domain.memory.mappings():
            refs[page.mfn] += 1
            writable[page.mfn] += page.writable
        registered = [vcpu.info_frame for vcpu in domain.vcpus if vcpu.info_frame is not None]
        refs.update(registered)
        writable.update(registered)
    in_use = 0
    for mfn in range(len(frames.refs)):
        flags = frames.flags[mfn]
        expected = refs[mfn] + (1 if flags & ALLOCATED else 0)
        if (frames.refs[mfn], frames.writable[mfn]) != (expected, writable[mfn]):
            counted = f"{frames.refs[mfn]} references, {frames.writable[mfn]} writable"
            yield f"mfn {mfn:#x} has {counted}; there are {expected} and {writable[mfn]}"
        if frames.refs[mfn]:
            in_use += 1
            if frames.owners[mfn] not in machine.domains:
                yield f"mfn {mfn:#x} is in use, and its owner {frames.owners[mfn]} does not exist"
        elif flags or frames.owners[mfn] != DOMID_INVALID:
            yield f"mfn {mfn:#x} is free and has flags {flags:#x}, owner {frames.owners[mfn]}"
    if frames.used != in_use:
        yield f"{frames.used} frames are said to be in use, {in_use} are"
    if set(frames.accounts) != set(machine.domains):
        yield f"accounts of {sorted(frames.accounts)}, domains {sorted(machine.domains)}"


def _extent(machine: Machine, extent: Extent) -> Iterator[str]:
    """The lists of one extent against the frame table."""
    refs = machine.frames.refs[extent.mfn : extent.mfn + extent.count]
    name = f"extent {extent.mfn:#x}"
    if extent.used != sum(map(bool, refs)):
        yield f"{name} counts {extent.used} frames in use, has {sum(map(bool, refs))}"
    if not extent.used:
        yield f"{name} is open and empty"
    if any(refs[extent.fresh :]):
        yield f"{name}: a frame behind {extent.fresh} is in use, and was never handed out"
    if len(set(extent.recycled)) != len(extent.recycled) or any(refs[offset] for offset in extent.recycled):
        yield f"{name}: what came back is not free, or came back twice"
    owners = {machine.frames.owners[extent.mfn + offset] for offset in range(extent.count) if refs[offset]}
    if len(owners) != 1:
        yield f"{name} has frames of domains {sorted(owners)}"
    dying = all(machine.domains[owner].is_dying for owner in owners if owner in machine.domains)
    if not dying and len(extent.recycled) != extent.fresh - extent.used:
        yield f"{name} has lost {extent.fresh - extent.used - len(extent.recycled)} frames"


def _domain(machine: Machine, domain: Domain) -> Iterator[str]:
    frames = machine.frames
    owned = [mfn for mfn, owner in enumerate(frames.owners) if owner == domain.domid]
    special = sum(1 for mfn in owned if frames.flags[mfn] & SPECIAL)
    account = domain.reservation
    counted = (account.tot_pages, account.special_pages)
    if counted != (len(owned) - special, special):
        yield f"counts {counted} pages and special ones, has {len(owned) - special} and {special}"
    extents = [
        extent
        for extent in frames.extents()
        if frames.owners[extent.mfn : extent.mfn + extent.count].count(domain.domid)
    ]
    if sorted(extent.mfn for extent in account.extents) != [extent.mfn for extent in extents]:
        yield f"its extents are {[hex(extent.mfn) for extent in extents]}, not as it lists them"
    yield from _physmap(machine, domain)
    yield from _ledger(machine, domain)
    yield from _life(domain)


def _physmap(machine: Machine, domain: Domain) -> Iterator[str]:
    frames = machine.frames
    end = 0
    seen: set[int] = set()
    mapped = dict(domain.memory.mappings())
    for run in domain.memory.runs():
        if run.gpfn < end or run.count < 1:
            yield f"RAM at gpfn {run.gpfn:#x} overlaps what is before it"
        end = run.gpfn + run.count
        for index in range(run.count):
            mfn = run.mfn + index
            if frames.owners[mfn] != domain.domid or frames.flags[mfn] != ALLOCATED or mfn in seen:
                yield f"gpfn {run.gpfn + index:#x} shows mfn {mfn:#x}: not its own, given up, or mapped twice"
            if run.gpfn + index in mapped:
                yield f"gpfn {run.gpfn + index:#x} is RAM, and a page is mapped there"
            seen.add(mfn)
        if run.view.nbytes != run.count * 4096 or run.view.obj is not frames.extent_at(run.mfn).map:
            yield f"RAM at gpfn {run.gpfn:#x} shows other memory"
    for gpfn, page in mapped.items():
        special = frames.flags[page.mfn] & SPECIAL and frames.owners[page.mfn] == domain.domid
        if (page.kind is PageKind.SPECIAL) != bool(special and domain.memory.special_gpfn(page.mfn) == gpfn):
            yield f"gpfn {gpfn:#x} shows mfn {page.mfn:#x} as {page.kind.value}"


def _ledger(machine: Machine, domain: Domain) -> Iterator[str]:
    """What others may write of a native domain's frames, against what its process is told."""
    ledger = domain.ledger
    if ledger is None:
        return
    holds = Counter(pin.gpfn for _, pin in domain.grants.pins() if pin.writers)
    for other in machine.domains.values():
        for _, page in other.memory.mappings():
            if page.held is not None and page.held.ledger is ledger:
                holds[page.held.mfn] += 1
    if ledger.holds() != holds:
        yield f"its ledger holds {ledger.holds()}, writable uses are {dict(holds)}"


def _life(domain: Domain) -> Iterator[str]:
    life = domain.life
    if life is Life.GONE:
        yield "is gone, and listed"
    if domain.is_dying != (life in (Life.DYING, Life.DEAD)):
        yield f"is {life.value}, and is_dying is {domain.is_dying}"
    if domain.stopped != (life not in (Life.CREATED, Life.ALIVE)):
        yield f"is {life.value}, and stopped is {domain.stopped}"
    if domain.executing != (life is Life.ALIVE and not domain.pause_count):
        yield f"is {life.value}, paused {domain.pause_count} times, and executing is {domain.executing}"
    if (
        life is Life.DEAD
        and not domain.tot_pages
        and domain not in domain.machine.graveyard
        and not domain.reservation.special_pages
    ):
        yield "is dead and has no pages, and was not buried"
