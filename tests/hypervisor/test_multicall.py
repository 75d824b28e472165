"""multicall: the order, the results, and what ends a batch."""

from collections.abc import Callable, Iterator

import pytest

from hypervisor.abi import xen
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSYS
from hypervisor.abi.memory import XENMEM_decrease_reservation, xen_memory_reservation
from hypervisor.abi.sched import SCHEDOP_block, SCHEDOP_shutdown, sched_shutdown
from hypervisor.abi.xen import DOMID_SELF, multicall_entry
from hypervisor.continuation import Continuation
from hypervisor.extent import PAGE_SIZE
from hypervisor.hypercalls import TABLE, Entry
from hypervisor.multicall import ENTRIES_PER_SLICE, ENTRY_SIZE
from hypervisor.privileges import Who
from hypervisor.vcpu.state import Vcpu
from tests.hypervisor.fakes import Guest, new_machine

PROBE = 0x7FFF
LIST = 0x2000
GARBAGE = 0xDEADBEEF_DEADBEEF
VERSION = (xen.__HYPERVISOR_xen_version, 0)
VERSION_RESULT = 4 << 16 | 17

Call = tuple[int, ...]
Answer = Callable[[Vcpu, int, int], int | Continuation]


@pytest.fixture
def guest() -> Guest:
    machine, _ = new_machine()
    Guest(machine)
    return Guest(machine)


@pytest.fixture
def probe() -> Iterator[Callable[[Answer], None]]:
    """Lets a test say what hypercall PROBE does."""

    def install(answer: Answer) -> None:
        TABLE[PROBE] = Entry(answer, {0: Who.ANY}, (0xFFFF_FFFF_FFFF_FFFF,) * 2, 0)

    yield install
    TABLE.pop(PROBE, None)


def put(guest: Guest, calls: list[Call], address: int = LIST) -> None:
    for index, (number, *args) in enumerate(calls):
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        guest.domain.memory.write_struct(
            address + index * ENTRY_SIZE, multicall_entry(op=number, result=GARBAGE, args=padded)
        )


def results(guest: Guest, count: int, address: int = LIST) -> list[int]:
    memory = guest.domain.memory
    values = [memory.read_u64(address + index * ENTRY_SIZE + 8) for index in range(count)]
    return [value - (1 << 64) if value >> 63 else value for value in values]


def batch(guest: Guest, calls: list[Call], address: int = LIST) -> tuple[int, list[int]]:
    put(guest, calls, address)
    result = guest.hypercall(xen.__HYPERVISOR_multicall, address, len(calls))
    return result, results(guest, len(calls), address)


UNTOUCHED = GARBAGE - (1 << 64)


def test_each_entry_has_its_own_result_and_a_failure_stops_nobody(guest: Guest) -> None:
    calls = [VERSION, (999,), (xen.__HYPERVISOR_xen_version, 6, 0x7FFF_0000), VERSION]
    assert batch(guest, calls) == (0, [VERSION_RESULT, -XEN_ENOSYS, -XEN_EFAULT, VERSION_RESULT])
    counters = guest.domain.counters
    assert (counters.multicall_batches, counters.multicall_entries) == (1, 4)
    assert counters.hypercalls == {"multicall": 1, "xen_version": 3}


def test_an_empty_batch(guest: Guest) -> None:
    assert guest.hypercall(xen.__HYPERVISOR_multicall, 1 << 60, 0) == 0


def test_no_multicall_inside_a_multicall(guest: Guest) -> None:
    put(guest, [VERSION], 0x3000)
    calls = [(xen.__HYPERVISOR_multicall, 0x3000, 1), VERSION]
    assert batch(guest, calls) == (0, [-XEN_EINVAL, VERSION_RESULT])
    assert results(guest, 1, 0x3000) == [UNTOUCHED]
    assert not guest.vcpu.in_multicall


