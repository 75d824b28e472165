"""Grants of one kernel and mappings of another, in any order, against dictionaries."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from kernel.errors import KernelMisuse, StillMapped
from kernel.mapping import Mapping
from kernel.pages import Pages
from tests.kernel.pairs import Pair


class GrantMachine(RuleBasedStateMachine):
    """Grants of one kernel and mappings of another, against dictionaries."""

    granted = Bundle("granted")
    mappings = Bundle("mappings")

    @initialize()
    def build(self) -> None:
        self.pair = Pair()
        self.granter = self.pair.granter.grants
        self.user = self.pair.user.grants
        self.pages: dict[int, tuple[Pages, bool]] = {}
        self.in_use: dict[int, int] = {}
        self.free_at_start = self.pair.granter.pages.free_pages

    @rule(target=granted, readonly=st.booleans())
    def grant(self, readonly: bool) -> int:
        pages = self.pair.granter.pages.allocate()
        assert not any(pages.view)
        reference = self.granter.grant(self.pair.user.domid, pages.pfn, readonly=readonly)
        assert reference not in self.pages
        pages.view[:2] = reference.to_bytes(2)
        self.pages[reference] = (pages, readonly)
        return reference

    @rule(target=mappings, references=st.lists(granted, max_size=6), readonly=st.booleans())
    def map(self, references: list[int], readonly: bool) -> object:
        made = []
        results = self.user.map(self.pair.granter.domid, references, readonly=readonly)
        for reference, result in zip(references, results):
            allowed = reference in self.pages and (readonly or not self.pages[reference][1])
            assert isinstance(result, Mapping) == allowed
            if isinstance(result, Mapping):
                assert bytes(result.page[:2]) == reference.to_bytes(2)
                self.in_use[reference] = self.in_use.get(reference, 0) + 1
                made.append(result)
        return multiple(*made)

    @rule(gone=st.lists(consumes(mappings), max_size=4))
    def unmap(self, gone: list[Mapping]) -> None:
        self.user.unmap(gone)
        for mapping in gone:
            self.in_use[mapping.reference] -= 1

    @rule(reference=granted)
    def end(self, reference: int) -> None:
        if reference not in self.pages:
            with pytest.raises(KernelMisuse):
                self.granter.end(reference)
        elif self.in_use.get(reference):
            with pytest.raises(StillMapped):
                self.granter.end(reference)
        else:
            self.granter.end(reference)
            self.pair.granter.pages.free(self.pages.pop(reference)[0])

    @invariant()
    def the_book_agrees(self) -> None:
        if not hasattr(self, "pair"):
            return
        entries = {entry.reference: entry for entry in self.granter.ledger}
        assert set(entries) == set(self.pages)
        for reference, entry in entries.items():
            assert (entry.pfn, entry.readonly) == (self.pages[reference][0].pfn, self.pages[reference][1])
            assert self.granter.is_mapped(reference) == bool(self.in_use.get(reference))
        assert self.pair.granter.pages.free_pages == self.free_at_start - len(self.pages)


TestGrantMachine = GrantMachine.TestCase
