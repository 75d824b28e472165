"""A guest that calls every hypercall with whatever comes to mind, a hundred thousand times.

Nothing leaves the core, nobody else's memory changes, no fault of ours is found, every count is right
afterwards and the machine still works. The structs are well placed and half-sensible, so that the calls get
past the first check.
"""

from contextlib import suppress
from hashlib import sha256
from random import Random
from typing import Final

import pytest

from hypervisor.abi import domctl as domctl_abi
from hypervisor.abi import event_channel, grant_table, hvm_op, memory, sched, sysctl, vcpu, version, xen
from hypervisor.abi.layout import Struct, Union
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_console_io as CONSOLE_IO
from hypervisor.abi.xen import __HYPERVISOR_domctl as DOMCTL
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.abi.xen import __HYPERVISOR_grant_table_op as GRANT_TABLE_OP
from hypervisor.abi.xen import __HYPERVISOR_hvm_op as HVM_OP
from hypervisor.abi.xen import __HYPERVISOR_memory_op as MEMORY_OP
from hypervisor.abi.xen import __HYPERVISOR_multicall as MULTICALL
from hypervisor.abi.xen import __HYPERVISOR_sched_op as SCHED_OP
from hypervisor.abi.xen import __HYPERVISOR_set_timer_op as SET_TIMER_OP
from hypervisor.abi.xen import __HYPERVISOR_sysctl as SYSCTL
from hypervisor.abi.xen import __HYPERVISOR_vcpu_op as VCPU_OP
from hypervisor.abi.xen import __HYPERVISOR_xen_version as XEN_VERSION
from hypervisor.continuation import Continuation
from hypervisor.errors import GuestFault
from hypervisor.extent import PAGE_SIZE
from hypervisor.machine import Machine
from hypervisor.pv.layout import ARGUMENT_MFN, FOREIGN_FIRST, GRANT_TABLE_FIRST, MFN_END, RAM_FIRST
from hypervisor.pv.ledger import map_ledger
from tests.hypervisor.fakes import FakeHost, Guest, new_machine
from tests.hypervisor.native_guest import NativeGuest

CALLS: Final = 100_000
PAGES: Final = 48
SCRATCH_PAGES: Final = 8
"""the attacker's pages in which arguments are put"""
SLICES_ALLOWED: Final = 5_000
LENT_READ_ONLY, LENT_WRITABLE = 3, 4
"""pages that the victim has granted to everybody, at grant references of the same number plus 10"""

