"""Two kernels that grant to each other, against a model; the ledger; peers that keep what they were given."""

from pickle import PickleBuffer

import pytest

from hypervisor.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_general_error,
    GNTST_okay,
)
from hypervisor.abi.xen import DOMID_SELF
from kernel.errors import KernelMisuse, OutOfGrants, StillMapped
from kernel.grants import ENTRIES_PER_FRAME
from kernel.hypercalls import CopyEnd, CopyOp
from kernel.ledger import owned_by
from kernel.mapping import GrantError, Mapping, MappingInUse, UnmapFailed
from tests.kernel.pairs import Pair


@pytest.fixture
def pair() -> Pair:
    return Pair()


def mapped(results: list[Mapping | GrantError]) -> list[Mapping]:
    assert all(isinstance(result, Mapping) for result in results), results
    return [result for result in results if isinstance(result, Mapping)]


def test_both_ends_see_the_same_bytes(pair: Pair) -> None:
    pages = pair.granter.pages.allocate(2)
    references = pair.granter.grants.grant_many(pair.user.domid, [pages.pfn, pages.pfn + 1])
    first, second = mapped(pair.user.grants.map(pair.granter.domid, references))
    pages.view[:5] = b"hello"
    assert bytes(first.page[:5]) == b"hello"
    second.page[100] = 7
    assert pages.page(1)[100] == 7
    pair.user.grants.unmap([first, second])
    for reference in references:
        pair.granter.grants.end(reference)


def test_a_readonly_grant_is_mapped_readonly_or_not_at_all(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn, readonly=True)
    (refused,) = pair.user.grants.map(pair.granter.domid, [reference])
    assert isinstance(refused, GrantError)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference], readonly=True))
    assert mapping.page.readonly
    pair.user.grants.unmap([mapping])


def test_each_reference_has_a_result_of_its_own(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    good = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    other = pair.granter.grants.grant(DOMID_SELF, pages.pfn)
    results = pair.user.grants.map(pair.granter.domid, [10_000, good, good + 100, other])
    assert [type(result) for result in results] == [GrantError, Mapping, GrantError, GrantError]
    failed = results[0]
    assert isinstance(failed, GrantError)
    assert (failed.domid, failed.reference, failed.status) == (pair.granter.domid, 10_000, GNTST_bad_gntref)
    assert "bad_gntref" in str(failed)
    (nobody,) = pair.user.grants.map(77, [good])
    assert isinstance(nobody, GrantError)
    assert nobody.status == GNTST_bad_domain


def test_references_that_fail_cost_no_frame_numbers(pair: Pair) -> None:
    free = pair.user.pages._foreign.free
    for _ in range(10):
        pair.user.grants.map(pair.granter.domid, [9, 10, 11])
    assert pair.user.pages._foreign.free == free


def test_pages_that_lie_apart_in_the_machine_are_joined_to_none(pair: Pair) -> None:
    pages = [pair.granter.pages.allocate() for _ in range(3)]
    references = pair.granter.grants.grant_many(pair.user.domid, [page.pfn for page in pages])
    mappings = mapped(pair.user.grants.map(pair.granter.domid, references))
    assert pair.user.grants.joined(mappings) == [mapping.page for mapping in mappings]
    assert pair.user.grants.joined([]) == []
    pair.user.grants.unmap(mappings)


def test_pages_side_by_side_are_joined_where_the_memory_has_them_so(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = pair.granter.pages.allocate(4)
    references = pair.granter.grants.grant_many(pair.user.domid, range(pages.pfn, pages.pfn + 4))
    mappings = mapped(pair.user.grants.map(pair.granter.domid, references))
    first = mappings[0].pfn

    class Flat:
        """What a process sees: its frame numbers are its addresses."""

        def span(self, pfn: int, count: int) -> memoryview:
            return pages.view[(pfn - first) * 4096 : (pfn - first + count) * 4096]

    for index in range(4):
        pages.page(index)[:] = bytes([index]) * 4096
    monkeypatch.setattr(pair.user.grants, "_memory", Flat())
    order = [1, 2, 3, 0, 0, 1, 3]
    joined = pair.user.grants.joined([mappings[index] for index in order])
    assert b"".join(joined) == b"".join(bytes([index]) * 4096 for index in order)
    assert [len(view) // 4096 for view in joined] == [3, 1, 2, 1]
    monkeypatch.undo()
    pair.user.grants.unmap(mappings)


def test_releasing_a_mapping_leaves_the_page_to_others_who_look_at_it(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference]))
    mapping.release()
    assert len(pair.user.memory.page(mapping.pfn)) == 4096
    assert bytes(pair.user.memory.page(mapping.pfn)[:1]) == b"\0"


def test_a_view_cannot_be_used_after_unmapping(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference]))
    pair.user.grants.unmap([mapping])
    with pytest.raises(ValueError, match="released"):
        bytes(mapping.page)


