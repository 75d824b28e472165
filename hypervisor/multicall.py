"""multicall: many hypercalls in one.

Follows do_multicall of Xen 4.17. Entries run in order; each is read when its turn has come and gets its
own result; one that fails does not stop the others. An entry whose memory cannot be read or written ends
the batch with -EFAULT before it is executed. An entry that is not finished is rewritten in guest memory
to go on, and the rest of the batch becomes a continuation. Nesting is -EINVAL.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import __HYPERVISOR_multicall as multicall_number
from hypervisor.abi.xen import multicall_entry
from hypervisor.continuation import Continuation
from hypervisor.errors import InvalidArgument

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

ENTRIES_PER_SLICE: Final = 64
ENTRY_SIZE: Final = multicall_entry.size
RESULT: Final = multicall_entry.offsets["result"]
U64: Final = 0xFFFF_FFFF_FFFF_FFFF

_entry = Codec("<8Q")  # op, result, args[6]


def multicall(caller: Vcpu, call_list: int, nr_calls: int) -> int | Continuation:
    """Execute `nr_calls` multicall_entry structs at guest address `call_list`."""
    if caller.in_multicall:
        raise InvalidArgument("multicall", "nested", "no multicall inside a multicall")
    counters = caller.domain.counters
    counters.multicall_batches += 1
    caller.in_multicall = True
    try:
        done = _run(caller, call_list, min(nr_calls, ENTRIES_PER_SLICE))
    finally:
        caller.in_multicall = False
    counters.multicall_entries += done
    if done == nr_calls or caller.domain.stopped:
        return 0
    counters.continuations += 1
    return Continuation(multicall_number, (call_list + done * ENTRY_SIZE, nr_calls - done))


def _run(caller: Vcpu, address: int, count: int) -> int:
    """Execute entries from `address` on; how many are finished. Fewer than `count` when one is to go on,
    or the vCPU has blocked.
    """
    domain = caller.domain
    memory = domain.memory
    hypercall = domain.machine.hypercall
    for index in range(count):
        view, offset = memory.window(address, ENTRY_SIZE)
        number, _, *args = _entry.unpack_from(view, offset)
        result = hypercall(caller, number, tuple(args))
        if isinstance(result, Continuation):
            _rewrite(caller, address, result)
            return index
        memory.write_u64(address + RESULT, result)
        if domain.stopped or caller.blocked:
            return index + 1
        address += ENTRY_SIZE
    return count


def _rewrite(caller: Vcpu, address: int, rest: Continuation) -> None:
    """Let the entry at `address` say what is still to be done of it."""
    args = (*rest.args, 0, 0, 0, 0, 0, 0)[:6]
    caller.domain.memory.write(address, _entry.pack(rest.number, 0, *args))