STRUCTS: Final[dict[int, dict[int, type[Struct]]]] = {
    MEMORY_OP: {
        memory.XENMEM_increase_reservation: memory.xen_memory_reservation,
        memory.XENMEM_decrease_reservation: memory.xen_memory_reservation,
        memory.XENMEM_populate_physmap: memory.xen_memory_reservation,
        memory.XENMEM_current_reservation: memory.xen_memory_domain,
        memory.XENMEM_maximum_reservation: memory.xen_memory_domain,
        memory.XENMEM_maximum_gpfn: memory.xen_memory_domain,
        memory.XENMEM_add_to_physmap: memory.xen_add_to_physmap,
        memory.XENMEM_add_to_physmap_batch: memory.xen_add_to_physmap_batch,
        memory.XENMEM_remove_from_physmap: memory.xen_remove_from_physmap,
    },
    EVENT_CHANNEL_OP: {
        event_channel.EVTCHNOP_alloc_unbound: event_channel.evtchn_alloc_unbound,
        event_channel.EVTCHNOP_bind_interdomain: event_channel.evtchn_bind_interdomain,
        event_channel.EVTCHNOP_bind_virq: event_channel.evtchn_bind_virq,
        event_channel.EVTCHNOP_bind_ipi: event_channel.evtchn_bind_ipi,
        event_channel.EVTCHNOP_bind_vcpu: event_channel.evtchn_bind_vcpu,
        event_channel.EVTCHNOP_close: event_channel.evtchn_close,
        event_channel.EVTCHNOP_send: event_channel.evtchn_send,
        event_channel.EVTCHNOP_status: event_channel.evtchn_status,
        event_channel.EVTCHNOP_unmask: event_channel.evtchn_unmask,
        event_channel.EVTCHNOP_reset: event_channel.evtchn_reset,
    },
    GRANT_TABLE_OP: {
        grant_table.GNTTABOP_map_grant_ref: grant_table.gnttab_map_grant_ref,
        grant_table.GNTTABOP_unmap_grant_ref: grant_table.gnttab_unmap_grant_ref,
        grant_table.GNTTABOP_setup_table: grant_table.gnttab_setup_table,
        grant_table.GNTTABOP_copy: grant_table.gnttab_copy,
        grant_table.GNTTABOP_query_size: grant_table.gnttab_query_size,
        grant_table.GNTTABOP_set_version: grant_table.gnttab_set_version,
        grant_table.GNTTABOP_get_version: grant_table.gnttab_get_version,
    },
    SCHED_OP: {
        sched.SCHEDOP_poll: sched.sched_poll,
        sched.SCHEDOP_shutdown: sched.sched_shutdown,
        sched.SCHEDOP_remote_shutdown: sched.sched_remote_shutdown,
        sched.SCHEDOP_watchdog: sched.sched_watchdog,
    },
    VCPU_OP: {
        vcpu.VCPUOP_set_singleshot_timer: vcpu.vcpu_set_singleshot_timer,
        vcpu.VCPUOP_set_periodic_timer: vcpu.vcpu_set_periodic_timer,
        vcpu.VCPUOP_register_vcpu_info: vcpu.vcpu_register_vcpu_info,
    },
    HVM_OP: {hvm_op.HVMOP_set_param: hvm_op.xen_hvm_param, hvm_op.HVMOP_get_param: hvm_op.xen_hvm_param},
    XEN_VERSION: {
        version.XENVER_get_features: version.xen_feature_info,
        version.XENVER_build_id: version.xen_build_id,
    },
    MULTICALL: {0: xen.multicall_entry},
    CONSOLE_IO: {},
    SET_TIMER_OP: {},
    DOMCTL: {0: domctl_abi.xen_domctl},
    SYSCTL: {0: sysctl.xen_sysctl},
}
"""which struct an operation takes"""

NUMBERS: Final = list(STRUCTS)
EDGES: Final = (0, 1, 2, 7, 8, 31, 32, 63, 64, 4095, 4096, 0x7FF0, DOMID_SELF, 0x7FF1, 0x7FF2, 0x7FF4, 0xFFFF)
"""small numbers, sizes of tables, special domids"""


