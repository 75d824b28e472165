"""Arrays of grant operations in guest memory.

The operations of a slice are fetched once, together, and their places are known to be writable before the
first one is executed: a fault changes nothing. Each result is stored as soon as its operation is done,
exactly once. What is left after a slice is a Continuation that names the rest of the array, of which nothing may
be left if only some others are to be waited for (Domain.awaits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from struct import Struct as Codec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hypervisor.abi.grant_table import GNTST_no_space, GNTST_okay
from hypervisor.abi.xen import __HYPERVISOR_grant_table_op
from hypervisor.continuation import SLICE_STEPS, Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

STATUS: Final[Mapping[int, bytes]] = MappingProxyType(
    {status: status.to_bytes(2, "little", signed=True) for status in range(GNTST_no_space, GNTST_okay + 1)}
)
"""every status that there is, as it stands in guest memory"""


class ArrayOperation(NamedTuple):
    """An operation that takes an array of structs.

    slot       unpacks one struct of the array to the arguments of `execute`
    result_at  offset of the result fields in the struct
    execute    does one operation for a domain; returns its result fields. Raises nothing
    prepare    for a domain whose process is its own: whether the operations of a slice can be done now
    """

    slot: Codec
    result_at: int
    execute: Callable[..., bytes]
    prepare: Callable[[Domain, Iterable[Any]], bool] | None = None


def run(
    caller: Vcpu, command: int, operation: ArrayOperation, address: int, count: int
) -> int | Continuation:
    """Execute `count` operations, those of a slice now. GuestFault if they are not all accessible."""
    memory = caller.access
    domain = caller.domain
    slot, result_at, execute, prepare = operation
    taken = min(count, SLICE_STEPS)
    length = taken * slot.size
    slots = memory.read(address, length)
    memory.check_writable(address, length)
    if prepare is not None and domain.isolated and not prepare(domain, slot.iter_unpack(slots)):
        return Continuation(__HYPERVISOR_grant_table_op, (command, address, count))
    write = memory.write
    at = address + result_at
    for arguments in slot.iter_unpack(slots):
        write(at, execute(domain, *arguments))
        at += slot.size
    if taken < count or domain.awaits:
        return Continuation(__HYPERVISOR_grant_table_op, (command, address + length, count - taken))
    return 0
