"""Two guests that work together against a third with every grant operation there is, and large numbers."""

from random import Random

import pytest

from hypervisor.abi.grant_table import (
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_okay,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_unmap_grant_ref,
    GTF_permit_access,
    gnttab_copy,
    gnttab_map_grant_ref,
    gnttab_swap_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.abi.layout import Struct
from hypervisor.abi.xen import DOMID_INVALID, DOMID_IO, DOMID_SELF, DOMID_XEN
from hypervisor.audit import audit
from hypervisor.grant_batch import STATUS
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import (
    ARRAY,
    GRANT_TABLE_OP,
    PAGE,
    UNTOUCHED,
    WINDOW,
    GrantGuest,
    granted,
    own,
)

SECRET = b"nobody's business"
REFERENCES = 14
SHOWN, LENT = 3, 4
"""frames of the victim: granted to the attacker to read, and to write"""


class Conspiracy:
    """An attacker, an accomplice, and a victim that grants one page to be read and one to be written."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.machine, _host = new_machine()
        self.victim = GrantGuest(self.machine)
        self.attacker, self.accomplice = GrantGuest(self.machine), GrantGuest(self.machine)
        for gpfn in range(8):
            self.victim.domain.memory.write(gpfn * PAGE + 99, SECRET)
        for gpfn in (SHOWN, LENT):
            self.victim.domain.memory.write(gpfn * PAGE, bytes([gpfn]) * PAGE)
        self.victim.grant(8 + SHOWN, self.attacker.domid, SHOWN, readonly=True)
        self.victim.grant(8 + LENT, self.attacker.domid, LENT)
        self.before = [self.victim.domain.memory.read(gpfn * PAGE, PAGE) for gpfn in range(8)]

    def number(self, *likely: int, bits: int = 32) -> int:
        """Mostly one of the likely ones, sometimes anything."""
        if self.random.random() < 0.9:
            return self.random.choice(likely)
        return self.random.getrandbits(bits) >> self.random.choice((0, 0, bits // 2))

    def domid(self) -> int:
        domids = [guest.domid for guest in (self.victim, self.attacker, self.accomplice)]
        return self.number(*domids, *domids, DOMID_SELF, DOMID_IO, DOMID_XEN, DOMID_INVALID, bits=16)

    def gpfn(self, ram: int = 1, window: int = 1) -> int:
        """A guest frame, RAM or a place for mappings by these weights."""
        places = [*range(1, 8)] * ram + [*range(WINDOW, WINDOW + 7)] * window
        return self.number(*places, bits=64)

    def reference(self) -> int:
        return self.number(*range(REFERENCES), 511, 512)

    def grant(self) -> tuple[int, int]:
        """A domid and a reference: often of an entry that is there, whomever it is for."""
        if self.random.random() < 0.2:
            return self.domid(), self.reference()
        victims = [(self.victim.domid, 8 + gpfn) for gpfn in (SHOWN, LENT)]
        theirs = [
            (granter.domid, reference)
            for granter in (self.attacker, self.accomplice)
            for reference in range(REFERENCES)
            if granter.flags(reference)
        ]
        return self.random.choice(victims * 3 + theirs)

    def side(self, by_reference: bool) -> tuple[int, int, int]:
        """Frame or reference, domid and offset of a side of a copy."""
        offset = self.number(0, 0, 7, 99, 3995, bits=16)
        if by_reference:
            domid, reference = self.grant()
            return reference, domid, offset
        return self.gpfn(4, 1), self.domid() if self.random.random() < 0.1 else DOMID_SELF, offset

    def operation(self, command: int) -> Struct:
        """One struct for a command."""
        host_addr = self.gpfn(1, 4) * PAGE % 2**64
        if command == GNTTABOP_map_grant_ref:
            flags = self.number(GNTMAP_host_map, GNTMAP_host_map | GNTMAP_readonly)
            domid, reference = self.grant()
            return gnttab_map_grant_ref(host_addr, flags, reference, domid, UNTOUCHED)
        if command == GNTTABOP_unmap_grant_ref:
            handle = self.number(*range(12))
            track = self.attacker.domain.grants.maptrack
            found = track.get(handle)
            if found is not None and self.random.random() < 0.7:
                host_addr = found.gpfn * PAGE
            return gnttab_unmap_grant_ref(host_addr, self.number(0, 1, bits=64), handle, UNTOUCHED)
        if command == GNTTABOP_swap_grant_ref:
            return gnttab_swap_grant_ref(self.reference(), self.reference(), UNTOUCHED)
        flags = self.number(0, 1, 2, 3, bits=16)
        source_frame, source_domid, source_offset = self.side(bool(flags & 1))
        dest_frame, dest_domid, dest_offset = self.side(bool(flags & 2))
        return gnttab_copy(
            own(source_frame, source_offset, source_domid),
            own(dest_frame, dest_offset, dest_domid),
            self.number(0, 1, 17, 100, 101, bits=16),
            flags,
            UNTOUCHED,
        )

    def strike(self) -> None:
        """One array of operations, or new entries, or the death of the accomplice."""
        guest = self.random.choice((self.attacker, self.attacker, self.accomplice))
        command = self.random.choice(
            (
                GNTTABOP_map_grant_ref,
                GNTTABOP_unmap_grant_ref,
                GNTTABOP_copy,
                GNTTABOP_copy,
                GNTTABOP_swap_grant_ref,
            )
        )
        operations = [self.operation(command) for _ in range(self.random.randint(1, 6))]
        address = ARRAY if self.random.random() < 0.9 else self.random.choice((8 * PAGE - 100, 3 * PAGE - 50))
        data = b"".join(operation.pack() for operation in operations)
        fits = min(len(data), 8 * PAGE - address)
        guest.domain.memory.write(address, data[:fits])
        result = guest.hypercall(GRANT_TABLE_OP, command, address, len(operations))
        if result == 0 and address == ARRAY:
            kind = type(operations[0])
            for index in range(len(operations)):
                at = address + index * kind.size + kind.layout_.offsets["status"]
                assert guest.domain.memory.read(at, 2) in STATUS.values()
        granter = self.random.choice((self.attacker, self.accomplice))
        flags = self.number(GTF_permit_access, GTF_permit_access, GTF_permit_access | 4, 0, bits=16)
        frame = self.gpfn() & 0xFFFF_FFFF
        granter.domain.grants.entries.write(self.random.randrange(REFERENCES), self.domid(), frame, flags)
        if self.random.random() < 0.01:
            self.accomplice.destroy(self.random.randint(1, 20))
            self.accomplice = GrantGuest(self.machine)

    def check(self) -> None:
        """The victim's pages are as they were but for the one it lent, and its secret is nowhere."""
        assert audit(self.machine) == []
        assert not self.machine.faults
        for gpfn, content in enumerate(self.before):
            if gpfn != LENT:
                assert self.victim.domain.memory.read(gpfn * PAGE, PAGE) == content
        for guest in (self.attacker, self.accomplice):
            for gpfn in [*range(8), *(gpfn for gpfn, _page in guest.domain.memory.mappings())]:
                assert SECRET not in guest.domain.memory.read(gpfn * PAGE, PAGE)


@pytest.mark.parametrize("seed", range(6))
def test_what_two_guests_can_do_to_a_third(seed: int) -> None:
    conspiracy = Conspiracy(seed)
    for number in range(1500):
        conspiracy.strike()
        if number % 50 == 0:
            conspiracy.check()
    conspiracy.check()
    counters = conspiracy.attacker.domain.counters
    assert min(counters.grant_maps, counters.grant_unmaps, counters.grant_copies) > 25
    for guest in (conspiracy.victim, conspiracy.attacker, conspiracy.accomplice):
        guest.destroy(7)
    conspiracy.machine.bury()
    assert conspiracy.machine.frames.used == 0


def test_a_mapper_of_many_grants_dies_in_slices() -> None:
    """XSA-380: 20,000 mappings, at most 512 handles looked at in one go."""
    machine, _host = new_machine()
    mapper, granter = GrantGuest(machine), GrantGuest(machine)
    granter.domain.grants.grow(64)
    count = 20_000
    for start in range(0, count, 100):
        operations = []
        for number in range(start, start + 100):
            granter.grant(number, mapper.domid, 1 + number % 7)
            operations.append(
                gnttab_map_grant_ref((WINDOW + number) * PAGE, GNTMAP_host_map, number, granter.domid)
            )
        done = mapper.array(GNTTABOP_map_grant_ref, operations, 2 * PAGE)
        assert all(operation.status == GNTST_okay for operation in done)
    slices = 1
    while not mapper.domain.kill(512):
        slices += 1
    assert count // 512 <= slices < 3 * count // 512
    machine.bury()
    assert list(granter.domain.grants.pins()) == []
    assert audit(machine) == []
    granter.destroy()
    machine.bury()
    assert machine.frames.used == 0


def test_thousands_of_copies_leave_no_hold_on_anybody() -> None:
    """XSA-50: half of them fail, in either side."""
    machine, _host = new_machine()
    copier, one, other = (GrantGuest(machine) for _ in range(3))
    one.grant(9, copier.domid, 3)
    other.grant(9, copier.domid, 3)
    for number in range(2000):
        source = granted(one.domid, 9 + (number % 4 == 1))
        dest = granted(other.domid, 9 + (number % 4 == 2))
        assert (copier.copy(source, dest, 100, 3) == GNTST_okay) == (number % 4 in {0, 3})
    for guest in (one, other):
        guest.destroy()
        machine.bury()
        assert guest.domid not in machine.domains
    assert audit(machine) == []
