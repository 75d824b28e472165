import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import ProtocolViolation, RingMisuse
from ringbuffers.protocols import xs_wire
from ringbuffers.protocols.xs_wire import HEADER, Message, MessageTooLong, Parser, XenstorePage
from tests.ringbuffers.pairs import STARTS, shared_pages

u32 = st.integers(0, 2**32 - 1)
messages = st.builds(Message, u32, u32, u32, st.binary(max_size=100))
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, SERVER_FEATURES, CONNECTION, ERROR = range(512, 519)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in pieces of these sizes, and the rest as one."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(stream[start : start + size])
        start += size
    return [*pieces, stream[start:]]


@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 60), max_size=30))
def test_messages_come_out_however_the_stream_is_cut(sent: list[Message], sizes: list[int]) -> None:
    parser = Parser()
    received = []
    for piece in cut(b"".join(message.pack() for message in sent), sizes):
        received += parser.feed(piece)
        assert parser.buffered < 16 + 100
    assert received == sent
    assert parser.buffered == 0


def test_a_message_is_returned_with_its_last_byte() -> None:
    parser = Parser()
    stream = Message(xs_wire.XS_READ, 1, 2, b"a\0").pack() + Message(xs_wire.XS_RM, 3, 4, b"").pack()
    counts = [len(parser.feed(stream[i : i + 1])) for i in range(len(stream))]
    assert [i for i, count in enumerate(counts) if count] == [17, 33]


def test_the_longest_payload_is_a_message() -> None:
    message = Message(xs_wire.XS_WRITE, 1, 0, bytes(4096))
    assert Parser().feed(message.pack()) == [message]
    with pytest.raises(RingMisuse, match="bytes of a payload"):
        Message(xs_wire.XS_WRITE, 1, 0, bytes(4097)).pack()


@given(
    st.integers(4097, 2**32 - 1) | st.integers(0x40000000, 0xFFFFFFFF),
    st.lists(messages, max_size=3),
    st.lists(st.integers(0, 60), max_size=30),
)
def test_a_length_beyond_the_limit_ends_the_stream_once_and_for_all(
    length: int, before: list[Message], sizes: list[int]
) -> None:
    """XSA-420: not negative, not kept, not met again."""
    stream = b"".join(message.pack() for message in before) + HEADER.pack(xs_wire.XS_WRITE, 1, 0, length)
    parser = Parser()
    received: list[Message] = []

    def feed_all() -> None:
        for piece in cut(stream, sizes):
            received.extend(parser.feed(piece))

    with pytest.raises(MessageTooLong) as caught:
        feed_all()
    assert received + caught.value.messages == before
    assert caught.value.found == length
    assert isinstance(caught.value, ProtocolViolation)
    for _ in range(2):
        with pytest.raises(MessageTooLong) as again:
            parser.feed(Message(xs_wire.XS_READ, 2, 0, b"/\0").pack())
        assert (again.value.found, again.value.messages) == (length, [])
        assert parser.buffered == 0


def test_a_stream_may_begin_anew() -> None:
    parser = Parser()
    message = Message(xs_wire.XS_READ, 1, 0, b"x\0")
    parser.feed(message.pack()[:-1])
    parser.reset()
    assert parser.feed(message.pack()) == [message]
    with pytest.raises(MessageTooLong):
        parser.feed(HEADER.pack(0, 0, 0, 5000))
    parser.reset()
    assert parser.feed(message.pack()) == [message]


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_each_side_reads_what_the_other_writes(start: int) -> None:
    (page,) = shared_pages()
    page.cast("I")[REQ_CONS : RSP_PROD + 1] = memoryview(start.to_bytes(4, "little") * 4).cast("I")
    guest, daemon = XenstorePage(page).guest_side(), XenstorePage(page).daemon_side()
    request, reply = Message(xs_wire.XS_READ, 7, 0, b"name\0"), Message(xs_wire.XS_READ, 7, 0, b"guest")
    assert guest.outgoing.write(request.pack()) == 21
    assert Parser().feed(daemon.incoming.read()) == [request]
    assert daemon.outgoing.write(reply.pack()) == 21
    assert Parser().feed(guest.incoming.read()) == [reply]


def test_a_message_longer_than_the_ring_passes_in_pieces() -> None:
    (page,) = shared_pages()
    guest, daemon = XenstorePage(page).guest_side(), XenstorePage(page).daemon_side()
    message = Message(xs_wire.XS_WRITE, 1, 0, bytes(range(256)) * 16)
    rest, parser, received = message.pack(), Parser(), []
    while rest:
        rest = rest[guest.outgoing.write(rest) :]
        received += parser.feed(daemon.incoming.read())
    assert received == [message]


def test_the_page_is_laid_out_as_documented() -> None:
    (page,) = shared_pages()
    words = page.cast("I")
    shared = XenstorePage(page)
    shared.guest_side().outgoing.write(b"request")
    shared.daemon_side().outgoing.write(b"reply")
    assert bytes(page[:7]) == b"request"
    assert bytes(page[1024:1029]) == b"reply"
    shared.daemon_side().incoming.read(2)
    shared.guest_side().incoming.read(1)
    shared.server_features = xs_wire.XENSTORE_SERVER_FEATURE_RECONNECTION
    shared.connection = xs_wire.XENSTORE_RECONNECT
    shared.error = xs_wire.XENSTORE_ERROR_PROTO
    assert list(words[REQ_CONS : ERROR + 1]) == [2, 7, 1, 5, 1, 1, 3]
    assert (shared.server_features, shared.connection, shared.error) == (1, 1, 3)
    assert not any(page[2076:])


def test_reconnecting_empties_both_rings_and_keeps_the_features() -> None:
    (page,) = shared_pages(filler=0xFF)
    shared = XenstorePage(page)
    shared.server_features = 3
    shared.reconnect()
    assert list(page.cast("I")[REQ_CONS : ERROR + 1]) == [0, 0, 0, 0, 3, xs_wire.XENSTORE_CONNECTED, 0]
    for side in (shared.guest_side(), shared.daemon_side()):
        assert (side.incoming.readable, side.outgoing.writable) == (0, 1024)


def test_a_detached_page_is_touched_no_more() -> None:
    (page,) = shared_pages()
    shared = XenstorePage(page)
    side = shared.guest_side()
    shared.detach()
    for use in (lambda: side.outgoing.write(b"late"), lambda: shared.connection, shared.reconnect):
        with pytest.raises(RingMisuse, match="detached"):
            use()
    assert not any(page)


def test_the_errors_are_those_of_the_header_in_its_order() -> None:
    assert list(xs_wire.XSD_ERRORS)[:3] == ["EINVAL", "EACCES", "EEXIST"]
    assert all(getattr(errno, name) == number for name, number in xs_wire.XSD_ERRORS.items())
    assert len(xs_wire.XSD_ERRORS) == 16
