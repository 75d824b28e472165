"""What a kernel is handed by whoever executes its vCPU: memory, a hypercall entry, an upcall to wait for, a
clock.

These protocols are all that differs between a coroutine in the hypervisor's process, a process of its own
and, later, a domain of a real Xen. A kernel is auto-translated: its frame numbers are guest-physical (PFNs),
and a guest handle is a guest-physical address. RAM is PFN 0 up to `nr_pages`; PFNs above are empty until the
kernel puts something there.
"""

from collections.abc import Sequence
from typing import Final, Protocol

PAGE_SIZE: Final = 4096
PAGE_SHIFT: Final = 12


class Memory(Protocol):
    """The domain's memory, by its own frame numbers. Views stay valid while the frame stays where it is."""

    def page(self, pfn: int) -> memoryview:
        """The 4096 bytes of `pfn`, read-only where the mapping is. Raises LookupError if nothing is there."""

    def span(self, pfn: int, count: int) -> memoryview:
        """`count` pages as one view. Raises a LookupError if they are not there, or not contiguous in the
        machine.
        """

    def share(self, domid: int, pfns: Sequence[int], *, readonly: bool) -> None:
        """Make these pages ready to be mapped by `domid`, before they are granted to it. Where a domain is a
        process, a page that another process may map lies apart from the rest. Raises OSError: refused.
        """

    def reclaim(self, pfn: int, count: int) -> None:
        """These pages, some of which were shared perhaps, are granted to nobody any more and go to other uses:
        whoever could map them sees nothing of that.
        """


class Platform(Protocol):
    """The machine as one kernel sees it."""

    @property
    def memory(self) -> Memory: ...

    @property
    def nr_pages(self) -> int:
        """RAM at boot, in pages."""

    def hypercall(self, number: int, *args: int) -> int:
        """Enter the hypervisor: Xen's number, up to six arguments, Xen's result (negative errno).
        Continuations are resolved inside.
        """

    async def wait_upcall(self) -> None:
        """Block the vCPU, as SCHEDOP_block does: return once evtchn_upcall_pending is set, at once if it is
        already.
        """

    def now_ns(self) -> int:
        """System time in nanoseconds, as the time stamp counter gives it to a guest of Xen."""
