"""What processes do to words at the same time: each change is one that must not be lost."""

from ringbuffers.atomics import AtomicWords

ROUNDS = 400_000
"""enough for two processes to meet many times, wherever they began"""
WORD, LOW = 7, 14
"""a 32-bit word, and the index of its lower half"""
BIT = 8
ABOVE = 16
"""what is added where somebody else has BIT"""


def _count(words: AtomicWords, index: int, step: int) -> None:
    modulus = 1 << 8 * words.words.itemsize
    for _ in range(ROUNDS):
        while not words.compare_exchange(index, seen := words.words[index], (seen + step) % modulus):
            pass


def count_in_word(page: memoryview) -> None:
    """Count in the word."""
    _count(AtomicWords(page.cast("I")), WORD, ABOVE)


def count_in_half(page: memoryview) -> None:
    """Count in the lower half, alone or with others."""
    _count(AtomicWords(page.cast("H")), LOW, ABOVE)


def count_high_in_word(page: memoryview) -> None:
    """Count in the upper half, by way of the word."""
    _count(AtomicWords(page.cast("I")), WORD, 1 << 16)


def flip_in_word(page: memoryview) -> None:
    """Set BIT in the lower half and clear it in the word: nobody else touches it."""
    _flip(AtomicWords(page.cast("H")), AtomicWords(page.cast("I")), WORD)


def flip_in_half(page: memoryview) -> None:
    """Set BIT in the lower half and clear it there."""
    halves = AtomicWords(page.cast("H"))
    _flip(halves, halves, LOW)


def _flip(halves: AtomicWords, words: AtomicWords, index: int) -> None:
    for _ in range(ROUNDS):
        while not halves.compare_exchange(LOW, seen := halves.words[LOW], seen | BIT):
            pass
        assert not seen & BIT
        words.clear_bits(index, BIT)
        assert not halves.words[LOW] & BIT
