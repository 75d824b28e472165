"""The recount sees whatever must not be."""

from collections.abc import Callable

import pytest

from hypervisor.pv.frames import OWN_L2, OWN_UNUSED
from hypervisor.pv.layout import FOREIGN_FIRST, MFN_END, RAM_FIRST, SHARED_INFO_MFN
from tests.hypervisor.pv.paging import FIRST_FREE, L1, L2, L3, L4, RW, USER, P, PagedGuest, entry, mfn

A = FIRST_FREE
FREE_SLOT = 300
WRONGS: dict[str, Callable[[PagedGuest], object]] = {
    "a count too high": lambda guest: add(guest.frames.counts, mfn(A), 1),
    "a count too low": lambda guest: add(guest.frames.counts, mfn(L1), -1),
    "a reader too many": lambda guest: add(guest.frames.readers, mfn(L1), 1),
    "a count of a frame that nobody refers to": lambda guest: add(guest.frames.counts, SHARED_INFO_MFN, 1),
    "a table counted as another one": lambda guest: put(guest.frames.uses, mfn(L1), OWN_L2),
    "a table not known as one": lambda guest: put(guest.frames.uses, mfn(L3), OWN_UNUSED),
    "another type in the ledger": lambda guest: put(guest.types, mfn(L2), 0),
    "a table that others may write to": lambda guest: put(guest.granted, mfn(L2), 1),
    "a table mapped writable": lambda guest: guest.set(L1, L4, guest.get(L1, L4) | RW),
    "another table mapped writable": lambda guest: guest.set(L1, FREE_SLOT, entry(L2, P | RW | USER)),
    "a frame that is not there": lambda guest: guest.set(L1, FREE_SLOT, RAM_FIRST - 1 << 12 | P | USER),
    "a frame beyond all": lambda guest: guest.set(L1, FREE_SLOT, MFN_END << 12 | P | USER),
    "a frame of the monitor": lambda guest: guest.set(L1, FREE_SLOT, MFN_END + 5 << 12 | P | RW | USER),
    "a mapping that nobody counted": lambda guest: guest.set(L1, FREE_SLOT, entry(A, P | USER)),
    "a grant for reading that is written": lambda guest: guest.set(
        L1, FREE_SLOT, FOREIGN_FIRST + 1 << 12 | P | RW | USER
    ),
    "an entry that is not for user mode": lambda guest: guest.set(L1, A, entry(A)),
    "a table's entry that is not for user mode": lambda guest: guest.set(L2, 0, entry(L1)),
    "a superpage": lambda guest: guest.set(L2, 0, guest.get(L2, 0) | 1 << 7),
    "a table in its own place": lambda guest: guest.set(L4, FREE_SLOT, entry(L4, P | USER)),
    "a table in two places": lambda guest: guest.set(L4, FREE_SLOT, entry(L1, P | USER)),
    "another entry of the hypervisor's": lambda guest: guest.set(L4, 260, entry(A, P | USER)),
    "a new entry in the hypervisor's part": lambda guest: guest.set(L4, 262, entry(L3, P | USER)),
    "a pin of what is no table": lambda guest: guest.frames.pinned.add(mfn(A)),
    "a root that is no table": lambda guest: setattr(guest.vcpus[1], "kernel_root", mfn(A)),
    "a root that nobody counted": lambda guest: setattr(guest.vcpus[1], "user_root", mfn(L4)),
    "a descriptor table that nobody took": lambda guest: put(guest.vcpu.gdt_frames, 0, mfn(A)),
    "a vcpu_info that nobody holds": lambda guest: setattr(guest.vcpu, "info_mfn", mfn(A)),
}


def add(numbers: list[int], index: int, change: int) -> None:
    numbers[index] += change


def put(numbers: list[int] | bytearray | memoryview, index: int, value: int) -> None:
    numbers[index] = value


@pytest.mark.parametrize("wrong", WRONGS)
def test_it_is_found(wrong: str) -> None:
    guest = PagedGuest().start()
    assert guest.page_tables.audit(guest.vcpus) == []
    WRONGS[wrong](guest)
    assert guest.page_tables.audit(guest.vcpus)


def test_findings_say_what_and_where() -> None:
    guest = PagedGuest().start()
    guest.set(L1, L4, guest.get(L1, L4) | RW)
    found = guest.page_tables.audit(guest.vcpus)
    assert any("0x10000 is L4, and WRITABLE" in line and "slot 0 of L1 0x10003" in line for line in found)
