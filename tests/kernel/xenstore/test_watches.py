"""What a watch remembers is bounded, whatever a peer does to the nodes below it (XSA-349)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.xenstore import StoreConnectionBroken, Watch
from kernel.xenstore.watches import MAX_PENDING_PATHS

pytestmark = pytest.mark.anyio


@given(numbers=st.lists(st.integers(0, 2 * MAX_PENDING_PATHS), max_size=4 * MAX_PENDING_PATHS))
def test_it_never_remembers_more_than_its_bound_and_never_loses_a_change(numbers: list[int]) -> None:
    watch = Watch("w", "t", None)
    for number in numbers:
        watch.fire(f"w/{number}")
        assert len(watch._paths) <= MAX_PENDING_PATHS
    seen = set(watch._paths)
    assert all("w" in seen or f"w/{number}" in seen for number in numbers)


async def test_a_path_is_remembered_once(anyio_backend: str) -> None:
    watch = Watch("w", "t", None)
    for _ in range(1000):
        watch.fire("w/a")
        watch.fire("w/b")
    assert await watch.batch() == ["w/a", "w/b"]


async def test_too_many_paths_become_the_watched_one(anyio_backend: str) -> None:
    watch = Watch("w", "t", None)
    for number in range(MAX_PENDING_PATHS + 1):
        watch.fire(f"w/{number}")
    assert await watch.batch() == ["w"]


async def test_changes_of_before_the_end_are_still_seen(anyio_backend: str) -> None:
    watch = Watch("w", "t", None)
    watch.fire("w/a")
    watch.end(StoreConnectionBroken("gone"))
    changes = aiter(watch)
    assert await anext(changes) == "w/a"
    with pytest.raises(StoreConnectionBroken):
        await anext(changes)
    with pytest.raises(StoreConnectionBroken):
        await watch.batch()
