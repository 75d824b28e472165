import errno
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable
from ctypes import addressof, c_char
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers import atomics
from ringbuffers.atomics import (
    AtomicWords,
    UnsupportedMachine,
    fence,
    plain_fetch_and,
    plain_fetch_or,
    require_store_ordering,
)
from ringbuffers.errors import RingMisuse
from ringbuffers.locked_instructions import locked_instructions
from tests.ringbuffers import hammers
from tests.two_processes import at_the_same_time, shared_page

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
def test_plain_fetch_or_sets_bits_and_returns_the_old_value(cell: tuple[str, int, int]) -> None:
    code, old, bits = cell
    words = words_of(code, old)
    assert plain_fetch_or(words, 3, bits) == old
    assert words[3] == old | bits


@given(cells)
def test_plain_fetch_and_keeps_bits_and_returns_the_old_value(cell: tuple[str, int, int]) -> None:
    code, old, bits = cell
    words = words_of(code, old)
    assert plain_fetch_and(words, 3, bits) == old
    assert words[3] == old & bits


# Atomic words

SIZES = {"H": 2, "I": 4}
updates = st.sampled_from("HI").flatmap(
    lambda code: st.tuples(
        st.just(code),
        st.integers(0, 4096 // SIZES[code] - 1),
        st.integers(0, 2 ** WIDTHS[code] - 1),
        st.integers(0, 2 ** WIDTHS[code] - 1),
    )
)
PAGE = memoryview(mmap.mmap(-1, 3 * 4096))[4096:8192]
"""a page between two others"""


def ends_of_a_page(code: str) -> list[int]:
    return [0, 1, 4096 // SIZES[code] - 1]


def neighbours(code: str, index: int) -> bytes:
    """All of the page but the word."""
    at = index * SIZES[code]
    return bytes(PAGE[:at]) + bytes(PAGE[at + SIZES[code] :])


@given(updates)
def test_compare_exchange_stores_only_on_a_match(update: tuple[str, int, int, int]) -> None:
    code, index, old, new = update
    words = AtomicWords(PAGE.cast(code))
    words.words[index] = old
    around = neighbours(code, index)
    for bit in range(WIDTHS[code]):
        assert words.compare_exchange(index, old ^ 1 << bit, new) is False
        assert words.words[index] == old
    assert words.compare_exchange(index, old, new) is True
    assert words.words[index] == new
    assert neighbours(code, index) == around


@given(updates)
def test_clear_bits_clears_these_alone(update: tuple[str, int, int, int]) -> None:
    code, index, old, bits = update
    words = AtomicWords(PAGE.cast(code))
    words.words[index] = old
    around = neighbours(code, index)
    words.clear_bits(index, bits)
    assert words.words[index] == old & ~bits
    assert neighbours(code, index) == around


@pytest.mark.parametrize("code", "HI")
def test_both_ends_of_a_page(code: str) -> None:
    whole = memoryview(bytearray(b"\xaa" * 3 * 4096))
    words = AtomicWords(whole[4096:8192].cast(code))
    for index in ends_of_a_page(code):
        seen = words.words[index]
        assert words.compare_exchange(index, seen, 2 ** WIDTHS[code] - 1)
        words.clear_bits(index, 2 ** WIDTHS[code] - 1)
        assert words.words[index] == 0
    assert set(whole[:4096]) == set(whole[8192:]) == {0xAA}
    assert bytes(whole[4096:8192]).count(0) == 3 * SIZES[code]


@pytest.mark.parametrize("code", "HI")
@pytest.mark.parametrize("index", [-1, -(2**31), 2**31, 2**32, 2**64])
def test_no_word_beyond_the_page(code: str, index: int) -> None:
    words = AtomicWords(memoryview(bytearray(4096)).cast(code))
    for beyond in (index, 4096 // SIZES[code]):
        with pytest.raises(RingMisuse, match="index"):
            words.compare_exchange(beyond, 0, 1)
        with pytest.raises(RingMisuse, match="index"):
            words.clear_bits(beyond, 1)


@pytest.mark.parametrize(("code", "offset"), [("H", 1), ("I", 1), ("I", 2), ("I", 3)])
def test_words_across_their_alignment_are_refused(code: str, offset: int) -> None:
    with pytest.raises(RingMisuse, match="address"):
        AtomicWords(PAGE[offset : offset + 64].cast(code))


@pytest.mark.parametrize(
    "words",
    [
        memoryview(bytearray(64)),
        memoryview(bytearray(64)).cast("Q"),
        memoryview(bytearray(64)).cast("i"),
        memoryview(bytes(64)).cast("I"),
        memoryview(bytearray(64)).cast("I")[::2],
        memoryview(bytearray(64)).cast("I")[:0],
    ],
    ids=["bytes", "64-bit", "signed", "read-only", "every other", "none"],
)
def test_what_is_no_view_of_shared_words_is_refused(words: memoryview) -> None:
    with pytest.raises(RingMisuse):
        AtomicWords(words)


def test_values_are_taken_modulo_the_size_of_a_word() -> None:
    words = AtomicWords(memoryview(bytearray(64)).cast("H"))
    assert words.compare_exchange(1, 0x1_0000, 0xF_1234)
    assert list(words.words[:3]) == [0, 0x1234, 0]
    words.clear_bits(1, -1)
    assert not any(words.words)


def test_the_memory_stays_as_long_as_the_words() -> None:
    mapping = mmap.mmap(-1, 4096)
    words = AtomicWords(memoryview(mapping).cast("I"))
    with pytest.raises(BufferError):
        mapping.close()
    assert words.compare_exchange(0, 0, 1)
    del words
    mapping.close()


LOW_COUNT = hammers.ROUNDS * hammers.ABOVE
HIGH_COUNT = hammers.ROUNDS % 2**16 << 16


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [
        (hammers.count_in_word, hammers.count_in_word, 2 * LOW_COUNT),
        (hammers.count_in_half, hammers.count_in_half, 2 * LOW_COUNT % 2**16),
        (hammers.count_in_half, hammers.count_high_in_word, HIGH_COUNT + LOW_COUNT % 2**16),
        (hammers.count_high_in_word, hammers.flip_in_word, HIGH_COUNT),
        (hammers.count_in_word, hammers.flip_in_word, LOW_COUNT),
        (hammers.count_in_half, hammers.flip_in_half, LOW_COUNT % 2**16),
    ],
)
def test_processes_lose_no_change_of_each_other(
    here: Callable[[memoryview], None], there: Callable[[memoryview], None], outcome: int
) -> None:
    with shared_page() as (fd, page):
        at_the_same_time(fd, page, here, there)
        words = page.cast("I")
        assert words[hammers.WORD] == outcome
        words[hammers.WORD] = 0
        assert not any(page[:-2])


# The code of the locked instructions


def protection(address: int) -> str:
    """Of the mapping that the address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, protection, *_rest = line.split()
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end:
            return protection
    return "none"


def test_the_code_is_executable_and_not_writable() -> None:
    code = locked_instructions()[4].code
    assert locked_instructions()[2].code is code
    assert protection(addressof(c_char.from_buffer(code))) == "r-xp"


REFUSED = """
import ctypes, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(77)
from ringbuffers.atomics import AtomicWords, fence
from ringbuffers.locked_instructions import NoExecutableMemory
fence()
words = memoryview(bytearray(64)).cast("I")
for _ in range(2):
    try:
        AtomicWords(words)
    except NoExecutableMemory as error:
        print(error.errno, error)
"""


def test_a_system_that_refuses_executable_memory_is_told_of_at_the_first_use() -> None:
    """As hardened systems do, and as a process does that confines itself."""
    done = subprocess.run([sys.executable, "-c", REFUSED], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel refuses no executable memory")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith(f"{errno.EACCES} atomic operations need a page of executable memory")


# Ordering


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
