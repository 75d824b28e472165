"""The state of one virtual CPU, whatever executes it.

The vCPU kinds (coroutine, process, x86-64 engine) read it and call enter_runstate; events, timers and
sched_op change it. The vcpu_info lies in real guest memory: in the domain's shared_info page, or where
VCPUOP_register_vcpu_info has moved it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from hypervisor.abi.vcpu import RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running
from hypervisor.timers import VcpuTimers
from hypervisor.virtual_access import VirtualAccess
from ringbuffers.atomics import plain_fetch_or

if TYPE_CHECKING:
    from hypervisor.abi.arch_x86_64 import vcpu_guest_context
    from hypervisor.domain import Domain
    from hypervisor.guest_access import GuestAccess

VCPU_INFO_SIZE: Final = 64
UPCALL_PENDING: Final = 0  # evtchn_upcall_pending: byte offset in vcpu_info
UPCALL_MASK: Final = 1  # evtchn_upcall_mask: byte offset in vcpu_info
PENDING_SEL: Final = 1  # evtchn_pending_sel: index of the u64 in vcpu_info


class Elsewhere(Protocol):
    """A process that executes a vCPU knows two things better than the core."""

    @property
    def sleeps(self) -> bool:
        """Whether it waits for an upcall."""

    @property
    def cpu_ns(self) -> int:
        """How long it has been executed by a real processor."""


class Vcpu:
    """One vCPU of `domain`.

    info         vcpu_info, 64 bytes of guest memory as bytes
    info_words   the same as u64s
    info_frame   the machine frame that a registered vcpu_info lies in; None while it is in shared_info
    initialised  it has something to execute: vCPU 0 of a Python domain, one of a native domain with its context
    online       the guest, or who built it, has brought it up (vCPU 0 of a Python domain starts so)
    blocked      SCHEDOP_block or SCHEDOP_poll: not to be executed until `unblock`
    poll_port    the port that SCHEDOP_poll waits for, POLL_ANY_PORT (-1) for several, None: it does not poll
    timers       its single-shot, periodic and poll timers
    elsewhere    the process that executes it, if one does
    runstate_area, time_area   guest addresses of copies that the guest has asked for; 0: none
    access       guest memory by the handles that this vCPU passes
    root         of a native domain: MFN of the page table by which the handles of its present request are
                 meant; 0: they are guest-physical addresses
    context      of a native domain: what it starts with (XEN_DOMCTL_setvcpucontext)
    """

    __slots__ = (
        "access",
        "blocked",
        "context",
        "domain",
        "elsewhere",
        "id",
        "in_multicall",
        "info",
        "info_frame",
        "info_words",
        "initialised",
        "online",
        "poll_port",
        "root",
        "runstate",
        "runstate_area",
        "runstate_entry_ns",
        "runstate_ns",
        "time_area",
        "timers",
    )

    def __init__(self, domain: Domain, vcpu_id: int, info: memoryview, now_ns: int) -> None:
        self.domain = domain
        self.id = vcpu_id
        self.info = info
        self.info_words = info.cast("Q")
        self.info_frame: int | None = None
        self.root = 0
        self.context: vcpu_guest_context | None = None
        self.access: GuestAccess = VirtualAccess(domain.memory, self) if domain.traits.pv else domain.memory
        self.initialised = self.online = vcpu_id == 0 and not domain.traits.pv
        self.blocked = False
        self.in_multicall = False
        self.poll_port: int | None = None
        self.elsewhere: Elsewhere | None = None
        self.runstate = RUNSTATE_runnable if self.online else RUNSTATE_offline
        self.runstate_entry_ns = now_ns
        self.runstate_ns = [0, 0, 0, 0]
        self.timers = VcpuTimers(self, domain.machine.timers)
        self.runstate_area = 0
        self.time_area = 0

    def __repr__(self) -> str:
        return f"<vCPU {self.id} of {self.domain!r}>"

    @property
    def runnable(self) -> bool:
        """Whether it may be executed now."""
        return self.online and not self.blocked and self.domain.executing

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do until something happens."""
        return self.blocked or (self.elsewhere is not None and self.elsewhere.sleeps)

    @property
    def upcall_pending(self) -> bool:
        return self.info[UPCALL_PENDING] != 0

    def place_info(self, info: memoryview, frame: int | None) -> None:
        """vcpu_info lies in `info` from now on; the caller has copied its content and holds a reference
        to `frame`.
        """
        self.info = info
        self.info_words = info.cast("Q")
        self.info_frame = frame

    def release_info(self) -> None:
        """The domain dies: a registered vcpu_info goes back to it, and what is still written goes nowhere."""
        if self.info_frame is not None:
            frame = self.info_frame
            self.place_info(memoryview(bytearray(VCPU_INFO_SIZE)), None)
            self.domain.machine.frames.release(frame, writable=True)

    def select_events(self, selector: int) -> None:
        """Mark words of pending bits for this vCPU to look at and, unless it was to look at them already,
        raise an upcall.

        The selector is set before evtchn_upcall_pending; the guest clears them in the opposite order.
        """
        if plain_fetch_or(self.info_words, PENDING_SEL, selector) & selector != selector:
            self.mark_events_pending()

    def mark_events_pending(self) -> None:
        """Raise an upcall, and wake the vCPU, unless one is pending already."""
        if not self.info[UPCALL_PENDING]:
            self.info[UPCALL_PENDING] = 1
            self.domain.counters.upcalls += 1
            self.unblock()

    def unblock(self) -> None:
        """End a block or a poll, and let the host execute the vCPU. Harmless when it does neither."""
        self.blocked = False
        if self.poll_port is not None:
            self.poll_port = None
            self.domain.events.bits.pollers.discard(self)
        domain = self.domain
        if domain.executing:
            domain.machine.host.kick(self)

    def enter_runstate(self, runstate: int, now_ns: int) -> None:
        """Account the time since the last change to the state that ends (RUNSTATE_*)."""
        self.runstate_ns[self.runstate] += max(0, now_ns - self.runstate_entry_ns)
        self.runstate = runstate
        self.runstate_entry_ns = now_ns

    def running_ns(self, now_ns: int) -> int:
        """How long it has been executed so far."""
        if self.elsewhere is not None:
            return self.elsewhere.cpu_ns
        current = now_ns - self.runstate_entry_ns if self.runstate == RUNSTATE_running else 0
        return self.runstate_ns[RUNSTATE_running] + max(0, current)
