"""multicall of a native guest: the entries lie in its virtual memory.

Follows do_multicall of Xen 4.17, as hypervisor/multicall.py does for auto-translated guests. The entries of a slice
are fetched together, once; the results are written when the slice is over or an entry is not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.errno import XEN_EINVAL
from hypervisor.abi.xen import HYPERVISOR_iret, HYPERVISOR_multicall, multicall_entry
from hypervisor.continuation import Continuation

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

ENTRY_BYTES: Final = multicall_entry.size
ENTRIES_A_SLICE: Final = 128
U64: Final = 0xFFFF_FFFF_FFFF_FFFF

_ALONE: Final = frozenset({HYPERVISOR_multicall, HYPERVISOR_iret})
"""never an entry of a multicall"""

_entry = Codec("<8Q")
_result = Codec("<Q")

Dispatch = Callable[["PvVcpu", int, tuple[int, ...]], int | Continuation | None]


def run_batch(dispatch: Dispatch, vcpu: PvVcpu, call_list: int, nr_calls: int) -> int | Continuation:
    """Execute a slice of `nr_calls` multicall_entry structs at virtual address `call_list`.

    Raises GuestFault when the entries cannot be read and written: none of them is executed then.
    """
    count = min(nr_calls, ENTRIES_A_SLICE)
    page_tables, root = vcpu.domain.page_tables, vcpu.kernel_root
    size = count * ENTRY_BYTES
    page_tables.check_writable(root, call_list, size)
    write = page_tables.write
    address = call_list
    tally = vcpu.domain.tally
    tally.multicalls += 1
    for number, _, *args in _entry.iter_unpack(page_tables.read(root, call_list, size)):
        if number in _ALONE:
            result: int | Continuation | None = -XEN_EINVAL
        else:
            result = dispatch(vcpu, number, tuple(args))
        tally.multicall_entries += 1
        if isinstance(result, Continuation):
            again = (*result.args, 0, 0, 0, 0, 0, 0)[:6]
            write(root, address, _entry.pack(result.number, 0, *again))
            return Continuation(
                HYPERVISOR_multicall, (address, nr_calls - (address - call_list) // ENTRY_BYTES)
            )
        write(root, address + 8, _result.pack((result or 0) & U64))
        address += ENTRY_BYTES
    if count < nr_calls:
        return Continuation(HYPERVISOR_multicall, (address, nr_calls - count))
    return 0
