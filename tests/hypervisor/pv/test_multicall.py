"""Multicalls of a native guest."""

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.errno import XEN_EINVAL
from hypervisor.abi.xen import HYPERVISOR_iret, HYPERVISOR_multicall
from hypervisor.continuation import Continuation
from hypervisor.errors import GuestFault
from hypervisor.pv.multicall import ENTRIES_A_SLICE, ENTRY_BYTES, run_batch
from hypervisor.pv.vcpu import PvVcpu
from tests.hypervisor.pv.flat_domain import FlatDomain

AT = 0x1000
ENTRY = Struct("<8Q")


class Batch:
    """Entries in a domain's memory, and what is executed of them."""

    def __init__(self, numbers: list[int]) -> None:
        self.domain = FlatDomain()
        self.executed: list[tuple[int, tuple[int, ...]]] = []
        self.results: dict[int, int | Continuation | None] = {}
        for index, number in enumerate(numbers):
            entry = ENTRY.pack(number, 0xDEAD, *range(index, index + 6))
            self.domain.page_tables.write(0, AT + index * ENTRY_BYTES, entry)

    def dispatch(self, _vcpu: PvVcpu, number: int, args: tuple[int, ...]) -> int | Continuation | None:
        self.executed.append((number, args))
        return self.results.get(number, number)

    def run(self, count: int, at: int = AT) -> int | Continuation:
        return run_batch(self.dispatch, self.domain.vcpu, at, count)

    def result(self, index: int) -> int:
        return int.from_bytes(
            self.domain.page_tables.read(0, AT + index * ENTRY_BYTES + 8, 8), "little", signed=True
        )


@given(st.lists(st.integers(0, 12), max_size=300))
def test_all_entries_are_executed_in_order_in_slices(numbers: list[int]) -> None:
    batch = Batch(numbers)
    result = batch.run(len(numbers))
    slices = 1
    while isinstance(result, Continuation):
        assert result.number == HYPERVISOR_multicall
        assert len(batch.executed) == slices * ENTRIES_A_SLICE
        result = batch.run(result.args[1], result.args[0])
        slices += 1
    assert result == 0
    assert batch.executed == [(number, tuple(range(at, at + 6))) for at, number in enumerate(numbers)]
    assert [batch.result(at) for at in range(len(numbers))] == numbers
    assert batch.domain.tally.multicall_entries == len(numbers)


def test_an_entry_that_is_not_finished_goes_on_where_it_was() -> None:
    batch = Batch([1, 2, 3])
    batch.results[2] = Continuation(2, (70, 71))
    assert batch.run(3) == Continuation(HYPERVISOR_multicall, (AT + ENTRY_BYTES, 2))
    batch.results[2] = -5
    assert batch.run(2, AT + ENTRY_BYTES) == 0
    assert batch.executed[2] == (2, (70, 71, 0, 0, 0, 0))
    assert [batch.result(at) for at in range(3)] == [1, -5, 3]


@pytest.mark.parametrize("number", [HYPERVISOR_multicall, HYPERVISOR_iret])
def test_what_cannot_be_an_entry_is_refused_alone(number: int) -> None:
    batch = Batch([1, number, 3])
    assert batch.run(3) == 0
    assert [batch.result(at) for at in range(3)] == [1, -XEN_EINVAL, 3]
    assert [number for number, _ in batch.executed] == [1, 3]


def test_entries_that_have_no_place_for_results_are_not_executed() -> None:
    batch = Batch([1, 2, 3])
    batch.domain.page_tables.writable = AT + 2 * ENTRY_BYTES
    with pytest.raises(GuestFault):
        batch.run(3)
    assert batch.executed == []
