"""The transitions of one shared entry, and what a granter can do in between."""

import struct

import pytest

from hypervisor.abi.grant_table import (
    GTF_PAT,
    GNTST_bad_gntref,
    GNTST_general_error,
    GTF_accept_transfer,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
    grant_entry_v1,
)
from hypervisor.errors import BadGrantReference
from hypervisor.grant_entries import CLAIM_ATTEMPTS, ENTRIES_PER_FRAME, GrantEntries
from ringbuffers.atomics import AtomicWords

USER = 7

exchange = AtomicWords.compare_exchange


def table(
    flags: int, domid: int = USER, frame: int = 0x1234, reference: int = 5
) -> tuple[GrantEntries, memoryview]:
    """A table of two frames with one entry, and its bytes."""
    data = bytearray(8192)
    data[reference * 8 : reference * 8 + 8] = grant_entry_v1(flags, domid, frame).pack()
    view = memoryview(data)
    entries = GrantEntries(3)
    entries.add_frame(view[:4096])
    entries.add_frame(view[4096:])
    return entries, view


@pytest.mark.parametrize(
    ("flags", "readonly", "after"),
    [
        (GTF_permit_access, True, GTF_permit_access | GTF_reading),
        (GTF_permit_access, False, GTF_permit_access | GTF_reading | GTF_writing),
        (GTF_permit_access | GTF_readonly, True, GTF_permit_access | GTF_readonly | GTF_reading),
        (GTF_permit_access | GTF_PAT, True, GTF_permit_access | GTF_PAT | GTF_reading),
    ],
)
def test_a_claim_sets_the_in_use_bits_and_nothing_else(flags: int, readonly: bool, after: int) -> None:
    entries, view = table(flags)
    entries.claim(5, USER, readonly=readonly, pinned=False)
    assert bytes(view[40:48]) == grant_entry_v1(after, USER, 0x1234).pack()
    assert not any(view[:40])
    assert not any(view[48:])


@pytest.mark.parametrize(
    ("flags", "domid", "readonly"),
    [
        (GTF_invalid, USER, True),
        (GTF_accept_transfer, USER, True),
        (GTF_transitive, USER, True),
        (GTF_permit_access | GTF_sub_page, USER, True),
        (GTF_permit_access, USER + 1, True),
        (GTF_permit_access | GTF_readonly, USER, False),
    ],
)
def test_a_claim_that_is_not_permitted_changes_nothing(flags: int, domid: int, readonly: bool) -> None:
    entries, view = table(flags, domid)
    before = bytes(view)
    with pytest.raises(BadGrantReference) as refused:
        entries.claim(5, USER, readonly=readonly, pinned=False)
    assert refused.value.status == GNTST_general_error
    assert (refused.value.domid, refused.value.reference) == (3, 5)
    assert bytes(view) == before


def test_while_it_is_pinned_only_readonly_stands_against_a_claim() -> None:
    entries, view = table(GTF_invalid | GTF_reading, USER + 1)
    entries.claim(5, USER, readonly=False, pinned=True)
    assert bytes(view[40:44]) == struct.pack("<HH", GTF_reading | GTF_writing, USER + 1)
    entries, _view = table(GTF_permit_access | GTF_readonly | GTF_reading)
    with pytest.raises(BadGrantReference):
        entries.claim(5, USER, readonly=False, pinned=True)


def test_dropping_clears_only_what_it_names() -> None:
    entries, view = table(GTF_permit_access | GTF_readonly | GTF_reading | GTF_writing)
    entries.drop(5, GTF_writing)
    assert entries.flags(5) == GTF_permit_access | GTF_readonly | GTF_reading
    entries.drop(5, GTF_reading | GTF_writing)
    assert bytes(view[40:48]) == grant_entry_v1(GTF_permit_access | GTF_readonly, USER, 0x1234).pack()


@pytest.mark.parametrize("changes", range(CLAIM_ATTEMPTS + 2))
def test_a_granter_who_keeps_changing_the_entry_is_given_up_on(
    changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CLAIM_ATTEMPTS == 5  # as Xen has it
    entries, view = table(GTF_permit_access)
    words = view.cast("I")
    attempts = 0

    def race(target: AtomicWords, index: int, expected: int, new: int) -> bool:
        nonlocal attempts
        attempts += 1
        if attempts <= changes:
            words[10] ^= GTF_PAT
        return exchange(target, index, expected, new)

    monkeypatch.setattr(AtomicWords, "compare_exchange", race)
    if changes < CLAIM_ATTEMPTS:
        entries.claim(5, USER, readonly=True, pinned=False)
        assert attempts == changes + 1
        assert entries.flags(5) & GTF_reading
    else:
        with pytest.raises(BadGrantReference) as refused:
            entries.claim(5, USER, readonly=True, pinned=False)
        assert refused.value.status == GNTST_general_error
        assert attempts == CLAIM_ATTEMPTS
        assert not entries.flags(5) & GTF_reading


def test_a_change_that_takes_the_permission_away_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, view = table(GTF_permit_access)
    words = view.cast("I")

    def revoke_first(target: AtomicWords, index: int, expected: int, new: int) -> bool:
        words[10] = 0
        return exchange(target, index, expected, new)

    monkeypatch.setattr(AtomicWords, "compare_exchange", revoke_first)
    with pytest.raises(BadGrantReference):
        entries.claim(5, USER, readonly=True, pinned=False)
    assert words[10] == 0


def test_the_last_entry_of_each_frame_is_its_own() -> None:
    for reference in (ENTRIES_PER_FRAME - 1, ENTRIES_PER_FRAME, 2 * ENTRIES_PER_FRAME - 1):
        entries, view = table(GTF_permit_access, frame=0xFFFF_FFFF, reference=reference)
        entries.check(reference)
        assert entries.frame(reference) == 0xFFFF_FFFF
        entries.claim(reference, USER, readonly=False, pinned=False)
        assert view[reference * 8] == GTF_permit_access | GTF_reading | GTF_writing
    with pytest.raises(BadGrantReference) as refused:
        entries.check(2 * ENTRIES_PER_FRAME)
    assert refused.value.status == GNTST_bad_gntref


def test_swapping_exchanges_whole_entries() -> None:
    entries, view = table(GTF_permit_access | GTF_readonly, USER, 0xAAAA, reference=5)
    entries.write(ENTRIES_PER_FRAME, 9, 0xBBBB, GTF_permit_access)
    entries.swap(5, ENTRIES_PER_FRAME)
    assert grant_entry_v1.unpack(view, 40) == grant_entry_v1(GTF_permit_access, 9, 0xBBBB)
    assert grant_entry_v1.unpack(view, 4096) == grant_entry_v1(GTF_permit_access | GTF_readonly, USER, 0xAAAA)
