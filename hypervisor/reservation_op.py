"""memory_op: increase_reservation, decrease_reservation, populate_physmap.

Follows xen/common/memory.c. They never fail: their result is how many extents are done, and a caller that
wanted more knows that the next one could not be. An extent is done as a whole or not at all, except that
decrease_reservation keeps what it had released of an extent before it met a hole (as Xen does). The order
of an extent is capped by the caller's privilege.

What is not Xen's way: populating a guest frame that is in use ends the operation, where Xen would let the
page that was there go astray. Nodes and address limits are checked, and then mean nothing, as a
translated guest never sees a machine address.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi import memory as abi
from hypervisor.continuation import Continuation
from hypervisor.errors import GuestFault, NotPermitted, XenError
from hypervisor.extent import PAGE_SHIFT
from hypervisor.memory_command import MAX_EXTENTS, go_on
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.guest_access import GuestAccess
    from hypervisor.vcpu.state import Vcpu

DOMU_MAX_ORDER: Final = 9  # CONFIG_DOMU_MAX_ORDER
CONTROL_MAX_ORDER: Final = 12  # CONFIG_HWDOM_MAX_ORDER
EXTENTS_PER_SLICE: Final = 128  # each may split a run of the physmap
PAGES_PER_SLICE: Final = 8192
MAX_NUMNODES: Final = 64
PFN_SIZE: Final = 8

_pfn = Codec("<Q")

Step = Callable[["Domain", int, int, int], int]
"""(domain, first gpfn, how many consecutive extents, order) -> how many of them are done"""


def increase_reservation(caller: Vcpu, arg: int, done: int) -> int | Continuation:
    """Give the domain frames without a place in its physmap; a translated guest sees nothing of them."""
    return _sliced(caller, arg, done, abi.XENMEM_increase_reservation, _increase)


def decrease_reservation(caller: Vcpu, arg: int, done: int) -> int | Continuation:
    """Take the frames at the listed gpfns from the domain."""
    return _sliced(caller, arg, done, abi.XENMEM_decrease_reservation, _decrease)


def populate_physmap(caller: Vcpu, arg: int, done: int) -> int | Continuation:
    """Give the domain frames at the listed gpfns."""
    return _sliced(caller, arg, done, abi.XENMEM_populate_physmap, _populate)


def _sliced(caller: Vcpu, arg: int, done: int, operation: int, step: Step) -> int | Continuation:
    """One slice of the request at `arg`, of which `done` extents are done already."""
    try:
        request = caller.access.read_struct(abi.xen_memory_reservation, arg)
        domain = _target(caller.domain, request)
    except XenError:
        return done
    if not done < request.nr_extents <= MAX_EXTENTS or domain.is_dying:
        return done
    order = request.extent_order
    wanted = min(request.nr_extents - done, EXTENTS_PER_SLICE, max(1, PAGES_PER_SLICE >> order))
    if operation == abi.XENMEM_increase_reservation:
        finished = step(domain, 0, wanted, order)
    else:
        listed = _listed(caller.access, request.extent_start + done * PFN_SIZE, wanted)
        finished = _each_run(domain, listed, order, step)
    done += finished
    if finished < wanted or done == request.nr_extents:
        return done
    return go_on(operation, done, arg)


def _target(caller: Domain, request: abi.xen_memory_reservation) -> Domain:
    """The domain that the request is about, if all else in it is in order."""
    domain = caller.machine.resolve(caller, request.domid)
    may_target(caller, domain, "adjust the reservation of")
    if request.extent_order > (CONTROL_MAX_ORDER if caller.privileged else DOMU_MAX_ORDER):
        raise NotPermitted(caller.domid, f"use extents of order {request.extent_order}")
    flags = request.mem_flags
    address_bits = flags & 0xFF
    node = (flags >> 8 & 0xFF) - 1  # XENMEMF_get_node; -1 is no node
    exact = flags & abi.XENMEMF_exact_node_request
    if flags & abi.XENMEMF_populate_on_demand or 0 < address_bits <= PAGE_SHIFT:
        raise NotPermitted(caller.domid, f"use memory flags {flags:#x}")
    if node >= 0 and not flags & abi.XENMEMF_vnode and (node >= MAX_NUMNODES if caller.privileged else exact):
        raise NotPermitted(caller.domid, f"ask for memory of node {node}")
    return domain


def _listed(memory: GuestAccess, address: int, count: int) -> list[int]:
    """At most `count` gpfns from `address` on, each fetched once; fewer if the list runs out of mapped
    memory.
    """
    try:
        data = memory.read(address, count * PFN_SIZE)
    except GuestFault:
        gpfns: list[int] = []
        while len(gpfns) < count:
            try:
                gpfns.append(memory.read_u64(address + len(gpfns) * PFN_SIZE))
            except GuestFault:
                break
        return gpfns
    return [gpfn for (gpfn,) in _pfn.iter_unpack(data)]


def _each_run(domain: Domain, gpfns: list[int], order: int, step: Step) -> int:
    """Do the extents in order, adjacent ones together, until one cannot be done; how many are."""
    done = 0
    while done < len(gpfns):
        first = gpfns[done]
        count = 1
        while done + count < len(gpfns) and gpfns[done + count] == first + (count << order):
            count += 1
        finished = step(domain, first, count, order)
        done += finished
        if finished < count:
            break
    return done


def _increase(domain: Domain, _gpfn: int, extents: int, order: int) -> int:
    try:
        domain.reservation.allocate(extents << order)
    except XenError:
        return _one_by_one(domain, 0, extents, order, _increase)
    return extents


def _populate(domain: Domain, gpfn: int, extents: int, order: int) -> int:
    try:
        domain.populate(gpfn, extents << order)
    except XenError:
        return _one_by_one(domain, gpfn, extents, order, _populate)
    return extents


def _one_by_one(domain: Domain, gpfn: int, extents: int, order: int, step: Step) -> int:
    """All together could not be done: how many can."""
    done = 0
    while extents > 1 and done < extents and step(domain, gpfn + (done << order), 1, order):
        done += 1
    return done


def _decrease(domain: Domain, gpfn: int, extents: int, order: int) -> int:
    left = extents << order
    while left:
        try:
            mfn, count = domain.memory.remove_ram(gpfn, left)
        except XenError:
            break
        domain.reservation.give_up(mfn, count)
        gpfn += count
        left -= count
    return ((extents << order) - left) >> order
