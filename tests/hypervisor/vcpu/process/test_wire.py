"""Messages of a domain's channel: what arrives is what was sent, and garbage is named."""

import os
import socket
from collections.abc import Iterator
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.vcpu.process.wire import (
    CHANGE,
    DESCRIPTORS,
    MAX_CHANGES,
    MAX_DESCRIPTORS,
    MAX_PFNS,
    MAX_REPLY_BYTES,
    OPTIONAL,
    REQUEST,
    Change,
    ChangeKind,
    ChannelBroken,
    RequestKind,
    decode_request,
    encode_reply,
    receive_packet,
    send_packet,
)

U64 = st.integers(0, 2**64 - 1)


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> set[int]:
    """Those that are open."""
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return set(filter(_is_open, listed))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:  # the listing's own
        return False
    return True


def a_file() -> int:
    return os.memfd_create("test")


@given(
    st.sampled_from(RequestKind),
    U64,
    st.tuples(*[U64] * 6),
    st.tuples(U64, U64, U64),
    st.tuples(U64, U64),
    st.lists(U64, max_size=MAX_PFNS),
)
def test_requests_arrive_as_they_were_made(  # noqa: PLR0917
    kind: RequestKind,
    number: int,
    args: tuple[int, ...],
    counted: tuple[int, ...],
    context: tuple[int, int],
    pfns: list[int],
) -> None:
    packet = REQUEST.pack(kind, number, *args, *counted, *context)
    packet += b"".join(pfn.to_bytes(8, "little") for pfn in pfns)
    request = decode_request(packet)
    assert (request.kind, request.number, request.args) == (kind, number, args)
    assert (request.counted, request.pfns) == (counted, tuple(pfns))
    assert (request.root, request.vcpu) == context


@given(st.binary(max_size=REQUEST.size + 8 * MAX_PFNS + 16))
def test_garbage_is_refused_or_means_something(data: bytes) -> None:
    try:
        request = decode_request(data)
    except ChannelBroken:
        whole = len(data) >= REQUEST.size and (len(data) - REQUEST.size) % 8 == 0
        fits = len(data) <= REQUEST.size + 8 * MAX_PFNS
        assert not (whole and fits) or int.from_bytes(data[:8], "little") not in list(RequestKind)
    else:
        assert request.kind == int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "a request of 0 bytes"),
        (bytes(REQUEST.size - 1), f"a request of {REQUEST.size - 1} bytes, expected {REQUEST.size}"),
        (REQUEST.pack(1, *[0] * 12) + b"x", f"a request of {REQUEST.size + 1} bytes"),
        (REQUEST.pack(4, *[0] * 12) + bytes(8 * MAX_PFNS + 8), "at most 512 PFNs"),
        (REQUEST.pack(0, *[0] * 12), "a request of kind 0, expected 1 to 7"),
        (REQUEST.pack(2**64 - 1, *[0] * 12), "expected 1 to 7"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, why: str) -> None:
    with pytest.raises(ChannelBroken, match=why):
        decode_request(data)


def changes_of_every_kind(count: int, file: int) -> list[Change]:
    changes = []
    for gpfn in range(count):
        kind = list(ChangeKind)[gpfn % len(ChangeKind)]
        pages = gpfn % 3 if kind in OPTIONAL else 1
        wanted = DESCRIPTORS.get(kind, 0) * (bool(pages) if kind in OPTIONAL else 1)
        changes.append(Change(kind, gpfn, pages, gpfn + 1, gpfn + 2, (file,) * wanted))
    return changes


@pytest.mark.parametrize("more", [False, True])
def test_an_answer_arrives_with_its_descriptors(
    channel: tuple[socket.socket, socket.socket], *, more: bool
) -> None:
    ours, theirs = channel
    file = a_file()
    changes = changes_of_every_kind(MAX_CHANGES, file)
    packet, fds = encode_reply(-12, changes, more=more)
    assert len(packet) == MAX_REPLY_BYTES
    assert len(fds) <= MAX_DESCRIPTORS
    send_packet(theirs, packet, fds)
    result, is_more, received = receive_packet(ours)
    assert (result, is_more) == (-12, more)
    assert [change._replace(fds=()) for change in received] == [change._replace(fds=()) for change in changes]
    for got, sent in zip(received, changes):
        assert len(got.fds) == len(sent.fds)
        for fd in got.fds:
            assert os.fstat(fd).st_ino == os.fstat(file).st_ino
            assert not os.get_inheritable(fd)
            os.close(fd)
    os.close(file)


def test_as_many_descriptors_travel_as_a_packet_may_have(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = channel
    file = a_file()
    change = Change(ChangeKind.LISTEN, 1, 1, 2, 0, (file, file))
    send_packet(theirs, *encode_reply(0, [change] * (MAX_DESCRIPTORS // 2), more=False))
    _, _, received = receive_packet(ours)
    fds = [fd for change in received for fd in change.fds]
    assert len(fds) == MAX_DESCRIPTORS
    for fd in (*fds, file):
        os.close(fd)


def test_descriptors_that_do_not_arrive_are_noticed(channel: tuple[socket.socket, socket.socket]) -> None:
    """Where the receiver may have no more of them, the kernel leaves them out."""
    ours, theirs = channel
    file = a_file()
    changes = [Change(ChangeKind.MAP_PAGE, gpfn, 1, 0, 0, (file,)) for gpfn in range(4)]
    send_packet(theirs, *encode_reply(0, changes, more=False))
    soft, hard = getrlimit(RLIMIT_NOFILE)
    free = os.dup(file)
    os.close(free)
    before = open_descriptors()
    setrlimit(RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(ChannelBroken, match="descriptors of its memory did not arrive"):
            receive_packet(ours)
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    arrived = open_descriptors() - before
    assert arrived == {free}
    for fd in (free, file):
        os.close(fd)


def test_an_answer_without_changes_is_one_small_packet() -> None:
    packet, fds = encode_reply(7, [], more=False)
    assert len(packet) < CHANGE.size
    assert fds == []


def test_a_hypervisor_that_is_gone(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    theirs.close()
    with pytest.raises(ChannelBroken, match="the hypervisor is gone"):
        receive_packet(ours)
