"""A daemon that breaks the protocol: the connection ends, everybody who waits is told, nobody hangs."""

import struct
from collections.abc import Callable

import pytest

from kernel.xenstore import StoreConnectionBroken, StoreError
from ringbuffers.protocols.xs_wire import (
    INTERFACE,
    XENSTORE_ERROR_PROTO,
    XENSTORE_SERVER_FEATURE_ERROR,
    XS_ERROR,
    XS_READ,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from tests.kernel.xenstore.daemons import Scripted, limited_tasks

pytestmark = pytest.mark.anyio


def corrupt(index: str, by: int) -> Callable[[Scripted], None]:
    """Moves one of the indices in the page."""

    def act(daemon: Scripted) -> None:
        words = daemon.page.cast("I")
        words[INTERFACE.offsets[index] // 4] = (words[INTERFACE.offsets[index] // 4] + by) & 0xFFFFFFFF
        daemon.notify()

    return act


def announce_error(daemon: Scripted) -> None:
    daemon.shared.server_features = XENSTORE_SERVER_FEATURE_ERROR
    daemon.shared.error = XENSTORE_ERROR_PROTO
    daemon.notify()


def send(daemon: Scripted, data: bytes) -> None:
    daemon.send(data)


VIOLATIONS: dict[str, Callable[[Scripted], None]] = {
    "a reply to nothing": lambda d: d.reply(XS_READ, 77),
    "a reply to request 0": lambda d: d.reply(XS_READ, 0),
    "an error for nothing": lambda d: d.reply(XS_ERROR, 77, b"ENOENT\0"),
    "another kind of reply": lambda d: d.reply(XS_WRITE, 1),
    "an unheard-of kind": lambda d: d.reply(4711, 1),
    "an event without a token": lambda d: d.reply(XS_WATCH_EVENT, 0, b"path\0"),
    "an event without anything": lambda d: d.reply(XS_WATCH_EVENT, 0, b""),
    "a length of 4097": lambda d: send(d, struct.pack("<4I", XS_READ, 1, 0, 4097)),
    "a length of 2**32-1": lambda d: send(d, struct.pack("<4I", XS_READ, 1, 0, 0xFFFFFFFF)),
    "a producer beyond the ring": corrupt("rsp_prod", 1025),
    "a consumer that runs ahead": corrupt("rsp_cons", 1),
    "an error word": announce_error,
}


@pytest.mark.parametrize("violation", VIOLATIONS, ids=lambda name: name.replace(" ", "-"))
async def test_a_violation_ends_the_connection_for_all(anyio_backend: str, violation: str) -> None:
    daemon = Scripted()
    client = daemon.client
    told: list[str] = []

    async def read(path: str) -> None:
        try:
            await client.read(path)
        except StoreConnectionBroken:
            told.append(path)

    async with limited_tasks() as tasks:
        tasks.start_soon(read, "a")
        await daemon.settle()
        tasks.start_soon(read, "b")
        await daemon.settle()
        assert [(message.type, message.req_id) for message in daemon.requests()] == [
            (XS_READ, 1),
            (XS_READ, 2),
        ]
        VIOLATIONS[violation](daemon)
    assert sorted(told) == ["a", "b"]
    assert client.broken is not None
    assert client.in_flight == 0
    with pytest.raises(StoreConnectionBroken):
        await client.read("c")
    daemon.notify()
    assert daemon.requests() == []


async def test_a_spoilt_request_ring_is_found_when_the_next_request_is_made(anyio_backend: str) -> None:
    daemon = Scripted()
    words = daemon.page.cast("I")
    words[INTERFACE.offsets["req_cons"] // 4] = 5
    with pytest.raises(StoreConnectionBroken):
        await daemon.client.read("a")


async def test_watches_end_with_the_connection(anyio_backend: str) -> None:
    daemon = Scripted()
    ended: list[str] = []
    called: list[bool] = []

    async def follow() -> None:
        try:
            async with daemon.client.watch("w") as watch:
                async for _ in watch:
                    pass
        except StoreConnectionBroken:
            ended.append("iterated")

    async def callback() -> None:
        async with daemon.client.watch("w", lambda: called.append(True)):
            await daemon.settle()
            await daemon.settle()

    async with limited_tasks() as tasks:
        tasks.start_soon(follow)
        tasks.start_soon(callback)
        await daemon.settle()
        for message in daemon.requests():
            daemon.reply(XS_WATCH, message.req_id)
        await daemon.settle()
        daemon.reply(XS_READ, 4711)
    assert ended == ["iterated"]
    assert called == [True]


@pytest.mark.parametrize("payload", [b"", b"x\0", b"0\0", b"-1\0", b"99999999999\0", b"1 2\0", b"\xb2\0"])
async def test_a_transaction_id_that_is_none(anyio_backend: str, payload: bytes) -> None:
    daemon = Scripted()
    caught: list[Exception] = []

    async def transact() -> None:
        try:
            await daemon.client.transact(lambda transaction: transaction.read("a"))
        except StoreConnectionBroken as error:
            caught.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(transact)
        await daemon.settle()
        (start,) = daemon.requests()
        assert start.type == XS_TRANSACTION_START
        daemon.reply(XS_TRANSACTION_START, start.req_id, payload)
    assert len(caught) == 1
    assert daemon.client.broken is not None


async def test_errors_of_any_name_and_length_stay_errors(anyio_backend: str) -> None:
    daemon = Scripted()
    found: list[StoreError] = []

    async def read() -> None:
        for _ in range(3):
            try:
                await daemon.client.read("a")
            except StoreError as error:
                found.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        for payload in (b"ENOENT\0", b"", b"\xff" * 900):
            await daemon.settle()
            (message,) = daemon.requests()
            daemon.reply(XS_ERROR, message.req_id, payload)
    assert [error.name for error in found[:2]] == ["ENOENT", ""]
    assert [error.errno for error in found] == [2, 5, 5]
    assert len(str(found[2])) < 200


async def test_events_for_watches_that_nobody_has_are_counted(anyio_backend: str) -> None:
    """They may be on their way when a watch ends, or belong to a kernel before this one: no reason to end."""
    daemon = Scripted()
    for token in (b"0000000000000001", b"", b"x" * 500):
        daemon.reply(XS_WATCH_EVENT, 0, b"path\0" + token + b"\0")
    assert daemon.client.stray_events == 3
    assert daemon.client.broken is None


async def test_bytes_may_trickle_in(anyio_backend: str) -> None:
    daemon = Scripted()
    values: list[bytes] = []

    async def read() -> None:
        values.append(await daemon.client.read_bytes("a"))

    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        await daemon.settle()
        daemon.requests()
        for byte in struct.pack("<4I", XS_READ, 1, 0, 5) + b"slow\0":
            daemon.send(bytes([byte]))
    assert values == [b"slow\0"]
