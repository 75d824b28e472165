"""Hypercalls made one at a time: each method lays out its arguments, enters the hypervisor and reads what
came back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, Final, ParamSpec, TypeVar

from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.xen import HYPERVISOR_event_channel_op
from kernel.hypercalls import control, event_channel, grant_table, machine, memory
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.batch import BATCH_PAGES, Batch
from kernel.hypercalls.call import Pending
from kernel.hypercalls.errors import refusal
from kernel.pages import PageAllocator
from kernel.platform import Platform

P = ParamSpec("P")
T = TypeVar("T")

ARGUMENT_PAGES: Final = 4

_SEND_BYTES: Final = 8


def single(
    build: Callable[Concatenate[ArgumentArea, P], Pending[T]],
) -> Callable[Concatenate["Hypercalls", P], T]:
    """The method that makes the call which `build` lays out."""

    def make(self: "Hypercalls", /, *args: P.args, **kwargs: P.kwargs) -> T:
        area = self.area
        area.clear()
        call = build(area, *args, **kwargs)
        result = self._hypercall(call.number, *call.args)
        if result < 0:
            raise refusal(call.name, result, call.arguments)
        return call.decode(result)

    make.__doc__ = build.__doc__
    return make


class Hypercalls:
    """The hypervisor's interface. Every method raises a HypercallError when it is refused."""

    def __init__(self, platform: Platform, pages: PageAllocator) -> None:
        self._hypercall = platform.hypercall
        self._pages = pages
        self._idle: list[Batch] = []
        self.area = ArgumentArea(pages.allocate(ARGUMENT_PAGES), reserved=_SEND_BYTES)
        self._send_word = self.area.view[:4].cast("I")

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Queue hypercalls in the block; they leave as one multicall at its end, and none if it raises."""
        batch = self._idle.pop() if self._idle else Batch(self._hypercall, self._pages.allocate(BATCH_PAGES))
        try:
            yield batch
            batch.send()
        finally:
            batch.forget()
            self._idle.append(batch)

    def evtchn_send(self, port: int) -> None:
        """Notify the other end of `port`. The call that drivers make most: its argument has a place of its
        own.
        """
        self._send_word[0] = port
        result = self._hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_send, self.area.address)
        if result < 0:
            raise refusal("EVTCHNOP_send", result, port)

    evtchn_alloc_unbound = single(event_channel.alloc_unbound)
    evtchn_bind_interdomain = single(event_channel.bind_interdomain)
    evtchn_bind_virq = single(event_channel.bind_virq)
    evtchn_bind_ipi = single(event_channel.bind_ipi)
    evtchn_bind_vcpu = single(event_channel.bind_vcpu)
    evtchn_close = single(event_channel.close)
    evtchn_unmask = single(event_channel.unmask)
    evtchn_status = single(event_channel.status)
    evtchn_reset = single(event_channel.reset)
    grant_query_size = single(grant_table.query_size)
    grant_setup_table = single(grant_table.setup_table)
    grant_map = single(grant_table.map_refs)
    grant_unmap = single(grant_table.unmap_refs)
    grant_copy = single(grant_table.copy)
    grant_get_version = single(grant_table.get_version)
    grant_set_version = single(grant_table.set_version)
    add_to_physmap = single(memory.add_to_physmap)
    remove_from_physmap = single(memory.remove_from_physmap)
    map_foreign = single(memory.map_foreign)
    map_grant_frames = single(memory.map_grant_frames)
    populate_physmap = single(memory.populate_physmap)
    decrease_reservation = single(memory.decrease_reservation)
    set_memory_map = single(memory.set_memory_map)
    maximum_ram_page = single(memory.maximum_ram_page)
    current_reservation = single(memory.current_reservation)
    maximum_reservation = single(memory.maximum_reservation)
    sched_yield = single(machine.sched_yield)
    sched_shutdown = single(machine.sched_shutdown)
    sched_remote_shutdown = single(machine.sched_remote_shutdown)
    set_timer = single(machine.set_timer)
    xen_version = single(machine.xen_version)
    get_features = single(machine.get_features)
    console_write = single(machine.console_write)
    hvm_get_param = single(machine.hvm_get_param)
    hvm_set_param = single(machine.hvm_set_param)
    createdomain = single(control.createdomain)
    destroydomain = single(control.destroydomain)
    pausedomain = single(control.pausedomain)
    unpausedomain = single(control.unpausedomain)
    max_mem = single(control.max_mem)
    scheduler_op_get = single(control.scheduler_op_get)
    scheduler_op_put = single(control.scheduler_op_put)
    max_vcpus = single(control.max_vcpus)
    setvcpucontext = single(control.setvcpucontext)
    hypercall_init = single(control.hypercall_init)
    getdomaininfo = single(control.getdomaininfo)
    getdomaininfolist = single(control.getdomaininfolist)
    physinfo = single(control.physinfo)
