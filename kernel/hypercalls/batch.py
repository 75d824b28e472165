"""Hypercalls that queue and leave as one multicall (public/xen.h, struct multicall_entry).

Entries run in order and each has its own result, which is read through a `Pending` after the block. A queue
that has no room for another entry or its arguments leaves at once and begins anew, so that a block may queue
any number; the order stays.
"""

from collections.abc import Callable
from struct import Struct as Codec
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from hypervisor.abi.xen import HYPERVISOR_multicall, multicall_entry
from kernel.hypercalls import control, event_channel, grant_table, machine, memory
from kernel.hypercalls.arguments import ArgumentArea, ArgumentsFull
from kernel.hypercalls.call import Pending
from kernel.hypercalls.errors import refusal
from kernel.pages import Pages
from kernel.platform import PAGE_SHIFT, PAGE_SIZE

P = ParamSpec("P")
T = TypeVar("T")

ENTRY_BYTES: Final = multicall_entry.size
BATCH_PAGES: Final = 4
CAPACITY: Final = PAGE_SIZE // ENTRY_BYTES
"""Entries of one multicall: as many as fit on the first page of a batch."""

_ENTRY_WORDS: Final = ENTRY_BYTES // 8
_RESULT_WORD: Final = multicall_entry.offsets["result"] // 8
_NR_ARGS: Final = 6
_ENTRIES: Final = tuple(
    Codec(f"<Q8x{count}Q{8 * (_NR_ARGS - count)}x").pack_into for count in range(_NR_ARGS + 1)
)
"""Packs an entry with so many arguments; the result and the arguments that it does not have are zeroed."""

Hypercall = Callable[..., int]


def queued(
    build: Callable[Concatenate[ArgumentArea, P], Pending[T]],
) -> Callable[Concatenate["Batch", P], Pending[T]]:
    """The method that queues the call which `build` lays out."""

    def queue(self: "Batch", /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        if len(self.pending) == CAPACITY:
            self.send()
        try:
            call = build(self.area, *args, **kwargs)
        except ArgumentsFull:
            if not self.pending:
                raise
            self.send()
            call = build(self.area, *args, **kwargs)
        # The call becomes an entry here, in line: this is what a batch costs.
        pending, given = self.pending, call.args
        _ENTRIES[len(given)](self._entries, len(pending) * ENTRY_BYTES, call.number, *given)
        pending.append(call)
        return call

    queue.__doc__ = build.__doc__
    return queue


class Batch:
    """The queue. Made by Hypercalls.batch; the methods are those of Hypercalls and return a Pending."""

    def __init__(self, hypercall: Hypercall, pages: Pages) -> None:
        self._hypercall = hypercall
        self._address = pages.pfn << PAGE_SHIFT
        self._entries = pages.page(0)
        self._results = self._entries.cast("q")[_RESULT_WORD::_ENTRY_WORDS]
        self.area = ArgumentArea(Pages(pages.pfn + 1, pages.count - 1, pages.view[PAGE_SIZE:]))
        self.pending: list[Pending[Any]] = []

    def send(self) -> None:
        """Make the multicall now. Raises HypercallError if it was refused as a whole."""
        queue, self.pending = self.pending, []
        if not queue:
            return
        result = self._hypercall(HYPERVISOR_multicall, self._address, len(queue))
        if result < 0:
            self.area.clear()
            raise refusal("multicall", result, len(queue))
        for pending, entry_result in zip(queue, self._results[: len(queue)].tolist()):
            pending.settle(entry_result)
        self.area.clear()

    def forget(self) -> None:
        """Drop what is queued."""
        self.pending = []
        self.area.clear()

    evtchn_alloc_unbound = queued(event_channel.alloc_unbound)
    evtchn_bind_interdomain = queued(event_channel.bind_interdomain)
    evtchn_bind_virq = queued(event_channel.bind_virq)
    evtchn_bind_ipi = queued(event_channel.bind_ipi)
    evtchn_bind_vcpu = queued(event_channel.bind_vcpu)
    evtchn_close = queued(event_channel.close)
    evtchn_send = queued(event_channel.send)
    evtchn_unmask = queued(event_channel.unmask)
    evtchn_status = queued(event_channel.status)
    evtchn_reset = queued(event_channel.reset)
    grant_query_size = queued(grant_table.query_size)
    grant_setup_table = queued(grant_table.setup_table)
    grant_map = queued(grant_table.map_refs)
    grant_unmap = queued(grant_table.unmap_refs)
    grant_copy = queued(grant_table.copy)
    grant_get_version = queued(grant_table.get_version)
    grant_set_version = queued(grant_table.set_version)
    add_to_physmap = queued(memory.add_to_physmap)
    remove_from_physmap = queued(memory.remove_from_physmap)
    map_foreign = queued(memory.map_foreign)
    map_grant_frames = queued(memory.map_grant_frames)
    populate_physmap = queued(memory.populate_physmap)
    decrease_reservation = queued(memory.decrease_reservation)
    set_memory_map = queued(memory.set_memory_map)
    maximum_ram_page = queued(memory.maximum_ram_page)
    current_reservation = queued(memory.current_reservation)
    maximum_reservation = queued(memory.maximum_reservation)
    sched_yield = queued(machine.sched_yield)
    sched_remote_shutdown = queued(machine.sched_remote_shutdown)
    set_timer = queued(machine.set_timer)
    xen_version = queued(machine.xen_version)
    get_features = queued(machine.get_features)
    console_write = queued(machine.console_write)
    hvm_get_param = queued(machine.hvm_get_param)
    hvm_set_param = queued(machine.hvm_set_param)
    createdomain = queued(control.createdomain)
    destroydomain = queued(control.destroydomain)
    pausedomain = queued(control.pausedomain)
    unpausedomain = queued(control.unpausedomain)
    max_mem = queued(control.max_mem)
    scheduler_op_get = queued(control.scheduler_op_get)
    scheduler_op_put = queued(control.scheduler_op_put)
    max_vcpus = queued(control.max_vcpus)
    setvcpucontext = queued(control.setvcpucontext)
    hypercall_init = queued(control.hypercall_init)
    getdomaininfo = queued(control.getdomaininfo)
    getdomaininfolist = queued(control.getdomaininfolist)
    physinfo = queued(control.physinfo)
