"""multicall: many hypercalls in one.

Follows do_multicall of Xen 4.17. Entries run in order; each is fetched once, when its turn has come, and gets
its own result; one that fails does not stop the others. An entry that cannot be read, or that has no place
for its result, ends the batch with -EFAULT before it is executed. One that is not finished is rewritten in
guest memory to go on, and the rest of the batch becomes a continuation. A multicall inside one is -EINVAL.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import __HYPERVISOR_multicall as multicall_number
from hypervisor.abi.xen import multicall_entry
from hypervisor.continuation import Continuation
from hypervisor.errors import InvalidArgument

if TYPE_CHECKING:
    from hypervisor.guest_access import GuestAccess
    from hypervisor.vcpu.state import Vcpu

U64: Final = 0xFFFF_FFFF_FFFF_FFFF
ENTRIES_PER_SLICE: Final = 64
ENTRY_SIZE: Final = multicall_entry.size
WORDS: Final = ENTRY_SIZE // 8  # an entry as u64s: op, result, args[6]
RESULT: Final = multicall_entry.offsets["result"]
RESULT_WORD: Final = RESULT // 8

_call = Codec("<Q8x6Q")  # op, args[6]
_result = Codec("<q")
_rewritten = Codec("<8Q")

Dispatch = Callable[["Vcpu", int, tuple[int, ...]], int | Continuation]


def run_batch(dispatch: Dispatch, caller: Vcpu, call_list: int, nr_calls: int) -> int | Continuation:
    """Execute `nr_calls` multicall_entry structs at guest address `call_list`, each by `dispatch`."""
    if caller.in_multicall:
        raise InvalidArgument("multicall", "nested", "no multicall inside a multicall")
    counters = caller.domain.counters
    counters.multicall_batches += 1
    caller.in_multicall = True
    try:
        done = _run_slice(dispatch, caller, call_list, min(nr_calls, ENTRIES_PER_SLICE))
    finally:
        caller.in_multicall = False
    counters.multicall_entries += done
    if done == nr_calls or caller.domain.stopped:
        return 0
    counters.continuations += 1
    return Continuation(multicall_number, (call_list + done * ENTRY_SIZE, nr_calls - done))


def _run_slice(dispatch: Dispatch, caller: Vcpu, address: int, count: int) -> int:
    """Execute entries from `address` on; how many are finished. Fewer than `count` when one is to go on, or
    when the vCPU has blocked or its domain has stopped.
    """
    memory = caller.access
    awake = not caller.blocked  # a coroutine kernel's other tasks go on while it waits
    done = 0
    more = True
    while more and done < count:
        at = address + done * ENTRY_SIZE
        view = memory.contiguous(at, (count - done) * ENTRY_SIZE)
        together = len(view) // ENTRY_SIZE
        if together:
            finished, more = _run_together(dispatch, caller, at, view, together, awake=awake)
            done += finished
        else:
            more = _run_split(dispatch, caller, at)
            done += more
        more = more and not ((awake and caller.blocked) or caller.domain.stopped)
    return done


def _run_together(
    dispatch: Dispatch, caller: Vcpu, address: int, view: memoryview, count: int, *, awake: bool
) -> tuple[int, bool]:
    """Execute `count` entries that lie in one view: how many are finished, and whether the next one may run.
    Ends early when the physmap has changed, as the view may then show what is gone.
    """
    domain = caller.domain
    memory = caller.access
    version = memory.version
    entries = view[: count * ENTRY_SIZE]
    words = entries.cast("Q")
    for index, call in enumerate(_call.iter_unpack(entries)):  # which fetches each when it comes to it
        result = dispatch(caller, call[0], call[1:])
        if memory.version != version or isinstance(result, Continuation):
            finished = _report(memory, address + index * ENTRY_SIZE, result)
            return index + finished, finished
        words[index * WORDS + RESULT_WORD] = result & U64
        if domain.stopped or (awake and caller.blocked):
            return index + 1, False
    return count, True


def _run_split(dispatch: Dispatch, caller: Vcpu, address: int) -> bool:
    """Execute one entry that lies in two places; whether it is finished."""
    memory = caller.access
    memory.check_writable(address, ENTRY_SIZE)
    call = _call.unpack(memory.read(address, ENTRY_SIZE))
    return _report(memory, address, dispatch(caller, call[0], call[1:]))


def _report(memory: GuestAccess, address: int, result: int | Continuation) -> bool:
    """Write the result, or what is still to be done, into the entry at `address`; whether it is finished."""
    if isinstance(result, Continuation):
        args = (*result.args, 0, 0, 0, 0, 0, 0)[:6]
        memory.write(address, _rewritten.pack(result.number, 0, *args))
        return False
    memory.write(address + RESULT, _result.pack(result))
    return True
