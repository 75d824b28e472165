"""Shared entries of which granter and hypervisor are in processes of their own."""

from hypervisor.abi.grant_table import GTF_reading, GTF_writing, grant_entry_v1
from hypervisor.errors import BadGrantReference
from hypervisor.grant_entries import GrantEntries
from tests.hypervisor.granting_process import PFN, REFERENCE, USED, USER, grant_and_end
from tests.two_processes import at_the_same_time, is_other_at_work, shared_page


def use_what_is_granted(page: memoryview) -> None:
    """Claim and drop for as long as there is somebody who grants."""
    entries = GrantEntries(3)
    entries.add_frame(page)
    uses = 0
    while is_other_at_work(page):
        readonly = uses % 2 == 0
        try:
            entries.claim(REFERENCE, USER, readonly=readonly, pinned=False)
        except BadGrantReference:
            continue
        page[USED] = 1
        assert entries.frame(REFERENCE) == PFN
        assert entries.flags(REFERENCE) & GTF_reading
        page[USED] = 0
        entries.drop(REFERENCE, GTF_reading if readonly else GTF_reading | GTF_writing)
        uses += 1
    assert uses


def test_a_grant_ends_only_when_nobody_uses_it() -> None:
    """XSA-396: neither side believes what the other one has overtaken."""
    with shared_page() as (fd, page):
        at_the_same_time(fd, page, use_what_is_granted, grant_and_end)
        assert grant_entry_v1.unpack(page, REFERENCE * grant_entry_v1.size) == grant_entry_v1(0, USER, PFN)
