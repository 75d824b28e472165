"""A peer that lies in the indices of a byte ring, on the console or the XenStore page (XSA-38, XSA-86)."""

import random
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.bytering import ByteChannel, ByteRing
from ringbuffers.errors import PeerViolation
from ringbuffers.indices import distance, wrap
from ringbuffers.protocols.console import ConsolePage
from ringbuffers.protocols.xs_wire import XenstorePage

SIDES: dict[str, Callable[[memoryview], ByteChannel]] = {
    "console guest": lambda page: ConsolePage(page).guest_side(),
    "console daemon": lambda page: ConsolePage(page).daemon_side(),
    "xenstore guest": lambda page: XenstorePage(page).guest_side(),
    "xenstore daemon": lambda page: XenstorePage(page).daemon_side(),
}
u32 = st.integers(0, 2**32 - 1)
# (producer, consumer): anything, and apart by little more or less than nothing or than the ring.
pairs = st.tuples(u32, u32) | st.builds(
    lambda consumer, apart: (wrap(consumer + apart), consumer),
    u32,
    st.sampled_from([-1, 0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 2**31, 2**31 - 1]),
)


def poisoned_page() -> memoryview:
    """Full of bytes that tell where they are: what is read or written outside a buffer shows."""
    return memoryview(bytearray(random.Random(0).randbytes(4096)))


@given(st.sampled_from(sorted(SIDES)), pairs, st.binary(max_size=3000))
def test_no_pair_of_indices_reaches_outside_the_ring(side: str, pair: tuple[int, int], data: bytes) -> None:
    page = poisoned_page()
    channel = SIDES[side](page)
    for ring in channel:
        check_one(page, ring, pair, data)


def check_one(page: memoryview, ring: ByteRing, pair: tuple[int, int], data: bytes) -> None:
    words, producer, consumer = page.cast("I"), ring._producer, ring._consumer
    words[producer], words[consumer] = pair
    used = distance(*pair)
    before = bytes(page)
    if used > ring.size:
        for use in (ring.read, lambda: ring.write(data), lambda: ring.readable, lambda: ring.writable):
            with pytest.raises(PeerViolation) as caught:
                use()
            assert caught.value.found == used
        assert bytes(page) == before
        return

    contents = bytes(ring._data)
    assert ring.read() == bytes(contents[(pair[1] + i) % ring.size] for i in range(used))
    assert (words[producer], words[consumer]) == (pair[0], pair[0])
    assert bytes(ring._data) == contents

    count = ring.write(data)
    assert count == min(len(data), ring.size)
    words[producer], words[consumer] = pair
    changed = {i for i, (old, new) in enumerate(zip(before, bytes(page), strict=True)) if old != new}
    start = before.index(contents[:1024])
    assert changed <= {start + (pair[0] + i) % ring.size for i in range(count)}


class ShiftingWords:
    """Indices that the peer changes after the first look at them."""

    def __init__(self, **first: int) -> None:
        self.first = first
        self.stored: dict[str, int] = {}

    def __getitem__(self, index: str) -> int:
        return self.first.pop(index, 2**31)

    def __setitem__(self, index: str, value: int) -> None:
        self.stored[index] = value


def ring_on(words: ShiftingWords) -> ByteRing:
    return ByteRing(memoryview(bytearray(16)), cast(memoryview, words), cast(int, "prod"), cast(int, "cons"))


def test_each_index_is_read_once() -> None:
    """A second look would find 2**31 bytes in the ring."""
    words = ShiftingWords(prod=4, cons=2**32 - 1)
    assert len(ring_on(words).read()) == 5
    assert words.stored == {"cons": 4}
    words = ShiftingWords(prod=4, cons=2**32 - 1)
    assert ring_on(words).write(bytes(100)) == 11
    assert words.stored == {"prod": 15}


@given(st.lists(st.tuples(st.integers(0, 3), u32, st.sampled_from("rw")), max_size=40))
def test_scribbled_indices_cost_the_peer_its_own_stream_only(attacks: list[tuple[int, int, str]]) -> None:
    page = poisoned_page()
    beyond = bytes(page[3088:])
    channel = ConsolePage(page).daemon_side()
    words = page.cast("I")
    for word, value, step in attacks:
        words[768 + word] = value
        try:
            if step == "r":
                assert len(channel.incoming.read()) <= 2048
            else:
                assert channel.outgoing.write(b"x" * 3000) <= 1024
        except PeerViolation:
            pass
    assert bytes(page[3088:]) == beyond
