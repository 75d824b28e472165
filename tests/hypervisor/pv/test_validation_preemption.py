"""Pins, switches and teardowns of big trees, in slices: whatever is interrupted, and wherever, all references are
counted and nothing is half a table.
"""

import pytest

from hypervisor.abi.errno import XEN_EBUSY, XEN_EINVAL
from hypervisor.abi.mmu import MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.continuation import Continuation
from hypervisor.pv import mmu_update, mmuext
from hypervisor.pv.validation import BUDGET
from tests.hypervisor.pv.paging import FIRST_FREE, L1, L4, P, PagedGuest, entry, machine_address, mfn, va

TREE = FIRST_FREE + 3
"""first page of the tree: its L4, its L3, two L2, then L1 tables"""
LEAVES = 8
DATA = FIRST_FREE


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice does one table, or a little more."""
    monkeypatch.setattr(mmu_update, "BUDGET", 1)
    monkeypatch.setattr(mmuext, "BUDGET", 1)


def grow(guest: PagedGuest, last: int = 0) -> None:
    """A tree of LEAVES L1 tables full of mappings; `last` is the last entry of the last one."""
    for index in range(LEAVES):
        page = TREE + 4 + index
        for slot in range(0, 512, 16):
            guest.set(page, slot, entry(DATA, P) if slot % 32 else entry(DATA))
        guest.set(TREE + 2 + index % 2, index, entry(page))
    if last:
        guest.set(TREE + 3 + LEAVES, 511, last)
    guest.set(TREE + 1, 0, entry(TREE + 2))
    guest.set(TREE + 1, 1, entry(TREE + 3))
    guest.set(TREE, 0, entry(TREE + 1))
    guest.set(TREE, 511, guest.get(L4, 511))
    guest.protect(*range(TREE, TREE + 4 + LEAVES))


@pytest.mark.usefixtures("cramped")
def test_pin_switch_and_unpin_in_slices() -> None:
    guest = PagedGuest().start()
    grow(guest)
    before = [guest.counted(page) for page in range(guest.pages)]
    assert guest.pin(TREE, 4) == 0
    assert guest.continued >= LEAVES - 1
    assert guest.counted(TREE) == ("L4", 1, 1)
    assert guest.new_baseptr(TREE) == 0
    assert guest.new_baseptr(L4) == 0
    assert guest.unpin(TREE) == 0
    assert guest.continued >= LEAVES - 1
    assert [guest.counted(page) for page in range(guest.pages)] == before
    assert guest.extended((MMUEXT_NEW_BASEPTR, mfn(TREE))) == 0
    assert guest.continued >= LEAVES - 1
    assert guest.new_baseptr(L4) == 0
    assert [guest.counted(page) for page in range(guest.pages)] == before


@pytest.mark.usefixtures("cramped")
def test_a_pin_that_fails_at_its_last_entry_leaves_nothing() -> None:
    """XSA-37, XSA-58."""
    guest = PagedGuest().start()
    grow(guest, entry(L1))
    before = [guest.counted(page) for page in range(guest.pages)]
    assert guest.pin(TREE, 4) == -XEN_EBUSY
    assert guest.continued >= LEAVES - 1
    assert [guest.counted(page) for page in range(guest.pages)] == before


@pytest.mark.usefixtures("cramped")
def test_links_of_whole_trees_in_slices() -> None:
    guest = PagedGuest().start()
    grow(guest)
    before = [guest.counted(page) for page in range(guest.pages)]
    slot = machine_address(L4, 1)
    assert guest.update([(slot, entry(TREE + 1)), (slot, 0), (slot, entry(TREE + 1)), (slot, 0)]) == 0
    assert guest.continued >= 4 * (LEAVES - 1)
    assert [guest.counted(page) for page in range(guest.pages)] == before


@pytest.mark.usefixtures("cramped")
def test_a_batch_of_operations_goes_on_where_it_was() -> None:
    guest = PagedGuest().start()
    grow(guest)
    operations = [(MMUEXT_PIN_L4_TABLE, mfn(TREE)), (MMUEXT_UNPIN_TABLE, mfn(TREE))]
    assert guest.extended(*operations, *operations, (MMUEXT_UNPIN_TABLE, mfn(TREE))) == -XEN_EINVAL
    assert guest.continued >= 4 * (LEAVES - 1)
    assert guest.counted(TREE) == ("NONE", 0, 1)


@pytest.mark.usefixtures("cramped")
def test_what_was_done_is_said_once() -> None:
    guest = PagedGuest().start()
    grow(guest)
    operations = [(MMUEXT_PIN_L4_TABLE, mfn(TREE)), (MMUEXT_UNPIN_TABLE, mfn(TREE)), (99, 0)]
    guest.extended(*operations)
    done = machine_address(DATA + 1)
    args = va(FIRST_FREE - 1), len(operations), va(DATA + 1), DOMID_SELF
    guest.result(guest.page_tables.mmuext_op, guest.vcpu, *args)
    assert guest.memory.octets[done : done + 4].tobytes() == b"\2\0\0\0"


@pytest.mark.usefixtures("cramped")
def test_two_vcpus_pin_the_same_tree_slice_by_slice() -> None:
    """XSA-299, XSA-310."""
    guest = PagedGuest().start()
    grow(guest)
    guest.page_tables.set_roots(guest.vcpus[1], mfn(L4), 0)
    before = [guest.counted(page) for page in range(guest.pages)]
    guest.put_arguments(guest.packed((MMUEXT_PIN_L4_TABLE, mfn(TREE))))
    calls = [[vcpu, (va(FIRST_FREE - 1), 1, 0, DOMID_SELF)] for vcpu in guest.vcpus]
    results = []
    while calls:
        vcpu, args = call = calls.pop(0)
        try:
            result = guest.page_tables.mmuext_op(vcpu, *args)
        except Exception as error:
            result = -error.errno
        guest.check()
        if isinstance(result, Continuation):
            call[1] = result.args
            calls.append(call)
        else:
            results.append(result)
    assert sorted(results) == [-XEN_EINVAL, 0]
    assert guest.unpin(TREE) == 0
    assert [guest.counted(page) for page in range(guest.pages)] == before


@pytest.mark.usefixtures("cramped")
def test_table_that_waits_to_be_demoted_may_be_used_again() -> None:
    guest = PagedGuest().start()
    grow(guest)
    guest.page_tables.set_roots(guest.vcpus[1], mfn(L4), 0)
    before = [guest.counted(page) for page in range(guest.pages)]
    assert guest.pin(TREE, 4) == 0
    guest.put_arguments(guest.packed((MMUEXT_UNPIN_TABLE, mfn(TREE))))
    unpin = guest.page_tables.mmuext_op(guest.vcpu, va(FIRST_FREE - 1), 1, 0, DOMID_SELF)
    assert isinstance(unpin, Continuation)
    waiting = list(guest.page_tables.validation.deferred)
    assert waiting
    for frame in waiting:
        guest.page_tables.validation.take(1, frame, guest.type_of(frame))
    assert guest.page_tables.mmuext_op(guest.vcpu, *unpin.args) == 0
    assert [guest.frames.counts[frame] for frame in waiting] == [1] * len(waiting)
    guest.page_tables.validation.drop_all(waiting)
    guest.page_tables.release_vcpu(guest.vcpus[1])
    guest.page_tables.set_roots(guest.vcpus[1], mfn(L4), 0)
    guest.check()
    assert [guest.counted(page) for page in range(guest.pages)] == before


@pytest.mark.usefixtures("cramped")
def test_vcpu_that_never_finishes_its_pin_keeps_no_table_from_being_freed_in_the_end() -> None:
    guest = PagedGuest().start()
    grow(guest)
    before = [guest.counted(page) for page in range(guest.pages)]
    second = guest.vcpus[1]
    guest.page_tables.set_roots(second, mfn(L4), 0)
    guest.put_arguments(guest.packed((MMUEXT_PIN_L4_TABLE, mfn(TREE))))
    args = va(FIRST_FREE - 1), 1, 0, DOMID_SELF
    for _ in range(5):
        result = guest.page_tables.mmuext_op(second, *args)
        assert isinstance(result, Continuation)
        args = result.args
        guest.check()
    assert [guest.counted(page) for page in range(guest.pages)] != before
    guest.page_tables.release_vcpu(second)
    guest.check()
    assert [guest.counted(page) for page in range(guest.pages)] == before


def test_no_slice_looks_at_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """XSA-45, XSA-290: steps are counted, not time."""
    pages = 256
    guest = PagedGuest(pages).start()
    leaves = range(64, 256)
    for leaf in leaves:
        for slot in range(512):
            guest.set(leaf, slot, entry(DATA))
        guest.set(40, leaf, entry(leaf))
    guest.set(41, 0, entry(40))
    guest.set(42, 0, entry(41))
    guest.set(42, 511, guest.get(L4, 511))
    guest.protect(40, 41, 42, *leaves)
    left = []
    drain = guest.page_tables.validation.drain

    def spy() -> bool:
        left.append(guest.page_tables.validation.budget)
        return drain()

    monkeypatch.setattr(type(guest.page_tables.validation), "drain", lambda self: spy())
    guest.check = lambda: None
    assert guest.pin(42, 4) == 0
    assert guest.continued >= len(leaves) * 512 // BUDGET
    assert guest.unpin(42) == 0
    assert guest.continued >= len(leaves) * 512 // BUDGET
    assert min(left) > -4 * 600
    assert not guest.page_tables.audit(guest.vcpus)
