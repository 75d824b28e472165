"""A domain: its memory, events, grants and vCPUs, from its creation to the last release of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hypervisor.abi.sched import SHUTDOWN_crash
from hypervisor.abi.xen import VIRQ_DOM_EXC
from hypervisor.console_io import ConsoleAllowance
from hypervisor.counters import Counters
from hypervisor.credit import Share
from hypervisor.errors import BadGpfn, InvalidArgument, XenError
from hypervisor.event_channels import EventChannels
from hypervisor.extent import PAGE_SIZE
from hypervisor.grant_table import GrantTable
from hypervisor.guest_memory import GuestMemory, PageKind
from hypervisor.lifecycle import Life, LifeEvent, Status, next_life
from hypervisor.page_moves import PageMoves
from hypervisor.pv.layout import ARGUMENT_MFN, MFN_END, RAM_FIRST, SHARED_INFO_MFN
from hypervisor.pv.ledger import Ledger
from hypervisor.reservation import Reservation
from hypervisor.vcpu.state import VCPU_INFO_SIZE, Vcpu
from hypervisor.watchdogs import Watchdogs

if TYPE_CHECKING:
    from hypervisor.machine import Machine

LEGACY_MAX_VCPUS: Final = 32  # XEN_LEGACY_MAX_VCPUS: so many have their vcpu_info in shared_info
MAX_PAUSES: Final = 255
NO_LIMIT: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Traits:
    """What is decided when a domain is created and stays so (struct xen_domctl_createdomain)."""

    name: str = ""  # for reports alone; a toolstack keeps names in XenStore
    max_vcpus: int = 1
    max_event_port: int = 4095
    max_grant_frames: int = 64
    max_maptrack_frames: int = 1024
    handle: bytes = bytes(16)
    pv: bool = False  # a native kernel that brings its own page tables; otherwise an auto-translated guest


class Domain:
    """One domain. `privileged`: Xen's is_control_domain. `executing`: alive and not paused, so that its
    vCPUs may run. `share`: of the processors. `ledger`: of a native domain, what its process and this core tell
    each other of its frames. `moves`: of a native domain, its pages on their way to processes of others.
    `awaits`: native domains whose processes are to stand still before a hypercall of this one goes on.
    """

    def __init__(
        self, machine: Machine, domid: int, traits: Traits, *, privileged: bool, max_pages: int
    ) -> None:
        self.machine = machine
        self.domid = domid
        self.traits = traits
        self.privileged = privileged
        self.life = Life.CREATED
        self.stopped = False  # shut down or dying: nothing of it may execute
        self.is_dying = False
        self.executing = False
        self.isolated = False  # its vCPU kind says so: a process of its own maps its memory
        self.shutdown_reason: int | None = None
        self.shutdown_code: int | None = None  # SCHEDOP_shutdown_code: the reason, said beforehand
        self.pause_count = 1  # by whoever creates it, who unpauses it when it is built
        self.handle = traits.handle
        self.share = Share()
        self.counters = Counters()
        self.console_allowance = ConsoleAllowance(machine.host)
        self.hvm_params: dict[int, int] = {}
        self.memory_map = b""  # E820 entries for a native guest, as its builder has set them
        self.vcpus: list[Vcpu] = []
        self.watchdogs = Watchdogs(self)
        self.reservation = Reservation(machine.frames, domid, max_pages, self._drained)
        self.memory = GuestMemory(machine.frames, domid)
        self.ledger: Ledger | None = None
        self.moves = PageMoves(self) if traits.pv else None
        self.awaits: set[Domain] = set()
        try:
            self.shared_info_mfn = self.reservation.allocate(1, special=True)[0].mfn
            self.shared_info = machine.frames.view(self.shared_info_mfn)
            if traits.pv:
                self.ledger = Ledger(domid)
                self._place_special_frames()
            self.events = EventChannels(self, traits.max_event_port)
            self.grants = GrantTable(self)
        except XenError:
            self.memory.relinquish(NO_LIMIT)
            self.reservation.cancel()
            raise

    def __repr__(self) -> str:
        return f"<domain {self.domid}, {self.status.value}>"

    @property
    def max_pages(self) -> int:
        """The most frames it may own."""
        return self.reservation.max_pages

    @property
    def tot_pages(self) -> int:
        """The frames that it owns, those included that it gave up and a peer still refers to."""
        return self.reservation.tot_pages

    @property
    def status(self) -> Status:
        """The one word that a list of domains shows."""
        shown = _SHOWN.get(self.life)
        if shown is not None:
            return shown
        if self.pause_count:
            return Status.PAUSED
        return Status.BLOCKED if all(v.waits for v in self.vcpus if v.online) else Status.RUNNING

    # Memory

    def populate(self, gpfn: int, count: int) -> None:
        """Give it `count` zeroed frames of RAM from `gpfn` on. BadGpfn, OutOfMemory: nothing has changed."""
        if self.traits.pv and not RAM_FIRST <= gpfn <= MFN_END - count:
            raise BadGpfn(
                self.domid, gpfn, f"outside the machine frames of a native domain: {count} from there"
            )
        self.memory.check_vacant(gpfn, count)
        for run in self.reservation.allocate(count):
            self.memory.add_ram(gpfn, run.mfn, run.count)
            gpfn += run.count

    def _place_special_frames(self) -> None:
        """A native guest asks for nothing to be mapped: what is the hypervisor's has its place from the start."""
        self.memory.map_foreign(SHARED_INFO_MFN, self.shared_info_mfn, True, PageKind.SPECIAL)
        argument_mfn = self.reservation.allocate(1, special=True)[0].mfn
        self.memory.map_foreign(ARGUMENT_MFN, argument_mfn, True, PageKind.PRIVATE)

    # vCPUs

    def add_vcpus(self) -> None:
        """Make the vCPUs that it may have; those that exist stay."""
        now_ns = self.machine.host.now_ns()
        for vcpu_id in range(len(self.vcpus), self.traits.max_vcpus):
            if vcpu_id < LEGACY_MAX_VCPUS:
                info = self.shared_info[vcpu_id * VCPU_INFO_SIZE : (vcpu_id + 1) * VCPU_INFO_SIZE]
            else:
                info = memoryview(bytearray(VCPU_INFO_SIZE))  # until VCPUOP_register_vcpu_info
            self.vcpus.append(Vcpu(self, vcpu_id, info, now_ns))

    # Pausing

    def pause(self) -> None:
        """Stop executing it until as many `unpause`s. InvalidArgument past 255."""
        if self.pause_count >= MAX_PAUSES:
            raise InvalidArgument("pause count", self.pause_count, f"below {MAX_PAUSES}")
        self.pause_count += 1
        self._update_executing()

    def unpause(self) -> None:
        """Undo one `pause`; the first makes a created domain live. InvalidArgument when it is not paused."""
        if not self.pause_count:
            raise InvalidArgument("pause count", 0, "a paused domain")
        self.pause_count -= 1
        if self.life is Life.CREATED:
            self.life = next_life(self.domid, self.life, LifeEvent.START)
        self._update_executing()

    def _update_executing(self) -> None:
        executing = self.life is Life.ALIVE and not self.pause_count
        if executing == self.executing:
            return
        self.executing = executing
        if not executing:
            self.machine.host.stop(self)
            return
        for vcpu in self.vcpus:
            if vcpu.runnable:
                self.machine.host.kick(vcpu)

    # Shutting down and dying

    def shutdown(self, reason: int) -> None:
        """It stops by itself, for a reason (SHUTDOWN_*); its memory stays. A second one changes nothing."""
        if self.life not in (Life.CREATED, Life.ALIVE):
            return
        self.life = next_life(self.domid, self.life, LifeEvent.SHUTDOWN)
        self.shutdown_reason = reason if self.shutdown_code is None else self.shutdown_code
        self.stopped = True
        self._cancel_timers()
        self._update_executing()
        self.machine.host.stop(self)
        self.machine.raise_global_virq(VIRQ_DOM_EXC)

    def crash(self) -> None:
        """Something in it, or done by it, cannot go on."""
        self.shutdown(SHUTDOWN_crash)

    def resume(self) -> None:
        """Go on after a suspend. WrongLife if it is not shut down."""
        self.life = next_life(self.domid, self.life, LifeEvent.RESUME)
        self.shutdown_reason = self.shutdown_code = None
        self.stopped = False
        self._update_executing()

    def kill(self, budget: int) -> bool:
        """Tear it down, `budget` steps for each kind of resource now; True when all is given up. Call
        again until then.

        The order is Xen's: event channels, then what it has mapped of others, then its own frames. Frames
        that peers refer to stay, and the domain with them, until they are released.
        """
        if self.life in (Life.DEAD, Life.GONE):
            return True
        if self.life is not Life.DYING:
            self.life = next_life(self.domid, self.life, LifeEvent.KILL)
            self.is_dying = self.stopped = True
            if self.moves is not None:
                self.moves.end()
            self._cancel_timers()
            for vcpu in self.vcpus:
                vcpu.release_info()
            self._update_executing()
            self.machine.host.stop(self)
        done = (
            self.events.relinquish(budget)
            and self.grants.relinquish(budget)
            and self.memory.relinquish(budget)
            and self.reservation.relinquish(budget)
        )
        if done:
            self.life = next_life(self.domid, self.life, LifeEvent.RELINQUISHED)
            self.machine.raise_global_virq(VIRQ_DOM_EXC)
            self._drained()
            self.machine.bury()
        return done

    def let_go(self) -> None:
        """It is gone: drop the views of its memory, so that this goes with its extents and waits for no
        garbage collection. Whatever is still written by them goes nowhere.
        """
        self.shared_info = memoryview(bytearray(PAGE_SIZE))
        for vcpu in self.vcpus:
            vcpu.place_info(memoryview(bytearray(VCPU_INFO_SIZE)), None)
        self.grants.let_go()
        if self.ledger is not None:
            self.ledger.close()

    def _cancel_timers(self) -> None:
        self.watchdogs.cancel_all()
        for vcpu in self.vcpus:
            vcpu.timers.cancel_all()

    def _drained(self) -> None:
        """No ordinary frame of it is in use any more: when it is dead, the machine may bury it."""
        if self.life is Life.DEAD and not self.reservation.tot_pages:
            self.machine.graveyard.append(self)


_SHOWN: Final = {
    Life.CREATED: Status.CREATED,
    Life.SHUT_DOWN: Status.SHUT_DOWN,
    Life.DYING: Status.DYING,
    Life.DEAD: Status.DEAD,
    Life.GONE: Status.DEAD,
}
