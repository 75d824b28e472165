"""A ring for the backend: what it takes is given back, also if it cannot be made."""

from pathlib import Path

import pytest

from frontends.block.granted_ring import GrantedRing
from kernel.errors import OutOfGrants, OutOfPages
from tests.rig import running_rig

pytestmark = pytest.mark.anyio


async def test_it_is_made_and_given_back(tmp_path: Path) -> None:
    async with running_rig(tmp_path) as rig, rig.guest() as guest:
        kernel = guest.kernel
        free = kernel.pages.free_pages
        ring = GrantedRing(kernel, 0, 2, lambda: None)
        assert (ring.ring.size, len(ring.grefs)) == (128, 4)
        assert {entry.domid for entry in kernel.grants.ledger} == {0}
        ring.close()
        assert len(kernel.grants.ledger) == 0
        assert kernel.pages.free_pages == free
    assert guest.kernel.leaks == []


@pytest.mark.parametrize("failing", ["pages", "grants", "port"])
async def test_nothing_is_held_of_one_that_could_not_be_made(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfGrants(4, 0)

    async with running_rig(tmp_path) as rig, rig.guest() as guest:
        kernel = guest.kernel
        free = kernel.pages.free_pages
        if failing == "grants":
            monkeypatch.setattr(kernel.grants, "grant_many", refuse)
        elif failing == "port":
            monkeypatch.setattr(kernel.events, "alloc_unbound", refuse)
        with pytest.raises(OutOfPages if failing == "pages" else OutOfGrants):
            GrantedRing(kernel, 0, 16 if failing == "pages" else 2, lambda: None)
        assert len(kernel.grants.ledger) == 0
        assert kernel.pages.free_pages == free
    assert guest.kernel.leaks == []
