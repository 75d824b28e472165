"""Frontends that send bad requests: each is answered with an error, and nothing else happens."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.kernel import Kernel
from ringbuffers.protocols import blkif
from tests.hostile.block_frontend import SLOT, RawFrontend
from tests.rig import MIB, Guest, Rig, file_disk, memory_disk, running_rig
from tests.steps import State

SECTORS = MIB // 512
OKAY, ERROR, UNSUPPORTED = blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP
READ, WRITE, BARRIER, FLUSH, DISCARD = 0, 1, 2, 3, 5

pytestmark = pytest.mark.anyio
both_persistences = pytest.mark.parametrize("persistent", [False, True], ids=["transient", "persistent"])


async def raw(kernel: Kernel, *, persistent: bool = False, order: int = 0) -> RawFrontend:
    """A connected frontend whose pages hold nothing but 0xEE."""
    front = RawFrontend(kernel, persistent=persistent, order=order)
    await front.open()
    for index in range(front.data.count):
        front.page(index)[:] = b"\xee" * 4096
    return front


def served_alone(rig: Rig, guest: Guest) -> None:
    """The backend is alive, the core's books agree, and nothing was faulted."""
    assert rig.services.blocks.driver_of(guest.domid, 51712) is not None
    assert not rig.machine.faults
    assert rig.machine.audit() == []


def request(operation: int, request_id: int, sector: int, *segments: tuple[int, int, int]) -> bytes:
    """A request of any segments."""
    return blkif.Request(operation, 0, request_id, sector, tuple(blkif.Segment(*s) for s in segments)).pack()


def bad_requests(front: RawFrontend) -> Iterator[tuple[str, bytes, int]]:
    """Name, slot, and the status that it must have."""
    gref = front.grefs[0]
    for operation in (READ, WRITE):
        yield "just beyond the end", request(operation, 1, SECTORS - 7, (gref, 0, 7)), ERROR
        yield "far beyond the end", request(operation, 1, 1 << 40, (gref, 0, 7)), ERROR
        yield "overflow", request(operation, 1, (1 << 64) - 4, (gref, 0, 7)), ERROR
        yield "overflow in bytes", request(operation, 1, 1 << 55, (gref, 0, 7)), ERROR
        yield "first after last", request(operation, 1, 0, (gref, 5, 4)), ERROR
        yield "last beyond the page", request(operation, 1, 0, (gref, 0, 8)), ERROR
        yield "last far beyond the page", request(operation, 1, 0, (gref, 0, 255)), ERROR
        yield "second segment bad", request(operation, 1, 0, (gref, 0, 7), (gref, 7, 8)), ERROR
        yield "no segments", request(operation, 1, 0), ERROR
        yield "gref never granted", request(operation, 1, 0, (front.grefs[-1] + 100, 0, 7)), ERROR
        yield "gref out of range", request(operation, 1, 0, (0xFFFF_FFFF, 0, 7)), ERROR
        yield "gref reserved", request(operation, 1, 0, (3, 0, 7)), ERROR
        yield (
            "one bad among good",
            request(operation, 1, 0, (gref, 0, 7), (1 << 20, 0, 7), (gref, 0, 7)),
            ERROR,
        )
        for count in (12, 13, 200, 255):
            good = bytearray(request(operation, 1, 0, (gref, 0, 7)))
            good[1] = count
            yield f"{count} segments", bytes(good), ERROR
    for operation in (4, 7, 8, 99, 255):
        yield f"operation {operation}", request(operation, 1, 0, (gref, 0, 7)), UNSUPPORTED
    yield "secure discard", blkif.DiscardRequest(1, 0, 1, 0, 8).pack(), UNSUPPORTED
    yield "discard of nothing", blkif.DiscardRequest(0, 0, 1, 0, 0).pack(), ERROR
    yield "discard beyond the end", blkif.DiscardRequest(0, 0, 1, SECTORS - 7, 8).pack(), ERROR
    yield "discard overflow", blkif.DiscardRequest(0, 0, 1, 8, (1 << 64) - 8).pack(), ERROR
    yield "barrier beyond the end", request(BARRIER, 1, SECTORS, (gref, 0, 7)), ERROR
    yield "flush with bad data", request(FLUSH, 1, SECTORS, (gref, 0, 7)), ERROR
    for inner in (BARRIER, FLUSH, DISCARD, 6, 200):
        yield f"indirect {inner}", blkif.IndirectRequest(inner, 12, 1, 0, 0, (gref,)).pack(), ERROR
    yield "no indirect segments", blkif.IndirectRequest(READ, 0, 1, 0, 0, (gref,)).pack(), ERROR
    yield "too many indirect segments", blkif.IndirectRequest(READ, 257, 1, 0, 0, (gref,)).pack(), ERROR
    yield "far too many", blkif.IndirectRequest(READ, 65535, 1, 0, 0, (gref,) * 8).pack(), ERROR
    yield "indirect page not granted", blkif.IndirectRequest(READ, 12, 1, 0, 0, (1 << 30,)).pack(), ERROR
    yield "segments are 0xEE", blkif.IndirectRequest(READ, 12, 1, 0, 0, (gref,)).pack(), ERROR


