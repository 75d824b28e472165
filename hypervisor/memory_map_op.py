"""memory_op: the memory map that a native guest finds instead of a BIOS's (XENMEM_set_memory_map, XENMEM_memory_map).

Follows arch_memory_op of Xen 4.17 (xen/arch/x86/mm.c). The toolstack sets it, the guest reads it; what it says is
their business. A domain without one gets -ENOSYS and helps itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi import memory as abi
from hypervisor.errors import InvalidArgument, Unsupported
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

E820_ENTRY_BYTES: Final = 20
"""struct e820entry: u64 address, u64 size, u32 type"""
E820MAX: Final = 1024


def set_memory_map(caller: Vcpu, arg: int) -> int:
    """XENMEM_set_memory_map: the map of the domain named by the xen_foreign_memory_map at `arg`."""
    request = caller.access.read_struct(abi.xen_foreign_memory_map, arg)
    if request.map.nr_entries > E820MAX:
        raise InvalidArgument("nr_entries", request.map.nr_entries, f"at most {E820MAX}")
    domain = caller.domain.machine.resolve(caller.domain, request.domid)
    may_target(caller.domain, domain, "set the memory map of")
    if not domain.traits.pv:
        raise Unsupported("the memory map of an auto-translated domain")
    domain.memory_map = caller.access.read(request.map.buffer, request.map.nr_entries * E820_ENTRY_BYTES)
    return 0


def memory_map(caller: Vcpu, arg: int) -> int:
    """XENMEM_memory_map: as many entries as the caller has room for, and how many that are."""
    entries = caller.domain.memory_map
    if not entries:
        raise Unsupported("a memory map, as none was set")
    request = caller.access.read_struct(abi.xen_memory_map, arg)
    request.nr_entries = min(request.nr_entries, len(entries) // E820_ENTRY_BYTES)
    caller.access.check_writable(arg, abi.xen_memory_map.size)
    caller.access.write(request.buffer, entries[: request.nr_entries * E820_ENTRY_BYTES])
    caller.access.write_struct(arg, request)
    return 0
