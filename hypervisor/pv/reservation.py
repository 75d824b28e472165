"""memory_op of a native guest: frames that come get local machine frame numbers, frames that go must be unused.

Follows populate_physmap, increase_reservation and decrease_reservation of xen/common/memory.c for domains that are
not translated. The numbers that the guest gives with populate_physmap are its PFNs, for which the M2P table is
written; it keeps its own P2M.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from hypervisor.abi import memory as abi
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_memory_op
from hypervisor.continuation import Continuation
from hypervisor.errors import BadFrame, GuestFault, InvalidArgument, XenError
from hypervisor.memory_command import MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT
from hypervisor.pv.layout import (
    MACH2PHYS_VIRT_END,
    MACH2PHYS_VIRT_START,
    MFN_END,
    PAGE_SIZE,
)
from hypervisor.pv.vacancy import vacant_ram

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MAX_ORDER: Final = 9
"""CONFIG_DOMU_MAX_ORDER"""
EXTENTS_A_SLICE: Final = 128
PFN_BYTES: Final = 8


def memory_op(vcpu: PvVcpu, command: int, arg: int) -> int | Continuation:
    """The hypercall; the command's upper bits say how many extents are done already."""
    operation = command & MEMOP_CMD_MASK
    done = command >> MEMOP_EXTENT_SHIFT
    if operation in (
        abi.XENMEM_populate_physmap,
        abi.XENMEM_increase_reservation,
        abi.XENMEM_decrease_reservation,
    ):
        return _adjust(vcpu, operation, arg, done)
    if operation == abi.XENMEM_machphys_mapping:
        answer = abi.xen_machphys_mapping(
            v_start=MACH2PHYS_VIRT_START, v_end=MACH2PHYS_VIRT_END, max_mfn=MFN_END - 1
        )
        vcpu.domain.page_tables.write(vcpu.kernel_root, arg, answer.pack())
        return 0
    if operation == abi.XENMEM_maximum_ram_page:
        return MFN_END - 1
    return vcpu.domain.hypervisor.request(HYPERVISOR_memory_op, (command, arg), vcpu.kernel_root, vcpu.id)


def _adjust(vcpu: PvVcpu, operation: int, arg: int, done: int) -> int | Continuation:
    """One slice of a request, of which `done` extents are done. As in Xen, what is wrong ends it, and the result is
    how many extents are done.
    """
    read, root = vcpu.domain.page_tables.read, vcpu.kernel_root
    request = abi.xen_memory_reservation.unpack(read(root, arg, abi.xen_memory_reservation.size))
    if request.domid != DOMID_SELF or request.extent_order > MAX_ORDER or done >= request.nr_extents:
        return done
    count = min(request.nr_extents - done, max(1, EXTENTS_A_SLICE >> request.extent_order))
    at = request.extent_start + done * PFN_BYTES
    try:
        finished = _STEPS[operation](vcpu, at if request.extent_start else 0, count, request.extent_order)
    except XenError:
        finished = 0
    done += finished
    if finished < count or done == request.nr_extents:
        return done
    return Continuation(HYPERVISOR_memory_op, (done << MEMOP_EXTENT_SHIFT | operation, arg))


def _numbers(vcpu: PvVcpu, address: int, count: int) -> list[int]:
    data = vcpu.domain.page_tables.read(vcpu.kernel_root, address, count * PFN_BYTES)
    return memoryview(data).cast("Q").tolist()


def _populate(vcpu: PvVcpu, address: int, count: int, order: int) -> int:
    """Extents for the listed PFNs; the list says afterwards which frames they are."""
    page_tables, m2p = vcpu.domain.page_tables, vcpu.domain.m2p
    pfns = _numbers(vcpu, address, count)
    page_tables.check_writable(vcpu.kernel_root, address, count * PFN_BYTES)
    mfns = _allocate(vcpu, count, order)
    for pfn, mfn in zip(pfns, mfns):
        for page in range(1 << order):
            m2p[mfn + page] = pfn + page
    page_tables.write(vcpu.kernel_root, address, array("Q", mfns).tobytes())
    return len(mfns)


def _increase(vcpu: PvVcpu, address: int, count: int, order: int) -> int:
    """Extents without PFNs; the list, if there is one, says which frames they are."""
    page_tables = vcpu.domain.page_tables
    if address:
        page_tables.check_writable(vcpu.kernel_root, address, count * PFN_BYTES)
    mfns = _allocate(vcpu, count, order)
    if address:
        page_tables.write(vcpu.kernel_root, address, array("Q", mfns).tobytes())
    return len(mfns)


def _allocate(vcpu: PvVcpu, count: int, order: int) -> list[int]:
    """First frames of as many extents as there are."""
    domain = vcpu.domain
    mfns = vacant_ram(domain.frames, count, order)
    done = _ask(vcpu, abi.XENMEM_populate_physmap, mfns, order)
    return mfns[:done]


def _decrease(vcpu: PvVcpu, address: int, count: int, order: int) -> int:
    """Give frames back that nothing refers to."""
    frames = vcpu.domain.frames
    mfns = []
    for mfn in _numbers(vcpu, address, count):
        try:
            frames.check_unused(mfn, 1 << order)
        except BadFrame:
            break
        mfns.append(mfn)
    if len(set(mfns)) < len(mfns):
        raise InvalidArgument("extents", mfns, "frames that differ")
    return _ask(vcpu, abi.XENMEM_decrease_reservation, mfns, order)


def _ask(vcpu: PvVcpu, operation: int, mfns: list[int], order: int) -> int:
    """The machine-wide core gives or takes these frames; how many extents."""
    if not mfns:
        return 0
    argument = vcpu.domain.argument
    size = abi.xen_memory_reservation.size
    data = array("Q", mfns).tobytes()
    if size + len(data) > PAGE_SIZE:
        raise GuestFault(vcpu.domain.domid, 0, len(data))
    base = vcpu.domain.argument_address
    argument[:size] = abi.xen_memory_reservation(
        extent_start=base + size, nr_extents=len(mfns), extent_order=order, domid=DOMID_SELF
    ).pack()
    argument[size : size + len(data)] = data
    return vcpu.domain.hypervisor.request(HYPERVISOR_memory_op, (operation, base), 0, vcpu.id)


_STEPS: Final = {
    abi.XENMEM_populate_physmap: _populate,
    abi.XENMEM_increase_reservation: _increase,
    abi.XENMEM_decrease_reservation: _decrease,
}
