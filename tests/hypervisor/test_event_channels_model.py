"""Event channels of three domains against a simple model: results, bits, upcalls, wake-ups, death."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.abi.errno import XEN_EEXIST, XEN_EINVAL, XEN_ENOENT, XEN_ENOSPC, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_close,
    evtchn_reset,
    evtchn_send,
    evtchn_status,
    evtchn_unmask,
)
from hypervisor.abi.sched import SCHEDOP_block, SCHEDOP_poll, sched_poll
from hypervisor.abi.xen import (
    DOMID_SELF,
    NR_VIRQS,
    VIRQ_CONSOLE,
    VIRQ_DOM_EXC,
    VIRQ_TIMER,
    shared_info,
)
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.abi.xen import __HYPERVISOR_sched_op as SCHED_OP
from hypervisor.event_channels import EventChannels
from tests.hypervisor.fakes import Guest, new_machine

VCPUS = 2
MAX_PORT = 70
POLL_ARRAY = 0x800

PENDING = shared_info.offsets["evtchn_pending"]
MASK = shared_info.offsets["evtchn_mask"]


@dataclass
class ModelChannel:
    """A port in use. `other`: the domid an unbound one awaits, (domid, port) of the other end, or a VIRQ."""

    status: int
    vcpu: int = 0
    other: object = None


@dataclass
class ModelDomain:
    channels: dict[int, ModelChannel] = field(default_factory=dict)
    valid: int = 64
    pending: set[int] = field(default_factory=set)
    masked: set[int] = field(default_factory=set)
    selected: list[set[int]] = field(default_factory=lambda: [set() for _ in range(VCPUS)])
    upcall: list[bool] = field(default_factory=lambda: [False] * VCPUS)
    blocked: list[bool] = field(default_factory=lambda: [False] * VCPUS)
    polling: dict[int, int] = field(default_factory=dict)

    def virq_port(self, virq: int, vcpu: int) -> int | None:
        per_vcpu = virq in (0, 1, 7, 13)
        for port, channel in self.channels.items():
            here = channel.vcpu == vcpu or not per_vcpu
            if channel.status == EVTCHNSTAT_virq and channel.other == virq and here:
                return port
        return None

    def free_port(self) -> int | None:
        port = next(port for port in range(1, MAX_PORT + 2) if port not in self.channels)
        if port > MAX_PORT:
            return None
        if port >= self.valid:
            self.valid += 64
        return port

    def unblock(self, vcpu: int) -> None:
        self.blocked[vcpu] = False
        self.polling.pop(vcpu, None)

    def set_pending(self, port: int) -> None:
        if port in self.pending:
            return
        self.pending.add(port)
        if port not in self.masked:
            self.select(port)
        for vcpu, wanted in list(self.polling.items()):
            if wanted in (-1, port):
                self.unblock(vcpu)

    def select(self, port: int) -> None:
        vcpu = self.channels[port].vcpu
        if port // 64 not in self.selected[vcpu]:
            self.selected[vcpu].add(port // 64)
            if not self.upcall[vcpu]:
                self.upcall[vcpu] = True
                self.unblock(vcpu)


which = st.integers(0, 2)
vcpus = st.sampled_from([0, 0, 1, 1, VCPUS, 2**32 - 1])
used = st.integers(0, 7).map(
    lambda index: -1 - index
)  # that port of those in use: most of what we want to try
edges = st.sampled_from([0, 1, 2, 62, 63, 64, 65, 70, 71, 127, 128, 4095, 4096, 2**32 - 1])
ports = st.one_of(used, used, used, edges)
virqs = st.sampled_from([VIRQ_TIMER, VIRQ_CONSOLE, VIRQ_DOM_EXC, 5, NR_VIRQS - 1, NR_VIRQS, 2**31, 2**32 - 1])


class EventChannelMachine(RuleBasedStateMachine):
    @initialize()
    def build(self) -> None:
        self.machine, self.host = new_machine()
        self.guests = [self.new_guest() for _ in range(3)]
        self.model = {guest.domid: ModelDomain() for guest in self.guests}
        for by, remote in [(0, 1), (1, 2), (2, 2), (1, 0)]:
            self.connect(by, remote)
        for guest in range(3):
            self.bind_virq(guest, VIRQ_TIMER, 1)
            self.bind_virq(guest, VIRQ_DOM_EXC, 0)
            self.take_events(guest, 0)

    def pick(self, domid: int, port: int) -> int:
        """Ports below 0 stand for those in use."""
        used = sorted(self.model[domid].channels)
        return port if port >= 0 else used[-port % len(used)] if used else -port

    def new_guest(self) -> Guest:
        return Guest(self.machine, vcpus=VCPUS, max_event_port=MAX_PORT)

    def operate(self, guest: Guest, operation: int, argument, vcpu: int = 0):
        return guest.operate(EVENT_CHANNEL_OP, operation, argument, vcpu=vcpu)

    def resolve(self, caller: Guest, domid: int) -> int:
        return caller.domid if domid == DOMID_SELF else domid

    def domid(self, caller: Guest, index: int, as_self: bool) -> int:
        domid = self.guests[index].domid
        return DOMID_SELF if as_self and domid == caller.domid else domid

    # ---- binding

    @rule(by=which, at=which, remote=which, as_self=st.booleans())
    def alloc_unbound(self, by: int, at: int, remote: int, as_self: bool) -> None:
        guest = self.guests[by]
        dom, remote_dom = self.domid(guest, at, as_self), self.domid(guest, remote, as_self)
        result, answer = self.operate(
            guest, EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=dom, remote_dom=remote_dom)
        )
        target = self.model[self.resolve(guest, dom)]
        if guest.domid != self.resolve(guest, dom) and not guest.domain.privileged:
            assert result == -XEN_EPERM
            return
        port = target.free_port()
        if port is None:
            assert result == -XEN_ENOSPC
            return
        assert (result, answer.port) == (0, port)
        target.channels[port] = ModelChannel(EVTCHNSTAT_unbound, other=self.resolve(guest, remote_dom))

    @rule(by=which)
    def fill(self, by: int) -> None:
        """Take all ports but a few, so that both the second bucket and the end of the table are met."""
        guest = self.guests[by]
        while len(self.model[guest.domid].channels) < MAX_PORT - 2:
            self.alloc_unbound(by, by, by, as_self=True)

    @rule(by=which, remote=which, port=ports, as_self=st.booleans())
    def bind_interdomain(self, by: int, remote: int, port: int, as_self: bool) -> None:
        guest = self.guests[by]
        dom = self.domid(guest, remote, as_self)
        port = self.pick(self.resolve(guest, dom), port)
        result, answer = self.operate(
            guest, EVTCHNOP_bind_interdomain, evtchn_bind_interdomain(remote_dom=dom, remote_port=port)
        )
        mine, theirs = self.model[guest.domid], self.model[self.resolve(guest, dom)]
        local = mine.free_port()
        peer = theirs.channels.get(port)
        if local is None:
            assert result == -XEN_ENOSPC
        elif peer is None or peer.status != EVTCHNSTAT_unbound or peer.other != guest.domid:
            assert result == -XEN_EINVAL
        else:
            assert (result, answer.local_port) == (0, local)
            peer.status, peer.other = EVTCHNSTAT_interdomain, (guest.domid, local)
            other = (self.resolve(guest, dom), port)
            mine.channels[local] = ModelChannel(EVTCHNSTAT_interdomain, other=other)
            mine.set_pending(local)

    @rule(by=which, remote=which)
    def connect(self, by: int, remote: int) -> None:
        """A channel between two domains, as drivers make one, its first event taken."""
        guest, peer = self.guests[by], self.guests[remote]
        if self.model[guest.domid].free_port() is None or self.model[peer.domid].free_port() is None:
            return
        port = self.model[peer.domid].free_port()
        self.alloc_unbound(remote, remote, by, as_self=False)
        self.bind_interdomain(by, remote, port, as_self=False)
        self.take_events(by, 0)

    @rule(by=which, virq=virqs, vcpu=vcpus)
    def bind_virq(self, by: int, virq: int, vcpu: int) -> None:
        guest = self.guests[by]
        result, answer = self.operate(guest, EVTCHNOP_bind_virq, evtchn_bind_virq(virq=virq, vcpu=vcpu))
        mine = self.model[guest.domid]
        if virq >= NR_VIRQS or (virq != VIRQ_TIMER and vcpu != 0):
            assert result == -XEN_EINVAL
        elif vcpu >= VCPUS:
            assert result == -XEN_ENOENT
        elif mine.virq_port(virq, vcpu) is not None:
            assert result == -XEN_EEXIST
        else:
            port = mine.free_port()
            if port is None:
                assert result == -XEN_ENOSPC
                return
            assert (result, answer.port) == (0, port)
            mine.channels[port] = ModelChannel(EVTCHNSTAT_virq, vcpu, virq)

    @rule(by=which, vcpu=vcpus)
    def bind_ipi(self, by: int, vcpu: int) -> None:
        guest = self.guests[by]
        result, answer = self.operate(guest, EVTCHNOP_bind_ipi, evtchn_bind_ipi(vcpu=vcpu))
        mine = self.model[guest.domid]
        if vcpu >= VCPUS:
            assert result == -XEN_ENOENT
            return
        port = mine.free_port()
        if port is None:
            assert result == -XEN_ENOSPC
            return
        assert (result, answer.port) == (0, port)
        mine.channels[port] = ModelChannel(EVTCHNSTAT_ipi, vcpu)

    @rule(by=which, port=ports, vcpu=vcpus)
    def bind_vcpu(self, by: int, port: int, vcpu: int) -> None:
        guest = self.guests[by]
        port = self.pick(guest.domid, port)
        result, _ = self.operate(guest, EVTCHNOP_bind_vcpu, evtchn_bind_vcpu(port=port, vcpu=vcpu))
        channel = self.model[guest.domid].channels.get(port)
        if vcpu >= VCPUS:
            assert result == -XEN_ENOENT
        elif (
            channel is None
            or channel.status == EVTCHNSTAT_ipi
            or (channel.status == EVTCHNSTAT_virq and channel.other == VIRQ_TIMER)
        ):
            assert result == -XEN_EINVAL
        else:
            assert result == 0
            channel.vcpu = vcpu

    # ---- events

    @rule(by=which, port=ports)
    def send(self, by: int, port: int) -> None:
        guest = self.guests[by]
        port = self.pick(guest.domid, port)
        result, _ = self.operate(guest, EVTCHNOP_send, evtchn_send(port=port))
        channel = self.model[guest.domid].channels.get(port)
        if channel is None or channel.status == EVTCHNSTAT_virq:
            assert result == -XEN_EINVAL
            return
        assert result == 0
        if channel.status == EVTCHNSTAT_ipi:
            self.model[guest.domid].set_pending(port)
        elif channel.status == EVTCHNSTAT_interdomain:
            domid, remote_port = channel.other
            self.model[domid].set_pending(remote_port)

    @rule(at=which, ports=st.lists(used, min_size=1, max_size=4))
    def notify(self, at: int, ports: list[int]) -> None:
        """Let events come to some ports in use, whatever it is that sends to them."""
        mine = self.model[self.guests[at].domid]
        for port in [self.pick(self.guests[at].domid, port) for port in ports if mine.channels]:
            channel = mine.channels[port]
            if channel.status == EVTCHNSTAT_interdomain:
                domid, remote_port = channel.other
                sender = next(index for index, guest in enumerate(self.guests) if guest.domid == domid)
                self.send(sender, remote_port)
            elif channel.status == EVTCHNSTAT_virq:
                self.raise_virq(at, channel.other, channel.vcpu)
            else:
                self.send(at, port)

    @rule(at=which, virq=virqs, vcpu=st.integers(0, VCPUS - 1))
    def raise_virq(self, at: int, virq: int, vcpu: int) -> None:
        guest = self.guests[at]
        vcpu = vcpu if virq == VIRQ_TIMER else 0  # whoever raises a global VIRQ names no other
        guest.domain.events.raise_virq(virq, vcpu)
        port = self.model[guest.domid].virq_port(virq, vcpu)
        if port is not None:
            self.model[guest.domid].set_pending(port)

    @rule(by=which, port=ports)
    def unmask(self, by: int, port: int) -> None:
        guest = self.guests[by]
        port = self.pick(guest.domid, port)
        result, _ = self.operate(guest, EVTCHNOP_unmask, evtchn_unmask(port=port))
        mine = self.model[guest.domid]
        if port >= mine.valid:
            assert result == -XEN_EINVAL
            return
        assert result == 0
        if port in mine.channels and port in mine.masked:
            mine.masked.discard(port)
            if port in mine.pending:
                mine.select(port)

    @rule(by=which, ports=st.lists(st.one_of(used, used, st.integers(1, MAX_PORT)), min_size=1, max_size=4))
    def mask(self, by: int, ports: list[int]) -> None:
        guest = self.guests[by]
        words = guest.domain.shared_info[MASK : MASK + 512].cast("Q")
        for port in [self.pick(guest.domid, port) for port in ports]:
            words[port // 64] |= 1 << port % 64
            self.model[guest.domid].masked.add(port)

    @rule(by=which, vcpu=st.integers(0, VCPUS - 1))
    def take_events(self, by: int, vcpu: int) -> None:
        """The guest's upcall handler: upcall flag, selector, then the pending bits of selected words."""
        guest, mine = self.guests[by], self.model[self.guests[by].domid]
        info = guest.domain.vcpus[vcpu]
        info.info[0] = 0
        selector, info.info_words[1] = info.info_words[1], 0
        assert selector == sum(1 << word for word in mine.selected[vcpu])
        pending = guest.domain.shared_info[PENDING : PENDING + 512].cast("Q")
        masked = guest.domain.shared_info[MASK : MASK + 512].cast("Q")
        for word in mine.selected[vcpu]:
            pending[word] &= masked[word]
        mine.upcall[vcpu] = False
        mine.pending -= {p for p in mine.pending if p // 64 in mine.selected[vcpu] and p not in mine.masked}
        mine.selected[vcpu] = set()

    @rule(by=which, vcpu=st.integers(0, VCPUS - 1))
    def begin_to_take_events(self, by: int, vcpu: int) -> None:
        """An upcall handler that has come no further than its first store."""
        guest = self.guests[by]
        guest.domain.vcpus[vcpu].info[0] = 0
        self.model[guest.domid].upcall[vcpu] = False

    # ---- blocking

    @rule(by=which, vcpu=st.integers(0, VCPUS - 1))
    def block(self, by: int, vcpu: int) -> None:
        guest, mine = self.guests[by], self.model[self.guests[by].domid]
        if mine.blocked[vcpu]:
            return
        assert guest.hypercall(SCHED_OP, SCHEDOP_block, 0, vcpu=vcpu) == 0
        mine.blocked[vcpu] = not mine.upcall[vcpu]

    @rule(by=which, vcpu=st.integers(0, VCPUS - 1), wanted=st.lists(ports, max_size=3))
    def poll(self, by: int, vcpu: int, wanted: list[int]) -> None:
        guest, mine = self.guests[by], self.model[self.guests[by].domid]
        if mine.blocked[vcpu]:
            return
        wanted = [self.pick(guest.domid, port) for port in wanted]
        for index, port in enumerate(wanted):
            guest.domain.memory.write_u32(POLL_ARRAY + 4 * index, port)
        argument = sched_poll(ports=POLL_ARRAY, nr_ports=len(wanted))
        result, _ = guest.operate(SCHED_OP, SCHEDOP_poll, argument, vcpu=vcpu)
        if mine.upcall[vcpu]:
            assert result == 0
            return
        for port in wanted:
            if port not in mine.channels:
                assert result == -XEN_EINVAL
                return
            if port in mine.pending:
                assert result == 0
                return
        assert result == 0
        mine.blocked[vcpu] = True
        mine.polling[vcpu] = wanted[0] if len(wanted) == 1 else -1

    # ---- closing

    def model_close(self, domid: int, port: int) -> None:
        mine = self.model[domid]
        channel = mine.channels.pop(port)
        mine.pending.discard(port)
        if channel.status == EVTCHNSTAT_interdomain:
            other, other_port = channel.other
            peer = self.model[other].channels.get(other_port)
            if peer is not None:
                peer.status, peer.other = EVTCHNSTAT_unbound, domid

    @rule(by=which, port=ports)
    def close(self, by: int, port: int) -> None:
        guest = self.guests[by]
        port = self.pick(guest.domid, port)
        result, _ = self.operate(guest, EVTCHNOP_close, evtchn_close(port=port))
        if port not in self.model[guest.domid].channels:
            assert result == -XEN_EINVAL
            return
        assert result == 0
        self.model_close(guest.domid, port)

    @precondition(lambda self: len(self.model[0].channels) > 8)
    @rule(by=which, at=which, paused=st.booleans())
    def reset(self, by: int, at: int, paused: bool) -> None:
        guest, target = self.guests[by], self.guests[at]
        if paused:
            target.domain.pause()
        result, _ = self.operate(guest, EVTCHNOP_reset, evtchn_reset(dom=target.domid))
        if paused:
            target.domain.unpause()
        if guest is not target and not guest.domain.privileged:
            assert result == -XEN_EPERM
        elif guest is not target and not paused:
            assert result == -XEN_EINVAL
        else:
            assert result == 0
            for port in sorted(self.model[target.domid].channels):
                self.model_close(target.domid, port)

    @precondition(lambda self: sum(len(mine.channels) for mine in self.model.values()) > 20)
    @rule(at=st.integers(1, 2), budget=st.integers(1, 100))
    def die(self, at: int, budget: int) -> None:
        """A domain dies, in slices; its peers' ends become unbound. Another takes its place."""
        guest = self.guests[at]
        dom0 = self.guests[0]
        guest.destroy(budget)
        for port in sorted(self.model[guest.domid].channels):
            self.model_close(guest.domid, port)
        port = self.model[0].virq_port(VIRQ_DOM_EXC, 0)
        if port is not None:
            self.model[0].set_pending(port)
        self.machine.bury()
        if port is not None:
            self.model[0].set_pending(port)
        result, _ = self.operate(dom0, EVTCHNOP_status, evtchn_status(dom=guest.domid, port=1))
        assert result == -XEN_ESRCH
        del self.model[guest.domid]
        self.guests[at] = self.new_guest()
        self.model[self.guests[at].domid] = ModelDomain()

    # ---- what must always hold

    @invariant()
    def recount(self) -> None:
        for guest in getattr(self, "guests", []):
            events: EventChannels = guest.domain.events
            assert events.audit() == []
            assert not self.machine.faults

    @invariant()
    def bits_agree(self) -> None:
        for guest in getattr(self, "guests", []):
            mine, page = self.model[guest.domid], guest.domain.shared_info
            assert bits(page[PENDING : PENDING + 512]) == sorted(mine.pending)
            assert bits(page[MASK : MASK + 512]) == sorted(mine.masked)
            for vcpu in guest.domain.vcpus:
                assert bits(vcpu.info[8:16]) == sorted(mine.selected[vcpu.id])
                assert vcpu.upcall_pending == mine.upcall[vcpu.id]
                assert vcpu.blocked == mine.blocked[vcpu.id]
                assert vcpu.poll_port == mine.polling.get(vcpu.id)

    @rule(by=which, at=which, port=ports)
    def status(self, by: int, at: int, port: int) -> None:
        guest, target = self.guests[by], self.guests[at]
        self.check_status(guest, target.domid, self.pick(target.domid, port))

    def check_status(self, guest: Guest, domid: int, port: int) -> None:
        mine = self.model[domid]
        result, answer = self.operate(guest, EVTCHNOP_status, evtchn_status(dom=domid, port=port))
        if guest.domid != domid and not guest.domain.privileged:
            assert result == -XEN_EPERM
            return
        if port >= mine.valid:
            assert result == -XEN_EINVAL
            return
        assert result == 0
        channel = mine.channels.get(port, ModelChannel(EVTCHNSTAT_closed))
        assert (answer.status, answer.vcpu) == (channel.status, channel.vcpu)
        if channel.status == EVTCHNSTAT_unbound:
            assert answer.u.unbound.dom == channel.other
        elif channel.status == EVTCHNSTAT_interdomain:
            assert (answer.u.interdomain.dom, answer.u.interdomain.port) == channel.other
        elif channel.status == EVTCHNSTAT_virq:
            assert answer.u.virq == channel.other

    def teardown(self) -> None:
        for domid in getattr(self, "model", {}):
            for port in range(MAX_PORT + 2):
                self.check_status(self.guests[0], domid, port)


def bits(data: memoryview) -> list[int]:
    """The numbers of the bits that are set."""
    value, found = int.from_bytes(data, "little"), []
    while value:
        found.append((value & -value).bit_length() - 1)
        value &= value - 1
    return found


TestEventChannels = EventChannelMachine.TestCase
TestEventChannels.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