def test_a_mapping_that_is_worked_on_is_not_undone(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference]))
    held = PickleBuffer(mapping.page)  # as a system call in another thread would hold it
    with pytest.raises(MappingInUse) as caught:
        pair.user.grants.unmap([mapping])
    assert caught.value.mapping is mapping
    held.release()
    assert pair.granter.grants.is_mapped(reference)
    pair.user.grants.unmap([mapping])
    assert not pair.granter.grants.is_mapped(reference)


def test_unmapping_twice_names_the_mapping(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference]))
    pair.user.grants.unmap([mapping])
    with pytest.raises(UnmapFailed) as caught:
        pair.user.grants.unmap([mapping])
    ((found, status),) = caught.value.failed
    assert found is mapping
    assert status < GNTST_okay


def test_a_mapped_page_is_not_taken_back(pair: Pair) -> None:
    """XSA-396: ending is one atomic step that fails while the peer uses the page."""
    pages = pair.granter.pages.allocate()
    reference = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, [reference]))
    with pytest.raises(StillMapped) as caught:
        pair.granter.grants.end(reference)
    assert (caught.value.reference, caught.value.domid, caught.value.pfn) == (
        reference,
        pair.user.domid,
        pages.pfn,
    )
    pair.user.grants.unmap([mapping])
    pair.granter.grants.end(reference)
    (gone,) = pair.user.grants.map(pair.granter.domid, [reference])
    assert isinstance(gone, GrantError)


@pytest.mark.parametrize("reference", [0, 8, 4000])
def test_ending_what_was_not_granted_is_misuse(pair: Pair, reference: int) -> None:
    with pytest.raises(KernelMisuse):
        pair.granter.grants.end(reference)


