"""Which pages stay mapped: bounded, the least recently used first, none that is in use, all gone at the end."""

from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from backends.block.pages import GrantedPages, Lease, PageBudget
from kernel.grants import Grants
from tests.backends.block.granting import FakeGrants

PAGES = 64


def granted(grants: FakeGrants, limit: int, budget: int = 1000) -> GrantedPages:
    return GrantedPages(cast(Grants, grants), 1, PageBudget(budget), limit)


def use(pages: GrantedPages, *grefs: int, writes: bool = False) -> None:
    pages.lease([(gref, writes) for gref in grefs]).release()


def test_persistent_pages_are_mapped_once() -> None:
    grants = FakeGrants(PAGES)
    pages = granted(grants, limit=16)
    use(pages, 1, 2, 3)
    use(pages, 3, 2, 1, writes=True)
    assert grants.calls == [("map", 3)]
    assert pages.recent.keys() == {1, 2, 3}
    assert pages.persistent_pages == 3
    pages.close()
    assert grants.mapped == {}


def test_without_persistence_pages_are_mapped_for_their_lease_with_the_least_right() -> None:
    grants = FakeGrants(PAGES)
    pages = granted(grants, limit=0)
    lease = pages.lease([(1, True), (2, False), (2, True), (1, True)])
    assert {gref: sorted(modes) for gref, modes in grants.mapped.items()} == {1: [True], 2: [False, True]}
    found = lease.page(1, writes=True)
    assert found is not None
    assert found.readonly
    lease.release()
    assert grants.mapped == {}
    assert grants.calls == [("map", 1), ("map", 2), ("unmap", 3)]


def test_a_page_that_cannot_be_mapped_spoils_nothing_else() -> None:
    for position in range(4):
        for limit in (0, 16):
            grants = FakeGrants(PAGES)
            grants.bad = {position}
            pages = granted(grants, limit)
            lease = pages.lease([(gref, False) for gref in range(4)])
            for gref in range(4):
                assert (lease.page(gref, writes=False) is None) is (gref == position)
            assert pages.map_failures == 1
            lease.release()
            pages.close()
            assert grants.mapped == {}


def test_a_hypercall_that_fails_is_as_if_nothing_were_granted() -> None:
    grants = FakeGrants(PAGES)
    grants.fails = True
    for limit in (0, 16):
        pages = granted(grants, limit)
        lease = pages.lease([(1, False), (2, True)])
        assert lease.page(1, writes=False) is None
        lease.release()
        pages.close()


def test_the_least_recently_used_goes_first() -> None:
    grants = FakeGrants(PAGES)
    pages = granted(grants, limit=4)
    use(pages, 1, 2, 3, 4)
    use(pages, 5)  # the generations turn: one of 1 to 4 goes
    assert len(grants.mapped) == 4
    survivors = set(grants.mapped) - {5}
    use(pages, *survivors)
    used = min(survivors)
    use(pages, 6)
    use(pages, used)
    use(pages, 7)
    assert len(grants.mapped) == 4
    assert {6, 7} <= grants.mapped.keys()


def test_a_page_in_use_is_not_unmapped() -> None:
    grants = FakeGrants(PAGES)
    pages = granted(grants, limit=4)
    held = pages.lease([(1, True)])
    page = held.page(1, writes=True)
    assert page is not None
    for gref in range(2, 40):
        use(pages, gref)
    page[:4] = b"kept"
    assert grants.memory[1][:4] == b"kept"
    held.release()
    pages.close()
    with pytest.raises(ValueError, match="released"):
        page[:4] = b"gone"


def test_the_budget_is_shared_and_given_back() -> None:
    grants = FakeGrants(PAGES)
    budget = PageBudget(5)
    first = GrantedPages(cast(Grants, grants), 1, budget, 16)
    second = GrantedPages(cast(Grants, grants), 1, budget, 16)
    use(first, 1, 2, 3)
    use(second, 4, 5, 6)
    assert (first.persistent_pages, second.persistent_pages, budget.free) == (3, 2, 0)
    first.close()
    assert budget.free == 3
    use(second, 7, 8, 9)
    assert (second.persistent_pages, budget.free) == (5, 0)
    second.close()
    assert budget.free == 5


class Leases(RuleBasedStateMachine):
    """Leases of all kinds, held and released in any order."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.grants = FakeGrants(40)
        self.grants.bad = {7, 21}
        self.budget = PageBudget(10)
        self.pages = GrantedPages(cast(Grants, self.grants), 1, self.budget, 12)
        self.held = 0

    @rule(target=leases, wanted=st.lists(st.tuples(st.integers(0, 44), st.booleans()), max_size=20))
    def take(self, wanted: list[tuple[int, bool]]) -> tuple[Lease, list[tuple[int, bool]]]:
        lease = self.pages.lease(wanted)
        self.held += 1
        return lease, wanted

    @rule(taken=leases)
    def look(self, taken: tuple[Lease, list[tuple[int, bool]]]) -> None:
        """Every page of a lease that is held is the right one, and mapped."""
        lease, wanted = taken
        for gref, writes in wanted:
            page = lease.page(gref, writes=writes)
            if gref >= 40 or gref in self.grants.bad:
                assert page is None
            else:
                assert page is not None
                self.grants.memory[gref][0] = gref
                assert page[0] == gref

    @rule(taken=consumes(leases))
    def give_back(self, taken: tuple[Lease, list[tuple[int, bool]]]) -> None:
        taken[0].release()
        self.held -= 1

    @invariant()
    def within_bounds(self) -> None:
        assert self.pages.persistent_pages <= 10
        assert self.pages.persistent_pages + self.budget.free == 10
        if not self.held:
            assert not self.pages._leases
            assert sum(map(len, self.grants.mapped.values())) == self.pages.persistent_pages

    def teardown(self) -> None:
        if not self.held:
            self.pages.close()
            assert self.grants.mapped == {}
            assert self.budget.free == 10


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
