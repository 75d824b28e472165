"""The recount notices what it is for: each count, bit and table is spoilt in turn."""

from collections.abc import Callable

import pytest

from hypervisor.abi.grant_table import GTF_permit_access, GTF_reading, GTF_writing
from hypervisor.audit import audit
from hypervisor.grant_audit import audit_entries
from hypervisor.grant_pin import Pin
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import WINDOW, GrantGuest

REF = 9


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest]:
    """dom0 has grant REF of the guest mapped twice: to read, and to write."""
    machine, _host = new_machine()
    dom0, guest = GrantGuest(machine), GrantGuest(machine)
    guest.grant(REF, dom0.domid, 3)
    dom0.map(guest.domid, REF, WINDOW, readonly=True)
    dom0.map(guest.domid, REF, WINDOW + 1)
    return dom0, guest


def pin_of(guest: GrantGuest) -> Pin:
    return dict(guest.domain.grants.pins())[REF]


def spoil_readers(_dom0: GrantGuest, guest: GrantGuest) -> None:
    pin_of(guest).readers += 1


def spoil_writers(_dom0: GrantGuest, guest: GrantGuest) -> None:
    pin_of(guest).writers -= 1


def spoil_frame(_dom0: GrantGuest, guest: GrantGuest) -> None:
    pin_of(guest).mfn += 1


def spoil_user(_dom0: GrantGuest, guest: GrantGuest) -> None:
    pin_of(guest).domid += 1


def lose_a_handle(dom0: GrantGuest, _guest: GrantGuest) -> None:
    dom0.domain.grants.maptrack.remove(0)


def lose_a_page(dom0: GrantGuest, _guest: GrantGuest) -> None:
    dom0.domain.memory.unmap_foreign(WINDOW)


def lose_a_pin(_dom0: GrantGuest, guest: GrantGuest) -> None:
    pin = pin_of(guest)
    pin.readers, pin.writers = 1, 0
    guest.domain.grants.unpin(REF, pin, readonly=True)


@pytest.mark.parametrize(
    "spoil",
    [spoil_readers, spoil_writers, spoil_frame, spoil_user, lose_a_handle, lose_a_page, lose_a_pin],
)
def test_a_spoilt_count_is_found(
    guests: tuple[GrantGuest, GrantGuest], spoil: Callable[[GrantGuest, GrantGuest], None]
) -> None:
    dom0, guest = guests
    assert audit(dom0.machine) == []
    spoil(dom0, guest)
    assert dom0.domain.grants.audit() + guest.domain.grants.audit() != []
    assert audit(dom0.machine) != []


@pytest.mark.parametrize(
    ("reference", "flags"),
    [
        (REF, GTF_permit_access),
        (REF, GTF_permit_access | GTF_reading),
        (REF, GTF_permit_access | GTF_writing),
        (REF, 0),
        (REF + 1, GTF_permit_access | GTF_reading),
    ],
)
def test_entries_that_do_not_show_their_use_are_found(
    guests: tuple[GrantGuest, GrantGuest], reference: int, flags: int
) -> None:
    dom0, guest = guests
    table = guest.domain.grants
    assert audit_entries(table) == []
    table.entries.write(reference, dom0.domid, 3, flags)
    assert len(audit_entries(table)) == 1
    assert audit(dom0.machine) == []
