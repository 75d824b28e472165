"""Handles: unique while they live, limited, and slow to come back."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.maptrack import HANDLES_PER_FRAME, Mapping, MapTrack


def mapping(number: int) -> Mapping:
    """Something to track; the maptrack does not look inside."""
    return cast(Mapping, ("mapping", number))


def test_handles_start_at_zero_and_end_at_the_limit() -> None:
    track = MapTrack(1)
    handles = [track.add(mapping(number)) for number in range(HANDLES_PER_FRAME)]
    assert handles == list(range(HANDLES_PER_FRAME))
    assert track.full
    assert track.get(HANDLES_PER_FRAME) is None
    assert track.get(0xFFFF_FFFF) is None
    track.remove(17)
    assert not track.full
    assert track.get(17) is None
    assert track.add(mapping(999)) == 17
    assert track.full


def test_without_frames_there_are_no_handles() -> None:
    assert MapTrack(0).full


def test_the_handle_free_for_longest_is_used_first() -> None:
    track = MapTrack(1)
    for number in range(4):
        track.add(mapping(number))
    for handle in (2, 0, 3):
        track.remove(handle)
    assert [track.add(mapping(9)) for _ in range(4)] == [2, 0, 3, 4]


@given(st.lists(st.one_of(st.none(), st.integers(0, 300)), max_size=400))
def test_handles_are_unique_and_none_is_lost(steps: list[int | None]) -> None:
    """None adds; a number removes one of the live handles."""
    track = MapTrack(1)
    live: dict[int, Mapping] = {}
    for count, step in enumerate(steps):
        if step is None:
            assert track.full == (len(live) == HANDLES_PER_FRAME)
            if not track.full:
                added = mapping(count)
                handle = track.add(added)
                assert handle not in live
                assert handle < track.limit
                live[handle] = added
        elif live:
            handle = sorted(live)[step % len(live)]
            assert track.get(handle) is live.pop(handle)
            track.remove(handle)
    assert sorted(map(id, track)) == sorted(map(id, live.values()))
    popped = []
    while not track.emptied:
        taken = track.pop()
        if taken is not None:
            popped.append(taken)
    assert sorted(map(id, popped)) == sorted(map(id, live.values()))
