"""The driver against a daemon that the test plays."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.console.hvc import BACKLOG_BYTES, MAX_LINE_BYTES
from ringbuffers.protocols.console import IN_SIZE, OUT_SIZE
from tests.frontends.console.peers import Pair

STARTS = st.sampled_from([0, 1, 2**32 - 1, 2**32 - 1500, 2**32 - 4096])


def test_text_is_utf_8_and_bytes_stay_as_they_are() -> None:
    pair = Pair()
    pair.console.write("ä\n")
    pair.console.write(b"\xff\r\n\0")
    assert pair.take() == b"\xc3\xa4\n\xff\r\n\0"
    assert pair.port.notified == 2


def test_nothing_written_notifies_nobody() -> None:
    pair = Pair()
    pair.console.write("")
    pair.event()
    assert pair.port.notified == 0


@given(start=STARTS, steps=st.lists(st.binary(min_size=1, max_size=3 * OUT_SIZE) | st.integers(1, OUT_SIZE)))
def test_output_is_one_stream_however_it_is_written_and_taken(start: int, steps: list[bytes | int]) -> None:
    pair = Pair(start)
    written = taken = b""
    for step in steps:
        if isinstance(step, int):
            taken += pair.take(step)
        else:
            pair.console.write(step)
            written += step
    while data := pair.take():
        taken += data
    assert taken == written
    assert pair.console.lost_bytes == 0


def test_the_newest_is_lost_when_the_daemon_takes_nothing_and_what_was_promised_is_not() -> None:
    pair = Pair()
    pair.console.write(b"a" * OUT_SIZE)
    pair.console.write(b"b" * (BACKLOG_BYTES - 1))
    pair.console.write(b"cde")
    assert pair.console.lost_bytes == 2
    taken = b""
    while data := pair.take():
        taken += data
    assert taken == b"a" * OUT_SIZE + b"b" * (BACKLOG_BYTES - 1) + b"c"


@pytest.mark.anyio
async def test_drain_waits_for_all_that_fits_and_all_that_does_not() -> None:
    pair = Pair()
    pair.console.write(b"x" * (OUT_SIZE + 1))
    done = anyio.Event()

    async def drain() -> None:
        await pair.console.drain()
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        tasks.start_soon(drain)
        for left in (OUT_SIZE, 1):
            await anyio.wait_all_tasks_blocked()
            assert not done.is_set()
            assert len(pair.take()) == left
        await done.wait()


@pytest.mark.anyio
async def test_drain_of_nothing_does_not_wait() -> None:
    await Pair().console.drain()


@pytest.mark.anyio
async def test_read_gives_what_was_typed_and_tells_the_daemon_of_the_room() -> None:
    pair = Pair()
    async with anyio.create_task_group() as tasks:
        read: list[bytes] = []

        async def reader() -> None:
            read.append(await pair.console.read(3))
            read.append(await pair.console.read())

        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        pair.type(b"abcde")
    assert read == [b"abc", b"de"]
    assert pair.port.notified == 1


@pytest.mark.anyio
async def test_input_that_nobody_reads_stays_with_who_types() -> None:
    pair = Pair()
    assert pair.type(b"x" * 5000) == IN_SIZE
    assert pair.type(b"x") == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ([b"one\n"], [b"one\n"]),
        ([b"one\rtwo\r"], [b"one\n", b"two\n"]),
        ([b"one\r\ntwo\r\n"], [b"one\n", b"two\n"]),
        ([b"o", b"ne\r", b"\ntwo\n"], [b"one\n", b"two\n"]),
        ([b"\r\r\n\n"], [b"\n", b"\n", b"\n"]),
    ],
)
async def test_a_line_ends_however_terminals_end_it(typed: list[bytes], lines: list[bytes]) -> None:
    pair = Pair()
    async with anyio.create_task_group() as tasks:

        async def type_in() -> None:
            for piece in typed:
                await anyio.wait_all_tasks_blocked()
                pair.type(piece)

        tasks.start_soon(type_in)
        assert [await pair.console.read_line() for _ in lines] == lines


@pytest.mark.anyio
async def test_a_line_without_an_end_comes_in_pieces() -> None:
    pair = Pair()
    async with anyio.create_task_group() as tasks:

        async def type_in() -> None:
            left = MAX_LINE_BYTES + 5
            while left:
                await anyio.wait_all_tasks_blocked()
                left -= pair.type(b"x" * left)
            pair.type(b"\n")

        tasks.start_soon(type_in)
        assert await pair.console.read_line() == b"x" * MAX_LINE_BYTES
        assert await pair.console.read_line() == b"xxxxx\n"


@pytest.mark.anyio
async def test_the_rest_of_the_input_and_then_nothing_when_detached() -> None:
    pair = Pair()
    pair.type(b"first\nrest")
    assert await pair.console.read_line() == b"first\n"
    pair.console.detach()
    assert await pair.console.read_line() == b"rest"
    assert await pair.console.read_line() == await pair.console.read() == b""


@pytest.mark.anyio
async def test_who_waits_is_woken_when_the_console_is_detached() -> None:
    pair = Pair()
    pair.console.write(b"x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pair.console.drain)
        tasks.start_soon(pair.console.read)
        tasks.start_soon(pair.console.read_line)
        await anyio.wait_all_tasks_blocked()
        pair.console.detach()


def test_detaching_leaves_the_page_and_the_port_and_says_the_rest_elsewhere() -> None:
    pair = Pair()
    pair.console.write(b"r" * OUT_SIZE + b"the rest")
    pair.console.detach()
    before = bytes(pair.page)
    pair.console.write(b", and more")
    pair.event()
    assert pair.fallback.written == b"the rest, and more"
    assert bytes(pair.page) == before
    assert not pair.port.closed
    pair.console.detach()