async def send_bad_requests(kernel: Kernel, _state: State, persistent: bool) -> None:
    """One by one, and look at what they do."""
    front = await raw(kernel, persistent=persistent)
    assert await front.status(front.write(7, 8, page=1)) == OKAY
    names = []
    for name, slot, expected in bad_requests(front):
        assert await front.status(slot) == expected, name
        names.append(name)
        assert await front.status(front.read(1, 8, page=2)) == OKAY
        assert front.page(2) == b"\xee" * 4096, name
    assert len(names) > 40
    # Nothing was written but what was right, and what could not be read was not touched.
    assert await front.status(front.read(2, 0, page=3)) == OKAY
    assert front.page(3) == bytes(4096)
    assert front.page(0) == b"\xee" * 4096
    front.device.close()
    await front.device.wait_released()
    assert not any(kernel.grants.is_mapped(gref) for gref in front.grefs)


@both_persistences
async def test_bad_requests_one_by_one(tmp_path: Path, isolation: str, persistent: bool) -> None:
    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(send_bad_requests, persistent)
        served_alone(rig, guest)
        assert len(rig.services.kernel.grants.ledger) == 0


@both_persistences
async def test_bad_requests_in_one_run_with_good_ones(
    tmp_path: Path, isolation: str, persistent: bool
) -> None:
    """At every position of a run, whatever surrounds them."""

    async def mix(kernel: Kernel, _state: State) -> None:
        front = await raw(kernel, persistent=persistent)
        for turn in range(2):  # in the second, good pages are mapped already
            for start, (name, bad, expected) in enumerate(bad_requests(front)):
                place = start % 9
                slots = [
                    front.write(100 + index, 8 * index, page=index)
                    if index % 2
                    else front.read(100 + index, 800, 15)
                    for index in range(9)
                ]
                slots.insert(place, bad)
                front.put(*slots)
                answers = await front.answers(10)
                assert [answer.status for answer in answers if answer.id != 1] == [OKAY] * 9, (turn, name)
                assert [answer.status for answer in answers if answer.id == 1] == [expected], (turn, name)

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(mix)
        served_alone(rig, guest)


@pytest.mark.parametrize("mode", ["r", "w"])
async def test_a_read_only_disk_stays_as_it_is(tmp_path: Path, isolation: str, mode: str) -> None:
    path = tmp_path / "a.img"
    content = random.Random(3).randbytes(MIB)
    path.write_bytes(content)
    writing = mode == "w"

    async def try_all(kernel: Kernel, _state: State) -> None:
        front = await raw(kernel, persistent=True)
        gref = front.grefs[0]
        listed = [blkif.Segment(gref, 0, 7)] * 12
        blkif.pack_indirect_segments(front.page(5), listed)
        assert await front.status(front.read(1)) == OKAY
        for name, slot, refusal in (
            ("write", front.write(1), ERROR),
            ("barrier", request(BARRIER, 1, 0, (gref, 0, 7)), UNSUPPORTED),
            ("empty barrier", request(BARRIER, 1, 0), UNSUPPORTED),
            ("flush with data", request(FLUSH, 1, 0, (gref, 0, 7)), UNSUPPORTED),
            ("flush", request(FLUSH, 1, 0), UNSUPPORTED),
            ("indirect write", blkif.IndirectRequest(WRITE, 12, 1, 0, 0, (front.grefs[5],)).pack(), ERROR),
            ("discard", blkif.DiscardRequest(0, 0, 1, 8, 8).pack(), UNSUPPORTED),
            ("secure discard", blkif.DiscardRequest(1, 0, 1, 8, 8).pack(), UNSUPPORTED),
        ):
            expected = (
                OKAY if writing and name != "secure discard" else refusal if not writing else UNSUPPORTED
            )
            assert await front.status(slot) == expected, name
        assert await front.status(blkif.IndirectRequest(READ, 12, 1, 0, 0, (front.grefs[5],)).pack()) == OKAY

    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([file_disk(path, mode=mode)]) as guest,
    ):
        await guest.run(try_all)
        served_alone(rig, guest)
    assert (path.read_bytes() == content) is not writing


async def connect(kernel: Kernel, state: State) -> int:
    """Returns the highest reference in use."""
    state["front"] = front = await raw(kernel)
    return max(front.grefs)


async def grant_secrets(kernel: Kernel, state: State) -> list[int]:
    state["secret"] = secret = kernel.pages.allocate(64)
    secret.view[:] = b"secret!!" * (64 * 512)
    return kernel.grants.grant_many(0, range(secret.pfn, secret.pfn + 64))


async def steal(kernel: Kernel, state: State, wanted: list[int], victim: int) -> None:
    """By references of another domain's, and by one that is for another domain than the backend's."""
    front = state["front"]
    for gref in wanted:
        assert await front.status(request(WRITE, 1, 0, (gref, 0, 7))) == ERROR
        assert await front.status(request(READ, 1, 0, (gref, 0, 7))) == ERROR
    foreign = kernel.grants.grant(victim, kernel.pages.allocate().pfn)
    assert await front.status(request(READ, 1, 0, (foreign, 0, 7))) == ERROR


