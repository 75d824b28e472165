from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.indices import distance, wrap

indices = st.integers(0, 2**32 - 1)


@given(indices, st.integers(0, 2**32 - 1))
def test_distance_undoes_an_advance_across_the_wrap(start: int, steps: int) -> None:
    assert distance(wrap(start + steps), start) == steps


@given(st.integers())
def test_wrap_is_modulo_2_to_the_32(value: int) -> None:
    assert wrap(value) == value % 2**32


@given(indices, st.integers(1, 2**32 - 1))
def test_an_index_that_went_back_is_far_ahead(start: int, steps: int) -> None:
    assert distance(wrap(start - steps), start) == 2**32 - steps
