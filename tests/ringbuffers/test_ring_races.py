"""No wake-up is lost, whatever the peer does between two accesses to the shared memory.

The peer acts through the hook of `ringbuffers.testing` just before the n-th access: every interleaving of one
sleeping and one publishing end, access by access, in both directions.
"""

import mmap
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ringbuffers.ring import BackRing, FrontRing
from ringbuffers.shared_ring import SharedRing
from ringbuffers.testing import Access, AccessLog, watch
from tests.ringbuffers.pairs import STARTS, new_pair, run, slot

ENDS = ("frontend sleeps", "backend sleeps")


def ready_pair(start: int, which: str) -> tuple[SharedRing, SharedRing]:
    """(sleeper, publisher): both awake, nothing published, one slot put by the publisher."""
    front, back, _ = new_pair(start)
    front.put(slot(1))
    front.publish()
    back.take()
    back.put(slot(2))
    back.publish()
    front.take()
    if which == "backend sleeps":
        front.put(slot(3))
        return back, front
    front.put(slot(3))
    front.publish()
    back.take()
    back.put(slot(4))
    return front, back


class At:
    """Does something once, just before the n-th access."""

    def __init__(self, log: AccessLog, turn: int, action: Callable[[], bool]) -> None:
        self.result: bool | None = None
        self._turn = turn
        self._action = action
        log.before = self

    def __call__(self, _: Access) -> None:
        if self._turn == 0:
            self.result = self._action()
        self._turn -= 1


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("start", STARTS, ids=hex)
@pytest.mark.parametrize("turn", range(4))
def test_publishing_inside_the_final_check_is_seen_or_notified(start: int, which: str, turn: int) -> None:
    sleeper, publisher = ready_pair(start, which)
    at = At(watch(sleeper), turn, publisher.publish)
    work = sleeper.rearm()
    notified = publisher.publish() if at.result is None else at.result
    assert work or notified
    assert sleeper.take() is not None


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("start", STARTS, ids=hex)
@pytest.mark.parametrize("turn", range(3))
def test_a_final_check_inside_publishing_sees_it_or_is_notified(start: int, which: str, turn: int) -> None:
    sleeper, publisher = ready_pair(start, which)
    at = At(watch(publisher), turn, sleeper.rearm)
    notified = publisher.publish()
    work = sleeper.rearm() if at.result is None else at.result
    assert work or notified
    assert sleeper.take() is not None


def test_the_index_is_published_after_the_slots_and_before_the_peers_wish_is_read() -> None:
    front, _, _ = new_pair()
    log = watch(front)
    front.put_run(run(0, 2))
    front.put(slot(2))
    front.publish()
    assert [access.what for access in log.order] == [0, 1, 2, "req_prod", "req_event"]


def test_the_wish_is_written_before_the_peers_index_is_read_again() -> None:
    _, back, _ = new_pair()
    log = watch(back)
    assert not back.rearm()
    assert log.order == [("load", "req_prod"), ("store", "req_event"), ("load", "req_prod")]


def test_a_fence_stands_where_a_store_meets_a_later_load(monkeypatch: pytest.MonkeyPatch) -> None:
    front, back, _ = new_pair()
    log = watch(front)
    monkeypatch.setitem(FrontRing.publish.__globals__, "fence", lambda: log.note("fence", ""))
    front.put(slot(0))
    front.publish()
    front.rearm()
    assert [access.kind for access in log.order] == [
        "fill", "store", "fence", "load", "load", "store", "fence", "load"
    ]  # fmt: skip
    assert back.take() == slot(0)


REQUESTS = 12_000
DEPTH = 5


class Bell:
    """Wakes another process; stands in for an event channel. ends: a pipe's."""

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = ends

    def ring(self) -> None:
        os.write(self.ends[1], b"!")

    def wait(self) -> None:
        bell = select.poll()  # not select(): a long test run may have more than 1024 files open
        bell.register(self.ends[0], select.POLLIN)
        assert bell.poll(30_000), "a wake-up was lost"
        os.read(self.ends[0], 64)


def serve(back: BackRing, to_back: Bell, to_front: Bell) -> None:
    """The backend: answers all requests, and sleeps whenever there is none."""
    while back.taken < REQUESTS:
        for request in back.take_many():
            back.put(request)
        if back.publish():
            to_front.ring()
        if back.taken < REQUESTS and not back.rearm():
            to_back.wait()


def use(front: FrontRing, to_back: Bell, to_front: Bell) -> None:
    """The frontend: asks in small batches; sleeps whenever something is in flight and nothing has come."""
    while front.taken < REQUESTS:
        first = front.put_total
        front.put_many([slot(first + i) for i in range(min(front.free, DEPTH, REQUESTS - first))])
        if front.publish():
            to_back.ring()
        seen = front.taken
        for number, response in enumerate(front.take_many(), seen):
            assert response == slot(number)
        if front.in_flight and not front.rearm():
            to_front.wait()


BACKEND = """
import mmap, sys
from ringbuffers.ring import BackRing
from tests.ringbuffers.test_ring_races import Bell, serve
memory, *bells = map(int, sys.argv[1:])
back = BackRing.attach([memoryview(mmap.mmap(memory, 4096))], 112)
serve(back, Bell(bells[0:2]), Bell(bells[2:4]))
"""


def test_two_processes_lose_no_wake_up() -> None:
    """One lost wake-up and both ends would sleep for ever."""
    memory = os.memfd_create("ring")
    os.ftruncate(memory, 4096)
    front = FrontRing([memoryview(mmap.mmap(memory, 4096))], 112)
    to_back, to_front = Bell(os.pipe()), Bell(os.pipe())
    shared = (memory, *to_back.ends, *to_front.ends)
    command = [sys.executable, "-c", BACKEND, *map(str, shared)]
    try:
        with subprocess.Popen(command, pass_fds=shared, cwd=Path(__file__).parents[2]) as backend:
            use(front, to_back, to_front)
        assert backend.returncode == 0
    finally:
        for descriptor in shared:
            os.close(descriptor)
    assert 0 < front.notifications_sent <= REQUESTS
