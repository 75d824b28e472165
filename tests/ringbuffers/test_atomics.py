import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers import atomics
from ringbuffers.atomics import (
    UnsupportedMachine,
    compare_exchange,
    fence,
    fetch_and,
    fetch_or,
    require_store_ordering,
)

WIDTHS = {"H": 16, "I": 32, "Q": 64}
cells = st.sampled_from("HIQ").flatmap(
    lambda code: st.tuples(
        st.just(code), st.integers(0, 2 ** WIDTHS[code] - 1), st.integers(0, 2 ** WIDTHS[code] - 1)
    )
)


def words_of(code: str, value: int) -> memoryview:
    words = memoryview(bytearray(64)).cast(code)
    words[3] = value
    return words


@given(cells)
def test_compare_exchange_stores_only_on_a_match(cell: tuple[str, int, int]) -> None:
    code, old, new = cell
    words = words_of(code, old)
    assert not compare_exchange(words, 3, old ^ 1, new)
    assert words[3] == old
    assert compare_exchange(words, 3, old, new)
    assert words[3] == new
    assert sum(words) == new


@given(cells)
def test_fetch_or_sets_bits_and_returns_the_old_value(cell: tuple[str, int, int]) -> None:
    code, old, bits = cell
    words = words_of(code, old)
    assert fetch_or(words, 3, bits) == old
    assert words[3] == old | bits


@given(cells)
def test_fetch_and_keeps_bits_and_returns_the_old_value(cell: tuple[str, int, int]) -> None:
    code, old, bits = cell
    words = words_of(code, old)
    assert fetch_and(words, 3, bits) == old
    assert words[3] == old & bits


def test_a_fence_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a fork or an interrupt inside another fence, which leave the lock taken for ever."""
    taken = threading.Lock()
    taken.acquire()
    monkeypatch.setattr(atomics, "_acquire", taken.acquire)
    monkeypatch.setattr(atomics, "_release", taken.release)
    fence()
    assert taken.locked()


def test_a_fence_leaves_its_lock_free() -> None:
    fence()
    assert not atomics._lock.locked()


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le", ""])
def test_machines_that_reorder_stores_are_refused(machine: str) -> None:
    with pytest.raises(UnsupportedMachine, match="x86-64") as caught:
        require_store_ordering(machine)
    assert caught.value.machine == machine


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_64_is_accepted(machine: str) -> None:
    require_store_ordering(machine)
