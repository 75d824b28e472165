"""Hypercalls that queue and leave as one multicall (public/xen.h, struct multicall_entry).

Entries run in order and each has its own result, which is read through a `Pending` after the block. A queue
that has no room for another entry or its arguments leaves at once and begins anew, so that a block may queue
any number; the order stays.
"""

from collections.abc import Callable
from typing import Concatenate, Final, Generic, ParamSpec, TypeVar, cast

from hypervisor.abi.xen import HYPERVISOR_multicall, multicall_entry
from kernel.errors import KernelMisuse
from kernel.hypercalls import control, event_channel, grant_table, machine, memory
from kernel.hypercalls.arguments import ArgumentArea, ArgumentsFull
from kernel.hypercalls.call import Call
from kernel.hypercalls.errors import refusal
from kernel.pages import Pages
from kernel.platform import PAGE_SHIFT, PAGE_SIZE

P = ParamSpec("P")
T = TypeVar("T")

_ENTRY: Final = multicall_entry.codec
_ENTRY_WORDS: Final = multicall_entry.size // 8
_RESULT_WORD: Final = multicall_entry.offsets["result"] // 8
_NR_ARGS: Final = 6

BATCH_PAGES: Final = 4
CAPACITY: Final = PAGE_SIZE // multicall_entry.size
"""Entries of one multicall: as many as fit on the first page of a batch."""

Hypercall = Callable[..., int]


class NotCalledYet(KernelMisuse):
    """A result was asked for inside the block that queues its hypercall."""

    def __init__(self, op: str) -> None:
        super().__init__("result", f"of {op}, which is still queued", "a batch that has been left")


class Pending(Generic[T]):
    """What one queued hypercall will have returned."""

    __slots__ = ("_call", "_error", "_value")

    def __init__(self, call: Call[T]) -> None:
        self._call: Call[T] | None = call
        self._value: T | None = None
        self._error: Exception | None = None

    def settle(self, result: int) -> None:
        """Take the result. What Xen wrote is read now, before the arguments' place is used again."""
        call, self._call = self._call, None
        if call is None:
            raise KernelMisuse("pending hypercall", "settled", "settled once")
        if result < 0:
            self._error = refusal(call.name, result, call.arguments)
        else:
            self._value = call.decode(result)

    def result(self) -> T:
        """The value. Raises HypercallError if it was refused, NotCalledYet if the batch has not left."""
        if self._call is not None:
            raise NotCalledYet(self._call.name)
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


def queued(
    build: Callable[Concatenate[ArgumentArea, P], Call[T]],
) -> Callable[Concatenate["Batch", P], Pending[T]]:
    """The method that queues the call which `build` lays out."""

    def queue(self: "Batch", /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        return self.add(lambda area: build(area, *args, **kwargs))

    queue.__doc__ = build.__doc__
    return queue


class Batch:
    """The queue. Made by Hypercalls.batch; the methods are those of Hypercalls and return a Pending."""

    def __init__(self, hypercall: Hypercall, pages: Pages) -> None:
        self._hypercall = hypercall
        self._address = pages.pfn << PAGE_SHIFT
        self._entries = pages.page(0)
        self._words = self._entries.cast("q")
        arguments = Pages(pages.pfn + 1, pages.count - 1, pages.view[PAGE_SIZE:])
        self._area = ArgumentArea(arguments)
        self._pending: list[Pending[object]] = []

    def add(self, build: Callable[[ArgumentArea], Call[T]]) -> Pending[T]:
        """Queue one hypercall."""
        if len(self._pending) == CAPACITY:
            self.send()
        try:
            call = build(self._area)
        except ArgumentsFull:
            if not self._pending:
                raise
            self.send()
            call = build(self._area)
        args = call.args
        offset = len(self._pending) * multicall_entry.size
        _ENTRY.pack_into(self._entries, offset, call.number, 0, *args, *(0,) * (_NR_ARGS - len(args)))
        pending = Pending(call)
        self._pending.append(cast(Pending[object], pending))
        return pending

    def send(self) -> None:
        """Make the multicall now. Raises HypercallError if it was refused as a whole."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        result = self._hypercall(HYPERVISOR_multicall, self._address, len(pending))
        if result < 0:
            self._area.clear()
            raise refusal("multicall", result, len(pending))
        for index, entry in enumerate(pending):
            entry.settle(self._words[index * _ENTRY_WORDS + _RESULT_WORD])
        self._area.clear()

    def forget(self) -> None:
        """Drop what is queued."""
        self._pending = []
        self._area.clear()

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
    max_vcpus = queued(control.max_vcpus)
    getdomaininfo = queued(control.getdomaininfo)
    getdomaininfolist = queued(control.getdomaininfolist)
    physinfo = queued(control.physinfo)
