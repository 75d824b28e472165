"""A console daemon that lies to the driver, in a guest that must not suffer for it (XSA-86, XSA-391)."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuffers.errors import PeerViolation
from ringbuffers.indices import distance
from ringbuffers.protocols.console import IN_SIZE, OUT_SIZE
from tests.frontends.console.peers import WORDS, Pair

U32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, IN_SIZE, OUT_SIZE, OUT_SIZE + 1, 2**31, 2**32 - 1])


@given(cons=U32, prod=U32)
def test_whatever_the_output_indices_nothing_is_raised_and_a_lie_closes_the_console(
    cons: int, prod: int
) -> None:
    pair = Pair()
    pair.words[WORDS["out_cons"]], pair.words[WORDS["out_prod"]] = cons, prod
    pair.console.write(b"words")
    if distance(prod, cons) > OUT_SIZE:
        assert isinstance(pair.console.broken, PeerViolation)
        assert pair.port.closed
        assert pair.fallback.written.endswith(b"words")
    else:
        assert pair.console.broken is None
    pair.console.write(b"more words")
    pair.event()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("cons", "prod"), [(0, IN_SIZE + 1), (1, 0), (2**31, 0), (0, 2**32 - 1), (2**32 - 1, 2**31)]
)
async def test_input_indices_that_lie_end_the_input(cons: int, prod: int) -> None:
    for read in ("read", "read_line"):
        pair = Pair()
        pair.words[WORDS["in_cons"]], pair.words[WORDS["in_prod"]] = cons, prod
        assert await getattr(pair.console, read)() == b""
        assert pair.console.broken is not None


@pytest.mark.anyio
@given(cons=U32, prod=U32)
async def test_input_is_never_more_than_the_ring_holds(cons: int, prod: int) -> None:
    pair = Pair()
    pair.words[WORDS["in_cons"]], pair.words[WORDS["in_prod"]] = cons, prod
    if prod != cons:
        data = await pair.console.read(1 << 20)
        assert len(data) == (distance(prod, cons) if distance(prod, cons) <= IN_SIZE else 0)


@pytest.mark.anyio
async def test_who_waits_when_the_lie_is_found_is_woken() -> None:
    pair = Pair()
    pair.console.write(b"x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pair.console.drain)
        tasks.start_soon(pair.console.read)
        await anyio.wait_all_tasks_blocked()
        pair.words[WORDS["out_cons"]] = 77
        pair.event()


def test_what_was_written_before_the_lie_is_said_elsewhere() -> None:
    pair = Pair()
    pair.console.write(b"r" * OUT_SIZE + b"kept back")
    pair.words[WORDS["out_cons"]] = 2**31
    pair.event()
    assert pair.fallback.written.endswith(b"kept back")


def test_a_storm_of_events_without_news_touches_nothing_and_answers_nothing() -> None:
    pair = Pair()
    pair.console.write(b"r" * (OUT_SIZE + 10))
    sent, page = pair.port.notified, bytes(pair.page)
    for _ in range(10_000):
        pair.event()
    assert pair.port.notified == sent
    assert bytes(pair.page) == page
