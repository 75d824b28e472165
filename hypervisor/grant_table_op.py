"""grant_table_op: the hypercall in front of grant tables.

Follows public/grant_table.h and do_grant_table_op of Xen 4.17. Operations on arrays (map, unmap, copy,
swap) report in each struct and succeed as a whole; the others take one struct. Tables are of version 1:
version 2's operations, page transfers (PV only) and cache maintenance (Arm only) are not implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct as Codec
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi.errno import XEN_ENOSYS
from hypervisor.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_copy,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_unmap_grant_ref,
    gnttab_copy,
    gnttab_get_version,
    gnttab_map_grant_ref,
    gnttab_query_size,
    gnttab_set_version,
    gnttab_setup_table,
    gnttab_swap_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.errors import (
    BadGrantReference,
    GuestFault,
    InvalidArgument,
    NoSuchDomain,
    OutOfMemory,
    Unsupported,
)
from hypervisor.grant_batch import STATUS, ArrayOperation, run
from hypervisor.grant_copy import copy
from hypervisor.grant_map import map_grant_ref, prepare, unmap_grant_ref
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.continuation import Continuation
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

VERSION: Final = 1
INVALID_GPFN: Final = 0xFFFF_FFFF_FFFF_FFFF
MAX_COUNT: Final = 0x7FFF_FFFF
GNTTABOP_CMD_MASK: Final = 0xFFF
"""above it lies the progress of a cache_flush"""


def grant_table_op(caller: Vcpu, command: int, address: int, count: int) -> int | Continuation:
    """The hypercall: `address` is that of an array of `count` structs."""
    if count > MAX_COUNT:
        raise InvalidArgument("count", count, f"at most {MAX_COUNT}")
    if command > GNTTABOP_CMD_MASK:
        raise InvalidArgument("command", command, f"at most {GNTTABOP_CMD_MASK}")
    operation = _ARRAYS.get(command)
    if operation is not None:
        return run(caller, command, operation, address, count)
    single = _SINGLES.get(command)
    if single is None:
        raise Unsupported(f"grant_table_op {command}")
    return single(caller, address, count)


def _setup_table(caller: Vcpu, address: int, count: int) -> int:
    """Grow a table and tell where its frames are in the guest: an auto-translated guest must have put them
    there (memory_op).
    """
    _check_single(count)
    memory = caller.access
    request = memory.read_struct(gnttab_setup_table, address)
    memory.check_writable(address, gnttab_setup_table.size)
    status, table = _target(caller.domain, request.dom)
    if table is not None:
        try:
            table.grants.grow(request.nr_frames)
        except (InvalidArgument, OutOfMemory):
            status = GNTST_general_error
        else:
            gpfns = _gpfns(table, request.nr_frames)
            try:
                memory.write(request.frame_list, Codec(f"<{len(gpfns)}Q").pack(*gpfns))
            except GuestFault:
                status = GNTST_bad_virt_addr
    memory.write(address + gnttab_setup_table.offsets["status"], STATUS[status])
    return 0


def _gpfns(domain: Domain, count: int) -> list[int]:
    """Where in its physmap the domain has put its first shared frames; INVALID_GPFN: nowhere."""
    places = [domain.memory.special_gpfn(mfn) for mfn in domain.grants.shared_mfns[:count]]
    return [INVALID_GPFN if gpfn is None else gpfn for gpfn in places]


def _query_size(caller: Vcpu, address: int, count: int) -> int:
    _check_single(count)
    request = caller.access.read_struct(gnttab_query_size, address)
    request.status, domain = _target(caller.domain, request.dom)
    if domain is not None:
        request.nr_frames = len(domain.grants.shared_mfns)
        request.max_nr_frames = domain.grants.max_frames
    caller.access.write_struct(address, request)
    return 0


def _set_version(caller: Vcpu, address: int, _count: int) -> int:
    """Only version 1 can be had; the struct says so whatever was asked for."""
    request = caller.access.read_struct(gnttab_set_version, address)
    wanted, request.version = request.version, VERSION
    caller.access.write_struct(address, request)
    if wanted == 2:
        raise InvalidArgument("grant table version", wanted, "1", errno=XEN_ENOSYS)
    if wanted != VERSION:
        raise InvalidArgument("grant table version", wanted, "1")
    return 0


def _get_version(caller: Vcpu, address: int, _count: int) -> int:
    request = caller.access.read_struct(gnttab_get_version, address)
    may_target(
        caller.domain,
        caller.domain.machine.resolve(caller.domain, request.dom),
        "get the grant table version of",
    )
    request.version = VERSION
    caller.access.write_struct(address, request)
    return 0


def _swap_grant_ref(caller: Domain, reference_a: int, reference_b: int) -> bytes:
    try:
        caller.grants.swap(reference_a, reference_b)
    except BadGrantReference as refusal:
        return STATUS[refusal.status]
    return STATUS[GNTST_okay]


def _check_single(count: int) -> None:
    if count != 1:
        raise InvalidArgument("count", count, "1")


def _target(caller: Domain, domid: int) -> tuple[int, Domain | None]:
    """The domain that an operation names and GNTST_okay, or why not."""
    try:
        domain = caller.machine.resolve(caller, domid)
    except NoSuchDomain:
        return GNTST_bad_domain, None
    if domain is not caller and not caller.privileged:
        return GNTST_permission_denied, None
    return GNTST_okay, domain


_ARRAYS: Final[Mapping[int, ArrayOperation]] = MappingProxyType(
    {
        GNTTABOP_map_grant_ref: ArrayOperation(
            Codec("<QIIH14x"), gnttab_map_grant_ref.offsets["status"], map_grant_ref, prepare
        ),
        GNTTABOP_unmap_grant_ref: ArrayOperation(
            Codec("<QQI4x"), gnttab_unmap_grant_ref.offsets["status"], unmap_grant_ref
        ),
        GNTTABOP_copy: ArrayOperation(Codec("<QHH4xQHH4xHH4x"), gnttab_copy.offsets["status"], copy),
        GNTTABOP_swap_grant_ref: ArrayOperation(
            Codec("<II4x"), gnttab_swap_grant_ref.offsets["status"], _swap_grant_ref
        ),
    }
)

_SINGLES: Final[Mapping[int, Callable[[Vcpu, int, int], int]]] = MappingProxyType(
    {
        GNTTABOP_setup_table: _setup_table,
        GNTTABOP_query_size: _query_size,
        GNTTABOP_set_version: _set_version,
        GNTTABOP_get_version: _get_version,
    }
)
