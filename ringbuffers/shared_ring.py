"""What both ends of a shared ring have in common: put, publish, take, the final check (public/io/ring.h).

See `ringbuffers.ring` for the two ends and the order of work.

The private indices count for ever, without wrapping; they are cut to 32 bits where they meet the shared ones.
"""

from collections.abc import Sequence
from types import FunctionType
from typing import ClassVar, NamedTuple, cast

from ringbuffers.atomics import fence
from ringbuffers.errors import PeerViolation, RingError, RingFull, RingMisuse
from ringbuffers.indices import U32_MASK, wrap
from ringbuffers.slots import BytesLike, Detached, SlotMemory, SplitSlot


class PrivateIndices(NamedTuple):
    """The indices that one end keeps to itself: all that must be saved, beside the pages, to attach again."""

    produced: int
    consumed: int


class SharedRing:
    """One end of a ring; the class variables say which header word plays which part.

    high_water: the most requests in flight so far, as `publish` saw them. notifications_sent,
    notifications_suppressed: how often `publish` showed something and returned True, False.
    """

    _MY_PRODUCER: ClassVar[int]
    _MY_EVENT: ClassVar[int]
    _PEER_PRODUCER: ClassVar[int]
    _PEER_EVENT: ClassVar[int]
    _PEER_PRODUCER_NAME: ClassVar[str]
    # A frontend may put as many slots as the ring has beyond what it took, a backend none: it answers what it
    # took. What the peer may publish beyond what we published is the same the other way round.
    _PUTS_FIRST: ClassVar[bool]

    __slots__ = (
        "_consumed",
        "_first_consumed",
        "_first_produced",
        "_mask",
        "_memory",
        "_peer_seen",
        "_produced",
        "_published",
        "_put_lead",
        "_slot_views",
        "_take_lead",
        "_words",
        "high_water",
        "notifications_sent",
        "notifications_suppressed",
        "size",
        "slot_size",
    )

    def __init_subclass__(cls) -> None:
        # CPython specialises byte code for the one type that it meets. Both ends often share a process, and
        # in byte code that they shared each call would cost a quarter more: give each end its own.
        for name, function in vars(SharedRing).items():
            if isinstance(function, FunctionType) and name not in vars(cls):
                own = FunctionType(
                    function.__code__.replace(), function.__globals__, name, function.__defaults__
                )
                own.__doc__ = function.__doc__
                setattr(cls, name, own)

    def _attach(self, memory: SlotMemory, produced: int, consumed: int) -> None:
        self._memory = memory
        self._words = memory.words
        self._mask = memory.mask
        self._slot_views: list[memoryview | SplitSlot] = []
        self.size = memory.size
        self.slot_size = memory.slot_size
        self._put_lead = memory.size if self._PUTS_FIRST else 0
        self._take_lead = 0 if self._PUTS_FIRST else memory.size
        self._first_produced = self._produced = self._published = produced
        self._first_consumed = self._consumed = self._peer_seen = consumed
        self.high_water = 0
        self.notifications_sent = 0
        self.notifications_suppressed = 0

    @property
    def indices(self) -> PrivateIndices:
        """The private indices, to save beside the pages, without slots that were put and not published."""
        return PrivateIndices(wrap(self._published), wrap(self._consumed))

    @property
    def put_total(self) -> int:
        """Slots put so far."""
        return self._produced - self._first_produced

    @property
    def taken(self) -> int:
        """Slots taken so far."""
        return self._consumed - self._first_consumed

    def put(self, slot: BytesLike) -> None:
        """Store one slot; shorter data is padded with zeroes, so that nothing stale goes out (XSA-216).

        Raises RingFull if a frontend has no free slot, RingMisuse if a backend has no request left to answer
        or if `slot` is longer than slot_size bytes.
        """
        produced = self._produced
        if produced - self._consumed >= self._put_lead:
            raise self._no_room(1)
        if len(slot) != self.slot_size:
            slot = self._padded(slot)
        views = self._slot_views or self._view_slots()
        views[produced & self._mask][:] = slot
        self._produced = produced + 1

    def put_many(self, slots: Sequence[BytesLike]) -> None:
        """Store several slots, as `put` does: all of them or, when an error is raised, none."""
        if set(map(len, slots)) != {self.slot_size}:
            slots = [self._padded(slot) for slot in slots]
        self.put_run(b"".join(slots))

    def put_run(self, run: BytesLike) -> None:
        """Store the slots that `run` consists of: all of them or, when `put` would raise, none."""
        count = len(run) // self.slot_size
        if count * self.slot_size != len(run):
            raise RingMisuse("bytes of a run", len(run), f"a multiple of slot_size {self.slot_size}")
        produced = self._produced
        if produced + count - self._consumed > self._put_lead:
            raise self._no_room(count)
        self._memory.copy_in(produced, run)
        self._produced = produced + count

    def publish(self) -> bool:
        """Show the peer all that was put (RING_PUSH_*_AND_CHECK_NOTIFY). True: the caller must notify."""
        new, old = self._produced, self._published
        if new == old:
            return False
        self._published = new
        words = self._words
        words[self._MY_PRODUCER] = new & U32_MASK  # after the slots: x86-64 keeps stores in order
        fence()  # the peer sees the index before we look whether it sleeps
        wanted: bool = (new - words[self._PEER_EVENT]) & U32_MASK < new - old
        if wanted:
            self.notifications_sent += 1
        else:
            self.notifications_suppressed += 1
        in_flight = new - self._consumed if self._PUTS_FIRST else self._consumed - old
        if in_flight > self.high_water:  # noqa: PLR1730 (half the price of max)
            self.high_water = in_flight
        return wanted

    def take(self) -> bytes | None:
        """A copy of the next slot, or None. Raises PeerViolation as `take_run` does.

        The peer's index is read only when all that it was seen to have published is taken.
        """
        consumed = self._consumed
        if consumed == self._peer_seen and not self._available():
            return None
        views = self._slot_views or self._view_slots()
        slot = views[consumed & self._mask].tobytes()
        self._consumed = consumed + 1
        return slot

    def take_many(self, limit: int | None = None) -> list[bytes]:
        """Copies of the next slots, at most `limit`. Raises PeerViolation as `take_run` does."""
        run, step = self.take_run(limit), self.slot_size
        return [run[start : start + step] for start in range(0, len(run), step)]

    def take_run(self, limit: int | None = None) -> bytes:
        """Copies of the next slots, at most `limit`, as one run of bytes; empty if there are none.

        Raises PeerViolation, and takes nothing, if the peer's index passes what it may hold or goes
        backwards.
        """
        count = self._available()
        if limit is not None and limit < count:
            count = max(limit, 0)
        if not count:
            return b""
        consumed = self._consumed
        run = self._memory.copy_out(consumed, count)
        self._consumed = consumed + count
        return run

    def rearm(self) -> bool:
        """The final check before sleeping (RING_FINAL_CHECK_FOR_*). True: there is work, do not sleep.

        False: the peer will notify with the next slot that it publishes. An index out of bounds counts as
        work: the take that follows raises.
        """
        words = self._words
        idle = self._consumed & U32_MASK
        if self._peer_seen != self._consumed or words[self._PEER_PRODUCER] != idle:
            return True
        words[self._MY_EVENT] = (idle + 1) & U32_MASK
        fence()  # the peer sees our wish before we look for what it published meanwhile
        published_meanwhile: bool = words[self._PEER_PRODUCER] != idle
        return published_meanwhile

    def detach(self) -> None:
        """Let go of the shared pages, before they are unmapped or freed: this ring can never touch them
        again.

        Any later put, publish of something, take or rearm raises RingMisuse; the counters stay readable.
        """
        for view in self._slot_views:
            view.release()
        self._memory.release()
        self._memory = cast(SlotMemory, Detached())
        self._words = cast(memoryview, self._memory)
        self._slot_views = []

    def _available(self) -> int:
        """How many slots the peer has published that were not taken, from one read of its index.

        The index must be at or past where it was seen before, and at most where the peer may have come to by
        answering all that we published, or by asking for all that it has room for.
        """
        claimed = self._words[self._PEER_PRODUCER]
        consumed = self._consumed
        count: int = (claimed - consumed) & U32_MASK
        lowest, highest = self._peer_seen, self._published + self._take_lead
        if not lowest - consumed <= count <= highest - consumed:
            expected = f"{wrap(lowest):#x} to {wrap(highest):#x}"
            raise PeerViolation(self._PEER_PRODUCER_NAME, claimed, expected)
        self._peer_seen = consumed + count
        return count

    def _view_slots(self) -> list[memoryview | SplitSlot]:
        # Made when single slots are first asked for: a ring that moves runs never needs them.
        self._slot_views = self._memory.slots()
        return self._slot_views

    def _no_room(self, count: int) -> RingError:
        return RingFull(count, self._put_lead - self._produced + self._consumed)

    def _padded(self, slot: BytesLike) -> bytes:
        if len(slot) > self.slot_size:
            raise RingMisuse("bytes of a slot", len(slot), f"at most {self.slot_size}")
        return bytes(slot).ljust(self.slot_size, b"\0")