def test_reserved_references_are_the_toolstacks(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    references = [pair.granter.grants.grant(1, pages.pfn) for _ in range(600)]
    assert min(references) == GNTTAB_NR_RESERVED_ENTRIES
    assert len(set(references)) == 600
    assert references == sorted(references)


def test_the_table_grows_to_its_limit_and_no_further(pair: Pair) -> None:
    pages = pair.granter.pages.allocate()
    capacity = pair.granter.platform.domain.traits.max_grant_frames * ENTRIES_PER_FRAME
    usable = capacity - GNTTAB_NR_RESERVED_ENTRIES
    first = pair.granter.grants.grant_many(1, [pages.pfn] * (usable - 1))
    with pytest.raises(OutOfGrants) as caught:
        pair.granter.grants.grant_many(1, [pages.pfn] * 2)
    assert (caught.value.wanted, caught.value.capacity) == (2, capacity)
    last = pair.granter.grants.grant(1, pages.pfn)
    assert len({*first, last}) == usable
    with pytest.raises(OutOfGrants):
        pair.granter.grants.grant(1, pages.pfn)
    pair.granter.grants.end(last)
    assert pair.granter.grants.grant(1, pages.pfn) == last


def test_more_references_than_arguments_fit(pair: Pair) -> None:
    """Arrays that are larger than the argument pages go in several hypercalls, without anybody noticing."""
    pages = pair.granter.pages.allocate(700)
    references = pair.granter.grants.grant_many(pair.user.domid, range(pages.pfn, pages.pfn + 700))
    before = len(pair.user.platform.calls)
    mappings = mapped(pair.user.grants.map(pair.granter.domid, references))
    assert len(pair.user.platform.calls) == before + 2
    for index, mapping in enumerate(mappings):
        mapping.page[0] = index & 0xFF
    assert [pages.page(index)[0] for index in range(700)] == [index & 0xFF for index in range(700)]
    pair.user.grants.unmap(mappings)
    assert not any(pair.granter.grants.is_mapped(reference) for reference in references)


def test_copying(pair: Pair) -> None:
    source = pair.granter.pages.allocate()
    source.view[10:15] = b"bytes"
    reference = pair.granter.grants.grant(pair.user.domid, source.pfn, readonly=True)
    target = pair.user.pages.allocate()
    there = CopyEnd(pair.granter.domid, reference, 10, by_reference=True)
    here = CopyEnd(DOMID_SELF, target.pfn, 100, by_reference=False)
    statuses = pair.user.grants.copy(
        [CopyOp(there, here, 5), CopyOp(here, there, 5), CopyOp(there._replace(offset=4090), here, 100)]
    )
    assert statuses[0] == GNTST_okay
    assert statuses[1] < GNTST_okay
    assert statuses[2] < GNTST_okay
    assert bytes(target.view[100:105]) == b"bytes"


def test_many_copies(pair: Pair) -> None:
    source = pair.granter.pages.allocate()
    source.view[:] = bytes(range(256)) * 16
    reference = pair.granter.grants.grant(pair.user.domid, source.pfn)
    target = pair.user.pages.allocate()
    operations = [
        CopyOp(
            CopyEnd(pair.granter.domid, reference, offset, by_reference=True),
            CopyEnd(DOMID_SELF, target.pfn, offset, by_reference=False),
            8,
        )
        for offset in range(0, 4096, 8)
    ]
    assert pair.user.grants.copy(operations) == [GNTST_okay] * 512
    assert bytes(target.view) == bytes(source.view)


def test_retired_pages_wait_until_the_peer_lets_go(pair: Pair) -> None:
    pages = pair.granter.pages.allocate(2)
    references = pair.granter.grants.grant_many(pair.user.domid, [pages.pfn, pages.pfn + 1])
    (mapping,) = mapped(pair.user.grants.map(pair.granter.domid, references[:1]))
    free = pair.granter.pages.free_pages
    assert not pair.granter.grants.retire(references, pages)
    assert pair.granter.pages.free_pages == free
    with pytest.raises(KernelMisuse):
        pair.granter.grants.end(references[1])
    pair.user.grants.unmap([mapping])
    other = pair.granter.pages.allocate()
    assert pair.granter.grants.retire([pair.granter.grants.grant(pair.user.domid, other.pfn)], other)
    assert pair.granter.pages.free_pages == free + 2
    assert pair.granter.grants.leaks() == []


def test_leaks_are_named(pair: Pair) -> None:
    pages = pair.granter.pages.allocate(2)
    with owned_by("device/vbd/51712"):
        kept = pair.granter.grants.grant(pair.user.domid, pages.pfn)
    forgotten = pair.granter.grants.grant(pair.user.domid, pages.pfn + 1, readonly=True)
    mapped(pair.user.grants.map(pair.granter.domid, [kept]))
    held, never_used = pair.granter.grants.leaks()
    assert held.entry == (kept, pair.user.domid, pages.pfn, False, "device/vbd/51712")
    assert held.mapped
    assert never_used.entry.reference == forgotten
    assert not never_used.mapped
    assert str(held) == (
        f"grant {kept}: pfn {pages.pfn:#x} writable for domain {pair.user.domid} by device/vbd/51712, "
        "still mapped there"
    )
    assert str(never_used).endswith("by kernel, never ended")


def test_a_granter_that_ends_between_does_not_confuse_the_status(pair: Pair) -> None:
    (result,) = pair.user.grants.map(pair.granter.domid, [0])
    assert isinstance(result, GrantError)
    assert result.status in (GNTST_bad_gntref, GNTST_general_error)
