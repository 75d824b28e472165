"""grant_table_op of a native guest: mapping grants into its own page tables.

The machine-wide core maps a grant at a frame number in the window for foreign frames, as it does for auto-translated
guests; the level-1 entry that the guest has named is written here (host_addr: a virtual address, or with
GNTMAP_contains_pte the machine address of the entry). Follows xen/common/grant_table.c and the PV parts of
xen/arch/x86/pv/grant_table.c.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final, NamedTuple

from hypervisor.abi.grant_table import (
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_handle,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.abi.xen import HYPERVISOR_grant_table_op
from hypervisor.continuation import Continuation
from hypervisor.errors import Unsupported, XenError
from hypervisor.pv.layout import PAGE_SHIFT
from hypervisor.pv.vacancy import vacant_foreign

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.pv.vcpu import PvVcpu

OPERATIONS_A_SLICE: Final = 64

_map_result = Codec("<hIQ")


class Mapped(NamedTuple):
    """A grant that is mapped: the frame in the window, and where the guest wanted it."""

    mfn: int
    host_addr: int
    flags: int


def grant_table_op(vcpu: PvVcpu, command: int, address: int, count: int) -> int | Continuation:
    """The hypercall."""
    if command == GNTTABOP_unmap_and_replace:
        raise Unsupported("grant_table_op unmap_and_replace")
    step, size = _STEPS.get(command, (None, 0))
    if step is None:
        args = (command, address, count)
        return vcpu.domain.hypervisor.request(HYPERVISOR_grant_table_op, args, vcpu.kernel_root, vcpu.id)
    page_tables, root = vcpu.domain.page_tables, vcpu.kernel_root
    taken = min(count, OPERATIONS_A_SLICE)
    slots = page_tables.read(root, address, taken * size)
    page_tables.check_writable(root, address, taken * size)
    for at in range(0, taken * size, size):
        offset, result = step(vcpu, slots[at : at + size])
        page_tables.write(root, address + at + offset, result)
    if taken < count:
        return Continuation(HYPERVISOR_grant_table_op, (command, address + taken * size, count - taken))
    return 0


def _status(code: int) -> bytes:
    return code.to_bytes(2, "little", signed=True)


def _map(vcpu: PvVcpu, slot: bytes) -> tuple[int, bytes]:
    offset = gnttab_map_grant_ref.offsets["status"]
    request = gnttab_map_grant_ref.unpack(slot)
    domain, flags = vcpu.domain, request.flags
    if not flags & GNTMAP_host_map or flags & GNTMAP_device_map:
        return offset, _status(GNTST_general_error)
    mfn = vacant_foreign(domain.frames)
    if mfn is None:
        return offset, _status(GNTST_no_space)
    wanted = gnttab_map_grant_ref(
        host_addr=mfn << PAGE_SHIFT,
        flags=GNTMAP_host_map | (flags & GNTMAP_readonly),
        ref=request.ref,
        dom=request.dom,
    )
    answer = gnttab_map_grant_ref.unpack(_ask(vcpu, GNTTABOP_map_grant_ref, wanted.pack()))
    if answer.status != GNTST_okay:
        return offset, _status(answer.status)
    try:
        domain.page_tables.map_grant(vcpu, request.host_addr, flags, mfn)
    except XenError:
        _give_back(vcpu, mfn, answer.handle)
        return offset, _status(GNTST_general_error if flags & GNTMAP_contains_pte else GNTST_bad_virt_addr)
    domain.mapped_grants[answer.handle] = Mapped(mfn, request.host_addr, flags)
    return offset, _map_result.pack(GNTST_okay, answer.handle, mfn << PAGE_SHIFT)


def _unmap(vcpu: PvVcpu, slot: bytes) -> tuple[int, bytes]:
    offset = gnttab_unmap_grant_ref.offsets["status"]
    request = gnttab_unmap_grant_ref.unpack(slot)
    domain = vcpu.domain
    mapped = domain.mapped_grants.get(request.handle)
    if mapped is None:
        return offset, _status(GNTST_bad_handle)
    if request.host_addr != mapped.host_addr:
        return offset, _status(GNTST_general_error if request.host_addr else GNTST_okay)
    try:
        domain.page_tables.unmap_grant(vcpu, mapped.host_addr, mapped.flags, mapped.mfn)
    except XenError:
        return offset, _status(GNTST_general_error)
    del domain.mapped_grants[request.handle]
    _give_back(vcpu, mapped.mfn, request.handle)
    return offset, _status(GNTST_okay)


def _give_back(vcpu: PvVcpu, mfn: int, handle: int) -> None:
    wanted = gnttab_unmap_grant_ref(host_addr=mfn << PAGE_SHIFT, handle=handle)
    _ask(vcpu, GNTTABOP_unmap_grant_ref, wanted.pack())


def _ask(vcpu: PvVcpu, command: int, slot: bytes) -> bytes:
    """One operation, with this process's own arguments; the struct as the core has left it."""
    domain: PvDomain = vcpu.domain
    domain.argument[: len(slot)] = slot
    args = (command, domain.argument_address, 1)
    result = domain.hypervisor.request(HYPERVISOR_grant_table_op, args, 0, vcpu.id)
    if result:
        raise Unsupported(f"grant operation {command}: {result}")
    return bytes(domain.argument[: len(slot)])


_STEPS: Final = {
    GNTTABOP_map_grant_ref: (_map, gnttab_map_grant_ref.size),
    GNTTABOP_unmap_grant_ref: (_unmap, gnttab_unmap_grant_ref.size),
}
