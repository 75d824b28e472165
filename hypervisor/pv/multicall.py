"""multicall of a native guest: the entries lie in its virtual memory.

Follows do_multicall of Xen 4.17, as hypervisor/multicall.py does for auto-translated guests. The entries of a slice
are fetched together, once, and written back together with their results when the slice is over or an entry is not
finished. Translations that a slice makes stale are forgotten at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.errno import XEN_EINVAL
from hypervisor.abi.xen import HYPERVISOR_iret, HYPERVISOR_multicall, multicall_entry
from hypervisor.continuation import Continuation
from hypervisor.errors import GuestFault

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

ENTRY_BYTES: Final = multicall_entry.size
RESULT: Final = multicall_entry.offsets["result"]
ENTRIES_A_SLICE: Final = 128
U32: Final = 0xFFFF_FFFF
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
    if nr_calls >= U32 // ENTRY_BYTES:
        raise GuestFault(vcpu.domain.domid, call_list, nr_calls * ENTRY_BYTES)
    count = min(nr_calls, ENTRIES_A_SLICE)
    page_tables, root = vcpu.domain.page_tables, vcpu.kernel_root
    page_tables.check_writable(root, call_list, count * ENTRY_BYTES)
    entries = bytearray(page_tables.read(root, call_list, count * ENTRY_BYTES))
    vcpu.domain.tally.multicalls += 1
    page_tables.begin_batch()
    try:
        done = _run_slice(dispatch, vcpu, entries)
    finally:
        page_tables.end_batch()
    vcpu.domain.tally.multicall_entries += done
    # By the present page tables: an entry may have changed them, and this frame may be one by now.
    page_tables.write(vcpu.kernel_root, call_list, entries[: min(done + 1, count) * ENTRY_BYTES])
    if done < nr_calls:
        return Continuation(HYPERVISOR_multicall, (call_list + done * ENTRY_BYTES, nr_calls - done))
    return 0


def _run_slice(dispatch: Dispatch, vcpu: PvVcpu, entries: bytearray) -> int:
    """Execute the entries until one is not finished, which is rewritten to go on; how many are done."""
    at = 0
    for number, _, *args in list(_entry.iter_unpack(entries)):
        result = -XEN_EINVAL if number in _ALONE else dispatch(vcpu, number, tuple(args))
        if isinstance(result, Continuation):
            again = (*result.args, 0, 0, 0, 0, 0, 0)[:6]
            _entry.pack_into(entries, at, result.number, 0, *again)
            break
        _result.pack_into(entries, at + RESULT, (result or 0) & U64)
        at += ENTRY_BYTES
    return at // ENTRY_BYTES