async def still_has_its_secrets(_kernel: Kernel, state: State) -> None:
    front = state["front"]
    assert state["secret"].view == b"secret!!" * (64 * 512)
    assert await front.status(front.read(1)) == OKAY


async def test_somebody_elses_grant(tmp_path: Path, isolation: str) -> None:
    """A reference is looked up in the table of the domain that the device belongs to, whoever uses the same number."""
    async with (
        running_rig(tmp_path, isolation=isolation) as rig,
        rig.guest([memory_disk(MIB)]) as victim,
        rig.guest([memory_disk(MIB)], name="thief") as thief,
    ):
        await victim.run(connect)
        used = await thief.run(connect)
        wanted = [gref for gref in await victim.run(grant_secrets) if gref > used]
        assert wanted
        await thief.run(steal, wanted, victim.domid)
        await victim.run(still_has_its_secrets)
        served_alone(rig, thief)


async def test_a_read_only_grant_is_never_written(tmp_path: Path, isolation: str) -> None:
    async def use(kernel: Kernel, _state: State) -> None:
        front = await raw(kernel)
        page = kernel.pages.allocate()
        page.view[:] = b"readonly" * 512
        gref = kernel.grants.grant(0, page.pfn, readonly=True)
        assert await front.status(request(READ, 1, 0, (gref, 0, 7))) == ERROR
        assert page.view == b"readonly" * 512
        assert await front.status(request(WRITE, 1, 0, (gref, 0, 7))) == OKAY
        assert await front.status(front.read(1)) == OKAY
        assert front.page(0) == b"readonly" * 512

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(use)
        served_alone(rig, guest)


async def test_answers_carry_nothing_but_the_answer(tmp_path: Path, isolation: str) -> None:
    """What the ring's pages held before is gone, and what lies behind a response is zero (XSA-216)."""

    async def use(kernel: Kernel, _state: State) -> None:
        front = await raw(kernel)
        slots = [
            front.read(1),
            front.write(2),
            request(99, 3, 0),
            request(READ, 4, SECTORS, (front.grefs[0], 0, 7)),
        ]
        slots += [request(READ, 5, 0, (front.grefs[0], 0, 3), (front.grefs[1], 0, 3)), request(FLUSH, 6, 0)]
        front.put(*slots)
        await front.answers(len(slots))
        for index, slot in enumerate(slots):
            found = bytes(front.ring_pages.view[64 + index * SLOT : 64 + (index + 1) * SLOT])
            assert found[:8] == slot[8:16]
            assert found[8] == slot[0]
            assert found[9] == 0
            assert not any(found[12:])

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(use)
        served_alone(rig, guest)


anything = st.one_of(
    st.binary(min_size=SLOT, max_size=SLOT),
    st.builds(
        lambda head, request_id, sector, rest: (head + request_id + sector + rest).ljust(SLOT, b"\0")[:SLOT],
        st.tuples(st.integers(0, 7), st.integers(0, 13), st.just(0), st.just(0))
        .map(bytes)
        .map(lambda b: b.ljust(8, b"\0")),
        st.integers(0, 3).map(lambda n: n.to_bytes(8, "little")),
        st.sampled_from([0, 1, 8, SECTORS - 8, SECTORS - 1, SECTORS, 1 << 63]).map(
            lambda n: n.to_bytes(8, "little")
        ),
        st.lists(
            st.tuples(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9)).map(
                lambda s: s[0].to_bytes(4, "little") + bytes([s[1], s[2], 0, 0])
            ),
            max_size=11,
        ).map(b"".join),
    ),
)


@both_persistences
async def test_any_slots_at_all(tmp_path: Path, isolation: str, persistent: bool) -> None:
    """Runs of random slots: each is answered once, with a status that the protocol has, and a good one still works."""
    runs: list[list[bytes]] = []

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.lists(anything, min_size=1, max_size=32))
    def draw(found: list[bytes]) -> None:
        runs.append(found)

    draw()

    async def send_all(kernel: Kernel, _state: State) -> None:
        front = await raw(kernel, persistent=persistent)
        for slots in runs:
            front.put(*slots)
            answers = await front.answers(len(slots))
            assert len(answers) == len(slots)
            assert {answer.status for answer in answers} <= {OKAY, ERROR, UNSUPPORTED}
            assert sorted(a.id for a in answers) == sorted(int.from_bytes(s[8:16], "little") for s in slots)
        assert await front.status(front.read(77, page=9)) == OKAY

    async with running_rig(tmp_path, isolation=isolation) as rig, rig.guest([memory_disk(MIB)]) as guest:
        await guest.run(send_all)
        served_alone(rig, guest)
        (served,) = rig.services.blocks.disks_of(guest.domid)
        assert sum(served.stats.requests.values()) == sum(map(len, runs)) + 1
