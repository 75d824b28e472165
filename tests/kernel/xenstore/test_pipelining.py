"""The client against a scripted daemon: what travels, and when."""

import anyio
import pytest

from kernel.errors import KernelMisuse
from kernel.xenstore import StoreError, Transaction, TransactionConflict
from kernel.xenstore.client import MAX_ATTEMPTS
from ringbuffers.protocols.xs_wire import (
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from tests.kernel.xenstore.daemons import Scripted, limited_tasks

pytestmark = pytest.mark.anyio


async def test_requests_are_under_way_together_and_answered_in_any_order(anyio_backend: str) -> None:
    daemon = Scripted()
    answers: dict[str, str] = {}

    async def read(path: str) -> None:
        answers[path] = await daemon.client.read(path)

    async with limited_tasks() as tasks:
        for path in "abc":
            tasks.start_soon(read, path)
        await daemon.settle()
        messages = daemon.requests()
        assert len(messages) == 3
        assert daemon.client.in_flight == 3
        for message in reversed(messages):
            daemon.reply(XS_READ, message.req_id, message.payload.rstrip(b"\0").upper())
    assert answers == {"a": "A", "b": "B", "c": "C"}


async def test_more_requests_than_the_ring_holds(anyio_backend: str) -> None:
    daemon = Scripted()
    value = "v" * 300
    got = 0

    async def write() -> None:
        await daemon.client.write_many({f"p{number}": value for number in range(50)})

    async with limited_tasks() as tasks:
        tasks.start_soon(write)
        while got < 50:
            await daemon.settle()
            for message in daemon.requests():
                assert message.type == XS_WRITE
                assert message.payload == f"p{got}".encode() + b"\0" + value.encode()
                daemon.reply(XS_WRITE, message.req_id)
                got += 1


async def test_a_daemon_that_found_the_ring_full_is_told_of_room(anyio_backend: str) -> None:
    daemon = Scripted()
    values: list[str] = []

    async def read() -> None:
        values.append(await daemon.client.read("a"))

    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        await daemon.settle()
        (message,) = daemon.requests()
        data = message._replace(payload=b"x" * 4000).pack()
        daemon.notified = 0
        while data:
            written = daemon.send(data)
            data = data[written:]
            daemon._dom0.events.dispatch()
            if written == 1024:
                assert daemon.notified > 0
                daemon.notified = 0
    assert values == ["x" * 4000]
    assert daemon.notified == 0, "the last part did not fill the ring"


async def test_an_abandoned_request_does_not_confuse_the_next(anyio_backend: str) -> None:
    daemon = Scripted()
    with anyio.move_on_after(0.001):
        await daemon.client.read("abandoned")
    answers: list[str] = []

    async def read() -> None:
        answers.append(await daemon.client.read("b"))

    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        await daemon.settle()
        first, second = daemon.requests()
        daemon.reply(XS_READ, first.req_id, b"late")
        daemon.reply(XS_READ, second.req_id, b"mine")
    assert answers == ["mine"]
    assert daemon.client.in_flight == 0


async def test_ids_wrap_and_pass_over_those_under_way(anyio_backend: str) -> None:
    daemon = Scripted()
    connection = daemon.client._connection
    async with limited_tasks() as tasks:
        tasks.start_soon(daemon.client.read, "first")
        await daemon.settle()
        connection._next_id = (1 << 32) - 1
        tasks.start_soon(daemon.client.read, "last id")
        tasks.start_soon(daemon.client.read, "wrapped")
        await daemon.settle()
        messages = daemon.requests()
        assert [message.req_id for message in messages] == [1, (1 << 32) - 1, 2]
        for message in messages:
            daemon.reply(XS_READ, message.req_id, b"")


async def test_a_transaction_is_tried_again_and_given_up_in_the_end(anyio_backend: str) -> None:
    daemon = Scripted()
    tried = 0
    caught: list[TransactionConflict] = []

    async def transact() -> None:
        async def body(transaction: Transaction) -> None:
            nonlocal tried
            tried += 1

        try:
            await daemon.client.transact(body)
        except TransactionConflict as error:
            caught.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(transact)
        while not caught:
            await daemon.settle()
            for message in daemon.requests():
                if message.type == XS_TRANSACTION_START:
                    daemon.reply(XS_TRANSACTION_START, message.req_id, b"5\0")
                else:
                    assert (message.type, message.tx_id, message.payload) == (XS_TRANSACTION_END, 5, b"T\0")
                    daemon.reply(XS_ERROR, message.req_id, b"EAGAIN\0", tx_id=5)
    assert tried == caught[0].attempts == MAX_ATTEMPTS
    assert caught[0].errno == 11


async def test_a_body_that_raises_abandons_the_transaction(anyio_backend: str) -> None:
    daemon = Scripted()
    caught: list[Exception] = []

    async def transact() -> None:
        async def body(transaction: Transaction) -> None:
            raise LookupError("mine")

        try:
            await daemon.client.transact(body)
        except LookupError as error:
            caught.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(transact)
        await daemon.settle()
        (start,) = daemon.requests()
        daemon.reply(XS_TRANSACTION_START, start.req_id, b"9\0")
        await daemon.settle()
        (end,) = daemon.requests()
        assert (end.type, end.tx_id, end.payload) == (XS_TRANSACTION_END, 9, b"F\0")
    assert len(caught) == 1


async def test_a_list_that_changes_while_it_is_read_in_parts(anyio_backend: str) -> None:
    daemon = Scripted()
    lists: list[list[str]] = []
    parts = [b"1\0a\0b\0", b"2\0c\0\0", b"2\0a\0", b"2\0x\0\0"]

    async def read() -> None:
        lists.append(await daemon.client.directory("d"))

    offsets: list[bytes] = []
    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        await daemon.settle()
        (message,) = daemon.requests()
        assert message.type == XS_DIRECTORY
        daemon.reply(XS_ERROR, message.req_id, b"E2BIG\0")
        for part in parts:
            await daemon.settle()
            (message,) = daemon.requests()
            assert message.type == XS_DIRECTORY_PART
            offsets.append(message.payload)
            daemon.reply(XS_DIRECTORY_PART, message.req_id, part)
    assert lists == [["a", "x"]]
    assert offsets == [b"d\x000\0", b"d\x004\0", b"d\x000\0", b"d\x002\0"]


@pytest.mark.parametrize(
    ("part", "name"),
    [(b"1\0", "EIO"), (b"", "EIO"), (b"1\0" + b"n" * 900, "E2BIG")],
    ids=["none", "empty", "endless"],
)
async def test_a_list_without_an_end_is_an_error(
    anyio_backend: str, part: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.xenstore.operations.MAX_DIRECTORY_BYTES", 2000)
    daemon = Scripted()
    caught: list[StoreError] = []

    async def read() -> None:
        try:
            await daemon.client.directory("d")
        except StoreError as error:
            caught.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(read)
        await daemon.settle()
        (message,) = daemon.requests()
        daemon.reply(XS_ERROR, message.req_id, b"E2BIG\0")
        while not caught:
            await daemon.settle()
            for message in daemon.requests():
                daemon.reply(XS_DIRECTORY_PART, message.req_id, part)
            await daemon.settle()
    assert caught[0].name == name


async def test_a_watch_that_is_refused(anyio_backend: str) -> None:
    daemon = Scripted()
    caught: list[StoreError] = []

    async def follow() -> None:
        try:
            async with daemon.client.watch("//"):
                pass
        except StoreError as error:
            caught.append(error)

    async with limited_tasks() as tasks:
        tasks.start_soon(follow)
        await daemon.settle()
        (message,) = daemon.requests()
        assert message.type == XS_WATCH
        daemon.reply(XS_ERROR, message.req_id, b"EINVAL\0")
    assert [error.name for error in caught] == ["EINVAL"]


async def test_what_would_break_the_framing_is_refused_here(anyio_backend: str) -> None:
    daemon = Scripted()
    with pytest.raises(StoreError, match="EINVAL"):
        await daemon.client.write("a\0b", "x")
    with pytest.raises(StoreError, match="E2BIG"):
        await daemon.client.write("a", "x" * 4096)
    with pytest.raises(KernelMisuse):
        await daemon.client.set_perms("a", [])
    assert daemon.requests() == []
