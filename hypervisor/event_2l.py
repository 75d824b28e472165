"""The two-level event ABI: pending and mask bits of 4096 ports in a domain's shared_info page.

Follows xen/common/event_2l.c and struct shared_info (public/xen.h). The guest clears pending bits, owns the
mask bits and the selector of each vCPU; the hypervisor sets pending bits, then the selector, then
evtchn_upcall_pending, in this order, so that a guest which clears them in the opposite order misses nothing.
None of these bits is ever believed: a guest that scribbles over them harms its own upcalls only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import shared_info
from ringbuffers.atomics import plain_fetch_and, plain_fetch_or

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel import Channel
    from hypervisor.vcpu.state import Vcpu

EVENT_WORD_BITS: Final = 64
ALL_BITS: Final = (1 << EVENT_WORD_BITS) - 1
EVENT_WORDS_BYTES: Final = EVENT_WORD_BITS * 8
POLL_ANY_PORT: Final = -1
"""in Vcpu.poll_port: it waits for several ports, and looks for itself which one it was"""


class EventBits:
    """Whoever holds it may set and clear event bits of one domain; polling vCPUs are woken from here.

    post: takes the ports of events in the place of all this while the domain's vCPU runs elsewhere, whose own
    thread enters them then. It is None whenever the vCPU stands still, inside a hypercall above all.
    """

    __slots__ = ("_counters", "_mask", "_pending", "_vcpus", "pollers", "post")

    def __init__(self, domain: Domain) -> None:
        self._pending = _words(domain.shared_info, shared_info.offsets["evtchn_pending"])
        self._mask = _words(domain.shared_info, shared_info.offsets["evtchn_mask"])
        self._vcpus = domain.vcpus
        self._counters = domain.counters
        self.post: Callable[[int], None] | None = None
        self.pollers: set[Vcpu] = set()
        """the vCPUs inside a SCHEDOP_poll; `unblock` takes them out"""

    def set_pending(self, channel: Channel) -> None:
        """An event for `channel`: mark it pending and, on a fresh unmasked edge, raise an upcall."""
        if self.post is not None:
            self.post(channel.port)
            return
        word, bit = channel.word, channel.bit
        if plain_fetch_or(self._pending, word, bit) & bit:
            return
        self._counters.events_received += 1
        if not self._mask[word] & bit:
            self._vcpus[channel.vcpu_id].select_events(1 << word)
        if self.pollers:
            self._wake_pollers(channel.port)

    def clear_pending(self, channel: Channel) -> None:
        """Forget an event that was not taken, as the port is freed."""
        plain_fetch_and(self._pending, channel.word, ALL_BITS ^ channel.bit)

    def unmask(self, channel: Channel) -> None:
        """Clear the mask bit; an event that came while it was set raises its upcall now."""
        word, bit = channel.word, channel.bit
        if plain_fetch_and(self._mask, word, ALL_BITS ^ bit) & bit and self._pending[word] & bit:
            self._vcpus[channel.vcpu_id].select_events(1 << word)

    def is_pending(self, channel: Channel) -> bool:
        """Whether the pending bit is set."""
        return bool(self._pending[channel.word] & channel.bit)

    def is_masked(self, channel: Channel) -> bool:
        """Whether the mask bit is set."""
        return bool(self._mask[channel.word] & channel.bit)

    def _wake_pollers(self, port: int) -> None:
        for vcpu in tuple(self.pollers):
            if vcpu.poll_port in (POLL_ANY_PORT, port):
                vcpu.unblock()

    def release(self) -> None:
        """Let go of the shared page; no event may be set afterwards."""
        self._pending.release()
        self._mask.release()


def _words(page: memoryview, offset: int) -> memoryview:
    return page[offset : offset + EVENT_WORDS_BYTES].cast("Q")
