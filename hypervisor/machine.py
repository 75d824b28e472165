"""The machine: all domains, all frames, and the one entry of every hypercall."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF, VIRQ_DOM_EXC
from hypervisor.audit import audit
from hypervisor.continuation import Continuation
from hypervisor.credit import CreditScheduler
from hypervisor.domain import Domain, Traits
from hypervisor.errors import AlreadyExists, NoSuchDomain, OutOfMemory
from hypervisor.extent import PAGE_SHIFT
from hypervisor.frames import FrameTable
from hypervisor.hypercalls import dispatch
from hypervisor.lifecycle import Life, LifeEvent, next_life
from hypervisor.timers import TimerQueue

if TYPE_CHECKING:
    from hypervisor.host import Host
    from hypervisor.vcpu.state import Vcpu

FAULTS_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception that no handler should raise. It has cost `domid` its life, and nobody else anything."""

    domid: int
    vcpu_id: int
    hypercall: str
    args: tuple[int, ...]
    traceback: str


class Machine:
    """`memory_bytes`: how much machine memory all domains together may use; the host's RAM is used as it
    is touched. `pcpus`: on how many processors native domains run, as `scheduler` says.
    """

    def __init__(self, host: Host, memory_bytes: int, pcpus: int = 1) -> None:
        self.host = host
        self.scheduler = CreditScheduler(pcpus, host.now_ns())
        self.frames = FrameTable(memory_bytes >> PAGE_SHIFT)
        self.timers = TimerQueue(host)
        self.domains: dict[int, Domain] = {}
        self.graveyard: list[
            Domain
        ] = []  # dead, and no peer refers to them: to be buried when the hypercall has returned
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self._last_domid = 0

    # Domains

    def create_domain(
        self, traits: Traits, *, domid: int | None = None, privileged: bool = False, max_pages: int = 0
    ) -> Domain:
        """A new domain, paused, without vCPUs and memory. The first one is dom0; the others take the next
        free id unless one is asked for. AlreadyExists, OutOfMemory.
        """
        if domid is None:
            domid = self._next_domid() if self.domains else 0
        elif domid in self.domains or not 0 <= domid < DOMID_FIRST_RESERVED:
            raise AlreadyExists(f"domain {domid}")
        domain = Domain(self, domid, traits, privileged=privileged, max_pages=max_pages)
        self.domains[domid] = domain
        return domain

    def _next_domid(self) -> int:
        """Ids are not used again soon, as in Xen: a stale id names nobody for a long time."""
        for _ in range(DOMID_FIRST_RESERVED - 1):
            self._last_domid = self._last_domid % (DOMID_FIRST_RESERVED - 1) + 1
            if self._last_domid not in self.domains:
                return self._last_domid
        raise OutOfMemory("domids", 1, 0)

    def domain(self, domid: int) -> Domain:
        """The domain with this id, a dying one included. NoSuchDomain."""
        domain = self.domains.get(domid)
        if domain is None:
            raise NoSuchDomain(domid)
        return domain

    def resolve(self, caller: Domain, domid: int) -> Domain:
        """The same, where DOMID_SELF means the caller."""
        return caller if domid == DOMID_SELF else self.domain(domid)

    def raise_global_virq(self, virq: int) -> None:
        """An event for dom0 that concerns the machine."""
        dom0 = self.domains.get(0)
        if dom0 is not None and not dom0.is_dying:
            dom0.events.raise_virq(virq)

    # Execution

    def hypercall(self, vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int | Continuation:
        """What a vCPU executes when its guest makes a hypercall: the result (negative errno on failure),
        or a Continuation to be called with next. Raises nothing, whatever the guest passes.
        """
        result = dispatch(vcpu, number, args)
        if self.graveyard:
            self.bury()
        return result

    def expire_timers(self) -> int:
        """Let the timers act that are due at host.now_ns(); how many did."""
        return self.timers.expire(self.host.now_ns())

    def bury(self) -> None:
        """Let go of the dead that nobody refers to: their special frames are freed, their domids may be
        used again.
        """
        while self.graveyard:
            domain = self.graveyard.pop()
            if domain.life is Life.GONE:
                continue
            domain.reservation.give_up_special()
            if not domain.reservation.special_pages:
                domain.life = next_life(domain.domid, domain.life, LifeEvent.UNREFERENCED)
                del self.domains[domain.domid]
                domain.reservation.close()
                domain.let_go()
                self.raise_global_virq(VIRQ_DOM_EXC)

    def audit(self) -> list[str]:
        """Recount everything from first principles; what does not agree, in words. Empty when all is well."""
        return audit(self)

    def record_fault(self, vcpu: Vcpu, hypercall: str, args: tuple[int, ...], traceback: str) -> None:
        """Remember an exception that left a handler; the last 256 are kept."""
        self.faults.append(Fault(vcpu.domain.domid, vcpu.id, hypercall, tuple(args), traceback))
