from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ringbuffers.bytering import ByteRing
from ringbuffers.errors import RingMisuse
from tests.ringbuffers.pairs import STARTS, shared_pages

SIZE = 64
PRODUCER, CONSUMER = 5, 9


def new_ring(start: int, size: int = SIZE) -> tuple[ByteRing, memoryview, memoryview]:
    """(ring, its buffer, the words that hold its indices), both indices at `start`."""
    data = memoryview(bytearray(size))
    words = memoryview(bytearray(64)).cast("I")
    words[PRODUCER] = words[CONSUMER] = start
    return ByteRing(data, words, PRODUCER, CONSUMER), data, words


class ByteRingModel(RuleBasedStateMachine):
    """A byte ring is a queue of at most `size` bytes."""

    @initialize(start=st.sampled_from(STARTS))
    def set_up(self, start: int) -> None:
        self.ring, self.data, self.words = new_ring(start)
        self.start = start
        self.queue: deque[int] = deque()
        self.written = self.taken = 0

    @rule(data=st.binary(max_size=SIZE + 10))
    def write(self, data: bytes) -> None:
        count = self.ring.write(data)
        assert count == min(len(data), SIZE - len(self.queue))
        self.queue.extend(data[:count])
        self.written += count

    @rule(limit=st.none() | st.integers(-1, SIZE + 10))
    def read(self, limit: int | None) -> None:
        data = self.ring.read(limit)
        count = len(self.queue) if limit is None else min(max(limit, 0), len(self.queue))
        assert data == bytes(self.queue.popleft() for _ in range(count))
        self.taken += count

    @invariant()
    def it_agrees_with_the_model(self) -> None:
        assert self.ring.readable == len(self.queue)
        assert self.ring.writable == SIZE - len(self.queue)
        assert (self.ring.written, self.ring.taken) == (self.written, self.taken)
        assert self.words[PRODUCER] == (self.start + self.written) % 2**32
        assert self.words[CONSUMER] == (self.start + self.taken) % 2**32


TestByteRingModel = ByteRingModel.TestCase
TestByteRingModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_the_byte_at_x_of_the_stream_lies_at_x_modulo_the_size(start: int) -> None:
    ring, data, _ = new_ring(start)
    ring.write(bytes(range(40)))
    for number in range(40):
        assert data[(start + number) % 2**32 % SIZE] == number
    assert sum(bytes(data)) == sum(range(40))


def test_only_the_bytes_written_are_touched() -> None:
    ring, data, words = new_ring(SIZE - 3)
    data[:] = b"\xaa" * SIZE
    ring.write(b"12345")
    assert bytes(data) == b"45" + b"\xaa" * (SIZE - 5) + b"123"
    before = bytes(words)
    assert ring.write(b"") == 0
    assert ring.read(0) == b""
    assert bytes(words) == before


def test_any_bytes_like_may_be_written() -> None:
    ring, _, _ = new_ring(SIZE - 1)
    assert ring.write(bytearray(b"ab")) + ring.write(memoryview(b"cd")) == 4
    assert ring.read() == b"abcd"


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_a_buffer_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(RingMisuse, match="a power of two"):
        new_ring(0, size)


@pytest.mark.parametrize(
    "page",
    [
        memoryview(bytes(4096)),
        memoryview(bytearray(4095)),
        memoryview(bytearray(8192))[::2],
        *shared_pages((2,)),
    ],
    ids=["read-only", "short", "strided", "long"],
)
def test_a_page_of_rings_is_a_writable_page(page: memoryview) -> None:
    with pytest.raises(RingMisuse, match="page of byte rings"):
        ByteRing.in_page(page, 0, 1024, 2048, 2052)


def test_a_detached_ring_touches_nothing() -> None:
    ring, data, words = new_ring(0)
    ring.write(b"abc")
    ring.detach()
    data.release()
    words.release()
    for use in (ring.read, lambda: ring.write(b"x"), lambda: ring.readable):
        with pytest.raises(RingMisuse, match="detached"):
            use()