def test_entries_run_in_order_and_are_fetched_when_their_turn_has_come(
    guest: Guest, probe: Callable[[Answer], None]
) -> None:
    memory = guest.domain.memory

    def rewrite_the_next(_caller: Vcpu, index: int, _b: int) -> int:
        memory.write_u64(LIST + (index + 1) * ENTRY_SIZE, VERSION[0])
        return index

    probe(rewrite_the_next)
    assert batch(guest, [(PROBE, 0), (999,), (PROBE, 2), (999,)]) == (
        0,
        [0, VERSION_RESULT, 2, VERSION_RESULT],
    )


def test_an_entry_is_fetched_once(guest: Guest, probe: Callable[[Answer], None]) -> None:
    """A handler that changes its own entry changes nothing but what the guest sees."""

    def rewrite_itself(_caller: Vcpu, _a: int, b: int) -> int:
        guest.domain.memory.write(LIST, bytes([0xAA]) * ENTRY_SIZE)
        return b

    probe(rewrite_itself)
    assert batch(guest, [(PROBE, 1, 77)]) == (0, [77])


@pytest.mark.parametrize("count", [1, ENTRIES_PER_SLICE, ENTRIES_PER_SLICE + 1, 3 * ENTRIES_PER_SLICE + 7])
def test_long_batches_are_sliced(guest: Guest, count: int) -> None:
    assert batch(guest, [VERSION] * count) == (0, [VERSION_RESULT] * count)
    assert guest.domain.counters.continuations == (count - 1) // ENTRIES_PER_SLICE
    assert guest.domain.counters.multicall_entries == count


@pytest.mark.parametrize("position", range(4))
def test_an_entry_that_is_not_done_goes_on_where_it_was(
    guest: Guest, probe: Callable[[Answer], None], position: int
) -> None:
    """XSA-145: the same results as separate calls, wherever a call is preempted."""
    seen: list[int] = []

    def in_slices(_caller: Vcpu, done: int, wanted: int) -> int | Continuation:
        seen.append(done)
        return Continuation(PROBE, (done + 1, wanted)) if done < wanted else done * 10

    probe(in_slices)
    calls: list[Call] = [VERSION] * 4
    calls[position] = (PROBE, 0, 3)
    expected = [VERSION_RESULT] * 4
    expected[position] = 30
    assert batch(guest, calls) == (0, expected)
    assert seen == [0, 1, 2, 3]
    assert guest.domain.counters.multicall_entries == 4


def test_a_continuation_says_what_is_left_of_the_batch(guest: Guest, probe: Callable[[Answer], None]) -> None:
    probe(lambda _caller, a, b: Continuation(PROBE, (a + 1, b)))
    put(guest, [VERSION, (PROBE, 5, 6), VERSION])
    machine, vcpu = guest.machine, guest.vcpu
    rest = machine.hypercall(vcpu, xen.__HYPERVISOR_multicall, (LIST, 3))
    assert rest == Continuation(xen.__HYPERVISOR_multicall, (LIST + ENTRY_SIZE, 2))
    entry = guest.domain.memory.read_struct(multicall_entry, LIST + ENTRY_SIZE)
    assert (entry.op, tuple(entry.args)) == (PROBE, (6, 6, 0, 0, 0, 0))


def test_entries_may_lie_across_pages_that_do_not_lie_together(guest: Guest) -> None:
    memory = guest.domain.memory
    low, _ = memory.remove_ram(2, 1)
    memory.add_ram(20, low, 1)
    high, _ = memory.remove_ram(4, 1)
    memory.add_ram(21, high, 1)
    address = 21 * PAGE_SIZE - ENTRY_SIZE - 24
    assert batch(guest, [VERSION] * 5, address) == (0, [VERSION_RESULT] * 5)


def test_a_batch_that_runs_out_of_memory_reports_what_it_did(guest: Guest) -> None:
    end = 8 * PAGE_SIZE
    address = end - 2 * ENTRY_SIZE
    put(guest, [VERSION, VERSION], address)
    assert guest.hypercall(xen.__HYPERVISOR_multicall, address, 3) == -XEN_EFAULT
    assert results(guest, 2, address) == [VERSION_RESULT] * 2
    assert guest.hypercall(xen.__HYPERVISOR_multicall, end, 1) == -XEN_EFAULT
    assert guest.hypercall(xen.__HYPERVISOR_multicall, (1 << 64) - 8, 2) == -XEN_EFAULT
    assert not guest.vcpu.in_multicall


