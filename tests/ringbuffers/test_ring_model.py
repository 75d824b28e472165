"""Both ends of a ring against a simple model: two queues, and who sleeps.

The model knows the protocol's promise: an end that went to sleep (`rearm` returned False) is notified of the
very next slot that its peer publishes, and an end that is awake is not disturbed.
"""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuffers.ring import BackRing, FrontRing
from ringbuffers.shared_ring import SharedRing
from tests.ringbuffers.pairs import SHAPES, STARTS, new_pair, slot

SLOT_SIZE = 100  # 32 slots a page; scattered pages cut some of them

counts = st.integers(1, 12)
limits = st.none() | st.integers(0, 12)
ways = st.sampled_from(["one by one", "many", "run"])


class End:
    """What the model knows of one end."""

    def __init__(self, ring: SharedRing) -> None:
        self.ring = ring
        self.unpublished: deque[bytes] = deque()
        self.inbox: deque[bytes] = deque()
        # A ring is initialised so that the first slot in either direction notifies.
        self.asleep = True
        self.sent = self.suppressed = 0


class RingModel(RuleBasedStateMachine):
    """Random puts, takes, publications and sleeps of both ends."""

    @initialize(start=st.sampled_from(STARTS), shape=st.sampled_from(SHAPES[:-1]))
    def set_up(self, start: int, shape: tuple[int, ...]) -> None:
        front, back, _ = new_pair(start, shape, SLOT_SIZE)
        self.front, self.back = End(front), End(back)
        self.free = front.size
        self.unanswered = 0
        self.number = start % 1000

    @rule(count=counts, way=ways)
    def request(self, count: int, way: str) -> None:
        count = min(count, self.free)
        self._put(self.front, count, way)
        self.free -= count

    @rule(count=counts, way=ways)
    def respond(self, count: int, way: str) -> None:
        count = min(count, self.unanswered)
        self._put(self.back, count, way)
        self.unanswered -= count

    @rule()
    def publish_requests(self) -> None:
        self._publish(self.front, self.back)

    @rule()
    def publish_responses(self) -> None:
        self._publish(self.back, self.front)

    @rule(limit=limits, way=ways)
    def take_requests(self, limit: int | None, way: str) -> None:
        self.unanswered += self._take(self.back, limit, way)

    @rule(limit=limits, way=ways)
    def take_responses(self, limit: int | None, way: str) -> None:
        self.free += self._take(self.front, limit, way)

    @precondition(lambda self: not self.front.asleep)
    @rule()
    def frontend_sleeps(self) -> None:
        self._sleep(self.front)

    @precondition(lambda self: not self.back.asleep)
    @rule()
    def backend_sleeps(self) -> None:
        self._sleep(self.back)

    @invariant()
    def the_ends_agree_with_the_model(self) -> None:
        front, back = self.front.ring, self.back.ring
        assert isinstance(front, FrontRing)
        assert isinstance(back, BackRing)
        assert front.free == self.free
        assert front.in_flight == front.size - self.free
        assert front.pending == len(self.front.inbox)
        assert back.unconsumed == len(self.back.inbox)
        assert back.in_flight == self.unanswered + len(self.back.unpublished)
        for end in (self.front, self.back):
            assert end.ring.notifications_sent == end.sent
            assert end.ring.notifications_suppressed == end.suppressed

    def _put(self, end: End, count: int, way: str) -> None:
        slots = [slot(self.number + i, SLOT_SIZE) for i in range(count)]
        self.number += count
        if way == "one by one":
            for one in slots:
                end.ring.put(one)
        elif way == "many":
            end.ring.put_many(slots)
        else:
            end.ring.put_run(b"".join(slots))
        end.unpublished.extend(slots)

    def _publish(self, end: End, peer: End) -> None:
        notify = end.ring.publish()
        assert notify == (bool(end.unpublished) and peer.asleep)
        if end.unpublished:
            end.sent += notify
            end.suppressed += not notify
        if notify:
            peer.asleep = False
        peer.inbox.extend(end.unpublished)
        end.unpublished.clear()

    def _take(self, end: End, limit: int | None, way: str) -> int:
        count = len(end.inbox) if limit is None else min(limit, len(end.inbox))
        if way == "one by one":
            taken = [one for one in (end.ring.take() for _ in range(count)) if one is not None]
        elif way == "many":
            taken = end.ring.take_many(limit)
        else:
            data = end.ring.take_run(limit)
            taken = [data[i : i + SLOT_SIZE] for i in range(0, len(data), SLOT_SIZE)]
        assert taken == [end.inbox.popleft() for _ in range(count)]
        return count

    def _sleep(self, end: End) -> None:
        end.asleep = not end.ring.rearm()
        assert end.asleep == (not end.inbox)


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
