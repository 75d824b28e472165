"""The recount is worth what it notices: every count is made wrong once."""

from collections.abc import Callable

import pytest

from hypervisor.frames import ALLOCATED
from hypervisor.guest_memory import PageKind
from hypervisor.lifecycle import Life
from hypervisor.machine import Machine
from hypervisor.page_sharing import Importer
from hypervisor.shared_page import SharedPage
from tests.hypervisor.fakes import Guest, new_machine


def machine_with_everything() -> tuple[Machine, Guest]:
    machine, _ = new_machine()
    dom0, guest = Guest(machine), Guest(machine, pages=12)
    theirs = guest.domain.memory.mfn(0)
    assert theirs is not None
    dom0.domain.memory.map_foreign(90, theirs, True, PageKind.FOREIGN)
    guest.domain.memory.map_foreign(91, guest.domain.shared_info_mfn, True, PageKind.SPECIAL)
    frame, _ = guest.domain.memory.remove_ram(5, 1)
    guest.domain.reservation.give_up(frame)
    isolated = Guest(machine)
    isolated.domain.isolated = True
    isolated.domain.memory.importer = Importer(isolated.domain)
    isolated.domain.memory.map_foreign(90, some_frame(guest, 1), True, PageKind.FOREIGN)
    isolated.domain.memory.map_foreign(91, some_frame(guest, 1), True, PageKind.FOREIGN)
    return machine, guest


def some_frame(guest: Guest, gpfn: int = 3) -> int:
    frame = guest.domain.memory.mfn(gpfn)
    assert frame is not None
    return frame


def set_reference(guest: Guest) -> None:
    guest.machine.frames.refs[some_frame(guest)] += 1


def set_writable(guest: Guest) -> None:
    guest.machine.frames.writable[some_frame(guest)] += 1


def set_owner(guest: Guest) -> None:
    guest.machine.frames.owners[some_frame(guest)] = 0


def set_owner_that_is_not(guest: Guest) -> None:
    guest.machine.frames.owners[some_frame(guest)] = 999


def set_flags(guest: Guest) -> None:
    guest.machine.frames.flags[some_frame(guest)] &= ~ALLOCATED


def set_free_frame(guest: Guest) -> None:
    guest.machine.frames.owners[guest.machine.frames.max_mfn] = 3


def set_used(guest: Guest) -> None:
    guest.machine.frames.used += 1


def set_tot_pages(guest: Guest) -> None:
    guest.domain.reservation.tot_pages -= 1


def set_special_pages(guest: Guest) -> None:
    guest.domain.reservation.special_pages += 1


def set_extent_used(guest: Guest) -> None:
    guest.domain.reservation.extents[0].used += 1


def recycle_twice(guest: Guest) -> None:
    extent = guest.machine.frames.extent_at(some_frame(guest))
    extent.recycled.append(extent.recycled[0])


def recycle_what_is_in_use(guest: Guest) -> None:
    extent = guest.machine.frames.extent_at(some_frame(guest))
    extent.recycled[0] = some_frame(guest) - extent.mfn


def lose_a_frame(guest: Guest) -> None:
    guest.machine.frames.extent_at(some_frame(guest)).recycled.clear()


def use_fresh(guest: Guest) -> None:
    guest.machine.frames.extent_at(some_frame(guest)).fresh -= 8


def forget_extent(guest: Guest) -> None:
    guest.domain.reservation.extents.pop()


def map_twice(guest: Guest) -> None:
    guest.domain.memory.add_ram(200, some_frame(guest), 1)


def map_over(guest: Guest) -> None:
    memory = guest.domain.memory
    memory._pages[3] = memory._pages[91]


def show_other_memory(guest: Guest) -> None:
    next(guest.domain.memory.runs()).view = memoryview(bytearray(5 * 4096))


def misplace_special(guest: Guest) -> None:
    guest.domain.memory._special[guest.domain.shared_info_mfn] = 92


def lose_account(guest: Guest) -> None:
    del guest.machine.frames.accounts[guest.domid]


def be_listed_wrongly(guest: Guest) -> None:
    guest.domain.domid = 44


def be_gone(guest: Guest) -> None:
    guest.domain.life = Life.GONE


def be_dead(guest: Guest) -> None:
    guest.domain.is_dying = True


def be_stopped(guest: Guest) -> None:
    guest.domain.stopped = True


def execute(guest: Guest) -> None:
    guest.domain.pause_count += 1


def the_shared_page(guest: Guest) -> SharedPage:
    (page,) = guest.domain.reservation.extents[0].shared.values()
    return page


def share_for_nobody(guest: Guest) -> None:
    guest.domain.reservation.extents[0].share(5, readonly=True)


def share_what_is_free(guest: Guest) -> None:
    extent = guest.domain.reservation.extents[0]
    extent.share(extent.recycled[0], readonly=True)


def forget_a_mapping(guest: Guest) -> None:
    page = the_shared_page(guest)
    page.mappings = {domid: count - 1 for domid, count in page.mappings.items()}


def mistake_the_mapper(guest: Guest) -> None:
    page = the_shared_page(guest)
    page.mappings = dict.fromkeys([77], page.mappers)


def take_a_mapped_page_back(guest: Guest) -> None:
    extent = guest.domain.reservation.extents[0]
    extent.unshare(next(iter(extent.shared)))


def call_a_written_page_readonly(guest: Guest) -> None:
    the_shared_page(guest).readonly = True


def leave_unsealed(guest: Guest) -> None:
    page = the_shared_page(guest)
    extent = guest.domain.reservation.extents[0]
    (offset,) = extent.shared
    renewed = extent.renew(offset, readonly=False)
    renewed.mappings, renewed.seen = page.mappings, page.seen


def forget_who_has_seen_a_page(guest: Guest) -> None:
    the_shared_page(guest).seen.clear()


def map_what_is_not_shared_with_all(guest: Guest) -> None:
    guest.domain.isolated = True  # and names nobody


MISTAKES = [
    set_reference,
    set_writable,
    set_owner,
    set_owner_that_is_not,
    set_flags,
    set_free_frame,
    set_used,
    set_tot_pages,
    set_special_pages,
    set_extent_used,
    recycle_twice,
    recycle_what_is_in_use,
    lose_a_frame,
    use_fresh,
    forget_extent,
    map_twice,
    map_over,
    show_other_memory,
    misplace_special,
    lose_account,
    be_listed_wrongly,
    be_gone,
    be_dead,
    be_stopped,
    execute,
    share_for_nobody,
    share_what_is_free,
    forget_a_mapping,
    mistake_the_mapper,
    take_a_mapped_page_back,
    call_a_written_page_readonly,
    leave_unsealed,
    forget_who_has_seen_a_page,
    map_what_is_not_shared_with_all,
]


def test_all_is_well() -> None:
    assert machine_with_everything()[0].audit() == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: Callable[[Guest], None]) -> None:
    machine, guest = machine_with_everything()
    mistake(guest)
    assert machine.audit() != []
