"""memory_op: how much memory a domain has, and what its physmap shows.

Follows do_memory_op of Xen 4.17 (xen/common/memory.c). The work is in reservation_op.py, physmap_op.py and
memory_map_op.py; here is what they share: the operation is in the low bits of the command, and how many
extents are done already in those above, so that a continuation is the same hypercall with another
command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import memory as abi
from hypervisor.continuation import Continuation
from hypervisor.errors import InvalidArgument
from hypervisor.memory_command import MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT
from hypervisor.memory_map_op import memory_map, set_memory_map
from hypervisor.physmap_op import add_to_physmap, add_to_physmap_batch, remove_from_physmap
from hypervisor.privileges import may_target
from hypervisor.pv.layout import MFN_END
from hypervisor.reservation_op import decrease_reservation, increase_reservation, populate_physmap

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu


def memory_op(caller: Vcpu, command: int, arg: int) -> int | Continuation:
    """The hypercall: `arg` is the guest address of the operation's struct."""
    operation = command & MEMOP_CMD_MASK
    done = command >> MEMOP_EXTENT_SHIFT
    sliced = _SLICED.get(operation)
    if sliced is not None:
        return sliced(caller, arg, done)
    if done:
        raise InvalidArgument("command", command, "an operation without progress")
    return _WHOLE[operation](caller, arg)


def _maximum_ram_page(caller: Vcpu, _arg: int) -> int:
    # It stays the same while the machine lives: guests read it once. A native one's frame numbers are its own.
    return MFN_END - 1 if caller.domain.traits.pv else caller.domain.machine.frames.total


def _of_domain(measure: Callable[[Domain], int]) -> Callable[[Vcpu, int], int]:
    """An operation that tells one number of the domain named by the xen_memory_domain at `arg`."""

    def tell(caller: Vcpu, arg: int) -> int:
        domid = caller.access.read_struct(abi.xen_memory_domain, arg).domid
        domain = caller.domain.machine.resolve(caller.domain, domid)
        may_target(caller.domain, domain, "look at the memory of")
        return measure(domain)

    return tell


def _tot_pages(domain: Domain) -> int:
    return domain.tot_pages


def _max_pages(domain: Domain) -> int:
    return domain.max_pages


def _max_gpfn(domain: Domain) -> int:
    return domain.memory.max_gpfn


_SLICED: Final[Mapping[int, Callable[[Vcpu, int, int], int | Continuation]]] = MappingProxyType(
    {
        abi.XENMEM_increase_reservation: increase_reservation,
        abi.XENMEM_decrease_reservation: decrease_reservation,
        abi.XENMEM_populate_physmap: populate_physmap,
        abi.XENMEM_add_to_physmap_batch: add_to_physmap_batch,
    }
)

_WHOLE: Final[Mapping[int, Callable[[Vcpu, int], int]]] = MappingProxyType(
    {
        abi.XENMEM_maximum_ram_page: _maximum_ram_page,
        abi.XENMEM_current_reservation: _of_domain(_tot_pages),
        abi.XENMEM_maximum_reservation: _of_domain(_max_pages),
        abi.XENMEM_maximum_gpfn: _of_domain(_max_gpfn),
        abi.XENMEM_set_memory_map: set_memory_map,
        abi.XENMEM_memory_map: memory_map,
        abi.XENMEM_add_to_physmap: add_to_physmap,
        abi.XENMEM_remove_from_physmap: remove_from_physmap,
    }
)
