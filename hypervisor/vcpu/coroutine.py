"""A vCPU that is a coroutine in the hypervisor's process.

What the core knows as a vCPU, its program knows as the platform that `kernel` is handed: memory, hypercalls,
an upcall to wait for, a clock. The two packages meet here by structure only. The program runs in the loop of
whoever runs the machine (coroutine_host.py): a domain that is paused stays inside `wait_upcall`, one that is
killed or shut down is cancelled there, and one whose program raises has crashed. A program that never awaits
stops the whole machine; those of strangers belong into processes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from traceback import format_exception
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from hypervisor.abi.sched import SCHEDOP_block, SHUTDOWN_poweroff
from hypervisor.abi.vcpu import RUNSTATE_blocked, RUNSTATE_offline
from hypervisor.abi.xen import __HYPERVISOR_sched_op as HYPERVISOR_sched_op
from hypervisor.continuation import Continuation
from hypervisor.errors import BadGpfn
from hypervisor.vcpu.clock import enter_running, publish_system_time, publish_wall_clock
from hypervisor.vcpu.parking import Parker, new_parker
from hypervisor.vcpu.program_tasks import ProgramTasks, tasks_of_program

if TYPE_CHECKING:
    from hypervisor.guest_memory import GuestMemory
    from hypervisor.vcpu.state import Vcpu

Program = Callable[["CoroutineVcpu"], Awaitable[object]]


class PageNotPresent(LookupError):
    """The program looked at guest frames that are not there, or not contiguous in machine memory."""

    def __init__(self, pfn: int, count: int) -> None:
        super().__init__(f"no {count} contiguous pages at pfn {pfn:#x}")
        self.pfn = pfn
        self.count = count


class GuestPages:
    """The domain's own memory as its program sees it, and no more of it than that."""

    __slots__ = ("_memory",)

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def page(self, pfn: int) -> memoryview:
        """The 4096 bytes of `pfn`, read-only where the mapping is. PageNotPresent."""
        try:
            return self._memory.page(pfn)
        except BadGpfn:
            raise PageNotPresent(pfn, 1) from None

    def span(self, pfn: int, count: int) -> memoryview:
        """`count` pages as one view. PageNotPresent."""
        try:
            return self._memory.span(pfn, count)
        except BadGpfn:
            raise PageNotPresent(pfn, count) from None

    def share(self, domid: int, pfns: Sequence[int], *, readonly: bool) -> None:
        """Nothing: the hypervisor moves a page of its own process when another process maps it."""

    def reclaim(self, pfn: int, count: int) -> None:
        """Nothing: it has moved back when it was unmapped."""

    def count_from_zero(self) -> int:
        """How many pages of RAM there are from PFN 0 on, without a gap."""
        end = 0
        for run in self._memory.runs():
            if run.gpfn != end:
                break
            end += run.count
        return end


class CoroutineVcpu:
    """The platform of one program. `failure` is the traceback of a program that raised.

    `nr_pages` is set when the program starts: RAM as the domain was built.
    """

    def __init__(self, vcpu: Vcpu, program: Program, on_failure: Callable[[Vcpu, str], None]) -> None:
        self.vcpu = vcpu
        self.memory = GuestPages(vcpu.domain.memory)
        self.nr_pages = 0
        self.failure: str | None = None
        self.finished = anyio.Event()
        self.now_ns = vcpu.domain.machine.host.now_ns
        self._program = program
        self._on_failure = on_failure
        self._enter = vcpu.domain.machine.hypercall
        self._scope = anyio.CancelScope()
        self._parker: Parker | None = None
        self._tasks: ProgramTasks | None = None

    # ---- what the program calls

    def hypercall(self, number: int, *args: int) -> int:
        """Enter the hypervisor, and go on until the work is done: Xen's result, negative errno on failure."""
        result = self._enter(self.vcpu, number, args)
        while isinstance(result, Continuation):
            result = self._enter(self.vcpu, result.number, result.args)
        return result

    async def wait_upcall(self) -> None:
        """Block the vCPU until an upcall is pending; after SCHEDOP_poll, until the poll has ended.

        Others get their turn even if nothing is to be waited for: events in a storm are taken a batch at a
        time.
        """
        vcpu = self.vcpu
        if not vcpu.upcall_pending and not vcpu.blocked:
            self.hypercall(HYPERVISOR_sched_op, SCHEDOP_block, 0)
        if vcpu.runnable:
            await checkpoint()
        # The turn taken by others may have paused this domain.
        if not vcpu.runnable:
            await self._sleep()

    async def _sleep(self) -> None:
        vcpu = self.vcpu
        parker = self._parker
        if parker is None:
            self._parker = parker = new_parker()
        vcpu.enter_runstate(RUNSTATE_blocked if vcpu.blocked else RUNSTATE_offline, self.now_ns())
        try:
            while not vcpu.runnable:
                await parker.park()
        finally:
            enter_running(vcpu)  # a kernel may cancel its own wait and go on

    # ---- what the host calls

    def wake(self) -> None:
        """The vCPU may have become runnable."""
        if self._parker is not None:
            self._parker.unpark()

    def stop(self) -> None:
        """The domain does not execute any more; if that is for good, its program ends at its next await."""
        if self.vcpu.domain.stopped:
            self._scope.cancel()

    def end(self) -> None:
        """Cancel the program once more, whatever it shields itself with."""
        if self._tasks is not None:
            self._tasks.end()

    async def run(self) -> None:
        """Execute the program from the domain's first unpause on. Raises nothing that the program raised."""
        domain = self.vcpu.domain
        self._tasks = ProgramTasks()
        tasks_of_program.set(self._tasks)
        try:
            with self._scope:
                self.stop()
                await self._sleep()
                self.nr_pages = self.memory.count_from_zero()
                publish_wall_clock(domain)
                publish_system_time(self.vcpu)
                await self._program(self)
                domain.shutdown(SHUTDOWN_poweroff)
        except BaseException as error:
            if _is_for_the_host(error):
                raise
            # A domain that has shut down or dies executes nothing more: what its clean-up meets is no crash.
            if not domain.stopped:
                self.failure = "".join(format_exception(error))
                self._on_failure(self.vcpu, self.failure)
                domain.crash()
        finally:
            self.vcpu.enter_runstate(RUNSTATE_offline, self.now_ns())
            self.finished.set()


def _is_for_the_host(error: BaseException) -> bool:
    """Whether `error` ends more than one domain: an interrupt, or the cancellation of whoever runs them all.
    SystemExit, and a cancellation that a program has made up or let escape, are that program's own.
    """
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(_is_for_the_host(inner) for inner in error.exceptions)
    return (
        isinstance(error, anyio.get_cancelled_exc_class()) and anyio.current_effective_deadline() == -math.inf
    )
