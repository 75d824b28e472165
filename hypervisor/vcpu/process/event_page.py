"""The event bits of a domain whose vCPU is this process: what event_2l.py is for domains of the hypervisor's own.

shared_info and vcpu_info are written here, by the vCPU's own thread, while it runs, and by the core while it stands
still inside a hypercall. The order is the core's: the pending bit, the selector, evtchn_upcall_pending.
"""

from __future__ import annotations

from typing import Final

from hypervisor.abi.xen import shared_info

WORD_BITS: Final = 64
VCPU_INFO_BYTES: Final = 64
UPCALL_PENDING: Final = 0
SELECTOR_WORD: Final = 1

_PENDING: Final = shared_info.offsets["evtchn_pending"] // 8
_MASK: Final = shared_info.offsets["evtchn_mask"] // 8


class EventPage:
    """received: events that were entered. upcalls: how often that raised one."""

    def __init__(self, page: memoryview) -> None:
        """page: shared_info, in which vCPU 0 has its vcpu_info at first."""
        words = page.cast("Q")
        self._pending = words[_PENDING : _PENDING + WORD_BITS]
        self._mask = words[_MASK : _MASK + WORD_BITS]
        self.received = 0
        self.upcalls = 0
        self.place_info(page[:VCPU_INFO_BYTES])

    def place_info(self, info: memoryview) -> None:
        """vcpu_info lies there from now on (VCPUOP_register_vcpu_info)."""
        self._info = info
        self._info_words = info.cast("Q")

    @property
    def upcall_pending(self) -> bool:
        """Whether the vCPU has an upcall to take."""
        return bool(self._info[UPCALL_PENDING])

    def set_pending(self, port: int) -> None:
        """An event has come for `port`: on a fresh edge that is not masked, raise an upcall."""
        word, offset = divmod(port, WORD_BITS)
        bit = 1 << offset
        if self._pending[word] & bit:
            return
        self._pending[word] |= bit
        self.received += 1
        if not self._mask[word] & bit:
            self._info_words[SELECTOR_WORD] |= 1 << word
            if not self._info[UPCALL_PENDING]:
                self._info[UPCALL_PENDING] = 1
                self.upcalls += 1