def test_an_entry_without_a_place_for_its_result_is_not_executed(
    guest: Guest, probe: Callable[[Answer], None]
) -> None:
    ran: list[int] = []
    probe(lambda _caller, a, _b: ran.append(a) or 0)  # type: ignore[func-returns-value]
    peer = Guest(guest.machine)
    put(peer, [(PROBE, 1)], 0x2000)
    frame = peer.domain.memory.mfn(2)
    assert frame is not None
    guest.domain.memory.map_foreign(30, frame, False)
    assert guest.hypercall(xen.__HYPERVISOR_multicall, 30 * PAGE_SIZE, 1) == -XEN_EFAULT
    assert ran == []


def test_a_list_that_gives_its_own_page_away(guest: Guest) -> None:
    """The result has nowhere to go, and no stale view is written."""
    memory = guest.domain.memory
    gone = memory.mfn(3)
    assert gone is not None
    memory.write_u64(0x1000, 3)
    memory.write_struct(0x1100, xen_memory_reservation(extent_start=0x1000, nr_extents=1, domid=DOMID_SELF))
    put(guest, [VERSION, (xen.__HYPERVISOR_memory_op, XENMEM_decrease_reservation, 0x1100), VERSION], 0x3000)
    assert guest.hypercall(xen.__HYPERVISOR_multicall, 0x3000, 3) == -XEN_EFAULT
    assert not guest.machine.frames.exists(gone)
    assert bytes(guest.machine.frames.view(gone)) == bytes(PAGE_SIZE)


def test_a_batch_ends_with_the_domain(guest: Guest) -> None:
    guest.domain.memory.write_struct(0x1000, sched_shutdown(reason=3))
    calls = [VERSION, (xen.__HYPERVISOR_sched_op, SCHEDOP_shutdown, 0x1000), VERSION]
    assert batch(guest, calls) == (0, [VERSION_RESULT, 0, UNTOUCHED])


def test_a_batch_ends_when_an_entry_goes_wrong_within_us(
    guest: Guest, probe: Callable[[Answer], None]
) -> None:
    probe(lambda _caller, a, b: a // b)
    result, values = batch(guest, [VERSION, (PROBE, 1, 0), VERSION])
    assert (result, values) == (0, [VERSION_RESULT, -XEN_EFAULT, UNTOUCHED])
    assert guest.domain.stopped
    assert not guest.vcpu.in_multicall
    assert len(guest.machine.faults) == 1


def test_another_task_of_a_kernel_that_waits_has_its_batch_done_at_once(guest: Guest) -> None:
    assert guest.machine.hypercall(guest.vcpu, xen.__HYPERVISOR_sched_op, (SCHEDOP_block, 0)) == 0
    put(guest, [VERSION] * 10)
    assert guest.machine.hypercall(guest.vcpu, xen.__HYPERVISOR_multicall, (LIST, 10)) == 0
    assert results(guest, 10) == [VERSION_RESULT] * 10
    assert guest.domain.counters.continuations == 0
    assert guest.vcpu.blocked


def test_a_vcpu_that_blocks_goes_on_with_the_rest_later(guest: Guest) -> None:
    put(guest, [(xen.__HYPERVISOR_sched_op, SCHEDOP_block), VERSION])
    rest = guest.machine.hypercall(guest.vcpu, xen.__HYPERVISOR_multicall, (LIST, 2))
    assert rest == Continuation(xen.__HYPERVISOR_multicall, (LIST + ENTRY_SIZE, 1))
    assert results(guest, 2) == [0, UNTOUCHED]
    guest.vcpu.unblock()
    assert isinstance(rest, Continuation)
    assert guest.machine.hypercall(guest.vcpu, *rest) == 0
    assert results(guest, 2) == [0, VERSION_RESULT]