class Attacker:
    """Makes up hypercalls for one vCPU at a time."""

    def __init__(self, machine: Machine, host: FakeHost, random: Random) -> None:
        self.machine = machine
        self.host = host
        self.random = random

    def field(self, name: str, bits: int) -> int:
        """A value for a field of that name: mostly one that could be meant, else an edge or noise."""
        random = self.random
        if random.random() < 0.85:
            if "dom" in name:
                return random.choice((DOMID_SELF, DOMID_SELF, *self.machine.domains))
            if name in ("ref", "port", "local_port", "remote_port", "handle"):
                return random.randrange(16)
            if name in ("gpfn", "gmfn", "mfn", "idx"):
                return random.randrange(PAGES + 8)
            if name == "host_addr":
                return random.randrange(PAGES, PAGES + 8) * PAGE_SIZE
            if name in ("vcpu", "space", "flags", "extent_order", "mem_flags", "cmd", "virq"):
                return random.randrange(8)
            if name in ("nr_extents", "nr_ports", "size", "len", "offset", "nr_frames"):
                return random.randrange(20)
            if bits == 64:
                return self.address()
        return self.word(bits)

    def word(self, bits: int) -> int:
        """A number that may mean something to somebody: an address, a gpfn, a port, an edge, noise."""
        random = self.random
        kind = random.random()
        if kind < 0.35:
            value = random.randrange(16)
        elif kind < 0.55:
            value = random.choice(EDGES)
        elif kind < 0.85:
            value = self.address()
        elif kind < 0.93:
            value = random.randrange(PAGES + 8)
        else:
            value = random.getrandbits(64)
        return value & ((1 << bits) - 1)

    def address(self) -> int:
        """Mostly in the scratch pages and aligned; at their edges; nowhere."""
        random = self.random
        kind = random.random()
        if kind < 0.8:
            return random.randrange(SCRATCH_PAGES * PAGE_SIZE // 64) * 64
        if kind < 0.9:
            return random.randrange(1, PAGES) * PAGE_SIZE - random.randrange(1, 24)
        return random.choice(
            (PAGES * PAGE_SIZE - 4, PAGES * PAGE_SIZE, 1 << 44, (1 << 64) - 8, random.getrandbits(64))
        )

    def struct(self, cls: type[Struct]) -> bytes:
        """One of `cls`, made up field by field; interface versions are mostly right."""
        if self.random.random() < 0.05:
            return self.random.randbytes(cls.size)
        value = cls.unpack(bytes(cls.size))
        self.make_up(value)
        if self.random.random() < 0.95:
            if isinstance(value, domctl_abi.xen_domctl):
                value.interface_version = domctl_abi.XEN_DOMCTL_INTERFACE_VERSION
            elif isinstance(value, sysctl.xen_sysctl):
                value.interface_version = sysctl.XEN_SYSCTL_INTERFACE_VERSION
            elif isinstance(value, xen.multicall_entry):
                value.op = self.random.choice(NUMBERS)
                value.args = (*self.arguments(value.op, self.address()), 0, 0, 0, 0, 0, 0)[:6]
        return value.pack()

    def make_up(self, value: Struct | Union) -> None:
        """Fill in the scalars, one alternative of a union, and what is nested."""
        fields = list(value.layout_.fields)
        for field in [self.random.choice(fields)] if isinstance(value, Union) else fields:
            old = getattr(value, field.attribute)
            if isinstance(old, int):
                bits = field.size * 8
                word = self.field(field.name, bits) & ((1 << bits) - 1)
                signed = field.kind.format in "bhiq"
                setattr(value, field.attribute, word - (1 << bits) if signed and word >> (bits - 1) else word)
            elif isinstance(old, Struct | Union):
                self.make_up(old)
                setattr(value, field.attribute, old)

    def call(self, guest: Guest) -> None:
        """One hypercall, with all its continuations."""
        random = self.random
        number = random.choice(NUMBERS)
        place = self.address()
        args = self.arguments(number, place)
        if random.random() < 0.9:
            structs = STRUCTS[number]
            key = 0 if list(structs) == [0] else args[0] if args else 0
            self.put(guest, place, structs.get(key))
        if random.random() < 0.02:
            number = random.choice((-1, 2, 63, 1 << 40, random.getrandbits(64)))
        vcpu = random.choice(guest.domain.vcpus)
        result = self.machine.hypercall(vcpu, number, args)
        slices = 0
        while isinstance(result, Continuation):
            slices += 1
            assert slices < SLICES_ALLOWED, "a hypercall that does not end"
            result = self.machine.hypercall(vcpu, *result)
        assert -256 < result < 1 << 63

    def put(self, guest: Guest, place: int, cls: type[Struct] | None) -> None:
        """Structs at `place`, if the guest could write there."""
        if cls is None:
            cls = {0: xen.multicall_entry, 1: domctl_abi.xen_domctl, 2: sysctl.xen_sysctl}.get(
                self.random.randrange(60)
            )
        if cls is None:
            data = b"".join(self.word(64).to_bytes(8, "little") for _ in range(self.random.randrange(8)))
        else:
            data = b"".join(self.struct(cls) for _ in range(self.random.randrange(1, 4)))
        with suppress(GuestFault):
            guest.domain.memory.write(place, data)

    def arguments(self, number: int, place: int) -> tuple[int, ...]:
        random = self.random
        if random.random() < 0.03:
            return tuple(self.word(64) for _ in range(random.randrange(7)))
        known = list(STRUCTS[number])
        operation = random.choice(known) if known and random.random() < 0.7 else random.randrange(32)
        if number == SCHED_OP and operation == sched.SCHEDOP_shutdown and random.random() < 0.97:
            operation = sched.SCHEDOP_poll  # a long life is more dangerous
        if random.random() < 0.05:
            operation |= random.getrandbits(20) << 6
        if number in (DOMCTL, SYSCTL):
            return (place,)
        if number == MULTICALL:
            return place, random.choice((1, 2, 3, 70, self.word(32)))
        if number == GRANT_TABLE_OP:
            return operation, place, random.choice((1, 1, 2, 3, self.word(32)))
        if number == VCPU_OP:
            return operation, random.choice((0, 1, self.word(32))), place
        if number == CONSOLE_IO:
            return random.randrange(3), random.choice((5, 200, self.word(32))), place
        return operation, place


def grant(victim: Guest, reference: int, domid: int, gpfn: int, flags: int) -> None:
    entry = grant_table.grant_entry_v1(flags=flags, domid=domid, frame=gpfn).pack()
    frame = victim.machine.frames.view(victim.domain.grants.shared_frame(0))
    frame[reference * 8 : reference * 8 + 8] = entry


def fill(guest: Guest, random: Random) -> None:
    for gpfn in range(PAGES):
        guest.domain.memory.write(gpfn * PAGE_SIZE, random.randbytes(PAGE_SIZE))


def digest(guest: Guest) -> str:
    """All of its RAM but what it has lent for writing."""
    memory = guest.domain.memory
    pages = (memory.read(gpfn * PAGE_SIZE, PAGE_SIZE) for gpfn in range(PAGES) if gpfn != LENT_WRITABLE)
    return sha256(b"".join(pages)).hexdigest()


def still_works(machine: Machine) -> None:
    """A domain can be made, run, and destroyed."""
    guest = Guest(machine, pages=4)
    assert guest.hypercall(XEN_VERSION, version.XENVER_version) == 4 << 16 | 17
    guest.destroy()
    assert guest.domid not in machine.domains


def new_attacker(machine: Machine, victim: Guest, random: Random) -> Guest:
    guest = Guest(machine, pages=PAGES, vcpus=2)
    fill(guest, random)
    guest.domain.reservation.max_pages = 4 * PAGES
    grant(
        victim,
        LENT_READ_ONLY + 10,
        guest.domid,
        LENT_READ_ONLY,
        grant_table.GTF_permit_access | grant_table.GTF_readonly,
    )
    grant(victim, LENT_WRITABLE + 10, guest.domid, LENT_WRITABLE, grant_table.GTF_permit_access)
    return guest


@pytest.mark.parametrize("seed", [1])
def test_a_guest_with_all_the_wrong_ideas(seed: int) -> None:
    random = Random(seed)
    machine, host = new_machine()
    dom0, victim = Guest(machine, pages=PAGES), Guest(machine, pages=PAGES)
    fill(dom0, random)
    fill(victim, random)
    untouched = (digest(dom0), digest(victim))
    attacker = Attacker(machine, host, random)
    guest = new_attacker(machine, victim, random)
    lives = 1
    for number in range(CALLS):
        attacker.call(guest)
        if guest.domain.stopped or number % 10_000 == 9_999:
            guest.destroy()
            guest = new_attacker(machine, victim, random)
            lives += 1
        if number % 100 == 0:
            host.time_ns += random.randrange(10_000_000)
            machine.expire_timers()
        if number % 5_000 == 0:
            assert machine.audit() == []
            assert (digest(dom0), digest(victim)) == untouched
    assert list(machine.faults) == []
    assert machine.audit() == []
    assert (digest(dom0), digest(victim)) == untouched
    assert dom0.domain.executing
    assert victim.domain.executing
    assert lives > 3, "it found the ways to end itself"
    guest.destroy()
    assert set(machine.domains) == {dom0.domid, victim.domid}
    still_works(machine)


class NativeAttacker(Attacker):
    """The same for a native guest, or rather for its process, once it is nobody's any more: it asks by whatever page
    table there may be. The guest's pages are where those of others are, by its virtual addresses, page tables too.
    """

    def field(self, name: str, bits: int) -> int:
        if name in ("gpfn", "gmfn", "mfn", "frame", "idx") and self.random.random() < 0.8:
            return self.frame()
        if name == "host_addr" and self.random.random() < 0.8:
            return self.random.randrange(FOREIGN_FIRST, FOREIGN_FIRST + 8) * PAGE_SIZE
        return super().field(name, bits)

    def frame(self) -> int:
        first = self.random.choice(
            (RAM_FIRST, RAM_FIRST, FOREIGN_FIRST, GRANT_TABLE_FIRST, ARGUMENT_MFN, MFN_END - 8)
        )
        return first + self.random.randrange(PAGES + 8 if first == RAM_FIRST else 8)

    def call(self, guest: Guest) -> None:
        random = self.random
        root = random.choice((*[guest.root] * 20, 0, self.frame(), random.getrandbits(64)))  # type: ignore[attr-defined]
        for each in guest.domain.vcpus:
            each.root = root
        if random.random() < 0.1:  # what it has written over its page tables leads nowhere soon
            guest.restore_tables()  # type: ignore[attr-defined]
        super().call(guest)

    def put(self, guest: Guest, place: int, cls: type[Struct] | None) -> None:
        by_frame, guest.domain.memory = guest.domain.memory, guest.vcpu.access  # type: ignore[assignment]
        try:
            super().put(guest, place, cls)
        finally:
            guest.domain.memory = by_frame


class ForgetfulGuest(NativeGuest):
    """It knows what its page tables were."""

    def keep_tables(self) -> None:
        for page in range(PAGES):
            self.map(page * PAGE_SIZE, RAM_FIRST + page)
        tables = range(self._next_table, self.root + 1)
        self.tables_kept = {mfn: bytes(self.domain.memory.page(mfn)) for mfn in tables}

    def restore_tables(self) -> None:
        for mfn, content in self.tables_kept.items():
            page = self.domain.memory.ram_page(mfn)
            if page is not None:
                page[:] = content


def new_native_attacker(machine: Machine, victim: Guest, random: Random) -> NativeGuest:
    guest = ForgetfulGuest(machine, pages=PAGES, vcpus=2)
    guest.keep_tables()
    for each in guest.domain.vcpus:
        each.initialised = True
    guest.domain.reservation.max_pages = 4 * PAGES
    for lent, flags in ((LENT_READ_ONLY, grant_table.GTF_readonly), (LENT_WRITABLE, 0)):
        grant(victim, lent + 10, guest.domid, lent, grant_table.GTF_permit_access | flags)
    ledger = guest.domain.ledger
    assert ledger is not None
    views = map_ledger(ledger.fd)
    for view in (views.types, views.granted):
        for page in range(0, PAGES, 5):
            view[RAM_FIRST + page] = random.randrange(256)
    return guest


@pytest.mark.parametrize("seed", [3])
def test_a_native_guest_with_all_the_wrong_ideas(seed: int) -> None:
    """It, or whatever its process has become: its page tables lie, and so does its ledger."""
    random = Random(seed)
    machine, host = new_machine()
    dom0, victim = Guest(machine, pages=PAGES), Guest(machine, pages=PAGES)
    fill(dom0, random)
    fill(victim, random)
    untouched = (digest(dom0), digest(victim))
    attacker = NativeAttacker(machine, host, random)
    guest = new_native_attacker(machine, victim, random)
    lives = 1
    for number in range(CALLS // 4):
        attacker.call(guest)  # type: ignore[arg-type]
        if guest.domain.stopped or number % 2_000 == 1_999:
            while not guest.domain.kill(1000):
                pass
            guest = new_native_attacker(machine, victim, random)
            lives += 1
        if number % 100 == 0:
            host.time_ns += random.randrange(10_000_000)
            machine.expire_timers()
        if number % 2_500 == 0:
            assert machine.audit() == []
            assert (digest(dom0), digest(victim)) == untouched
    assert list(machine.faults) == []
    assert machine.audit() == []
    assert (digest(dom0), digest(victim)) == untouched
    assert lives > 3
    while not guest.domain.kill(1000):
        pass
    assert set(machine.domains) == {dom0.domid, victim.domid}
    still_works(machine)


@pytest.mark.parametrize("seed", [2])
def test_a_control_domain_with_all_the_wrong_ideas(seed: int) -> None:
    """It may end others and itself; the core it may not."""
    random = Random(seed)
    machine, host = new_machine()
    dom0 = Guest(machine, pages=PAGES, vcpus=2)
    attacker = Attacker(machine, host, random)
    for number in range(CALLS // 5):
        attacker.call(dom0)
        if number % 1000 == 0:
            assert machine.audit() == []
        if dom0.domain.stopped:
            assert machine.audit() == []
            machine, host = new_machine()
            dom0 = Guest(machine, pages=PAGES, vcpus=2)
            dom0.domain.reservation.max_pages = 4 * PAGES
            attacker = Attacker(machine, host, random)
            for _ in range(random.randrange(3)):
                Guest(machine, pages=PAGES)
        assert not machine.faults, machine.faults[-1].traceback
