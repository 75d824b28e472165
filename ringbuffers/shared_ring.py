"""What both ends of a shared ring have in common: putting, publishing, taking and the final check
(public/io/ring.h).

See `ringbuffers.ring` for the two ends and the order of work.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

from ringbuffers.atomics import fence
from ringbuffers.errors import PeerViolation, RingError, RingFull, RingMisuse
from ringbuffers.indices import U32_MASK, wrap
from ringbuffers.slots import BytesLike, Detached, SlotMemory


class PrivateIndices(NamedTuple):
    """The indices that one end keeps to itself: all that must be saved, beside the pages, to attach again."""

    produced: int
    consumed: int


class SharedRing:
    """What both ends have in common; the class variables say which header word plays which part.

    taken, put_total: slots. high_water: the largest in_flight seen. notifications_sent and _suppressed: how
    often `publish` showed something new and returned True or False.
    """

    _MY_PRODUCER: ClassVar[int]
    _MY_EVENT: ClassVar[int]
    _PEER_PRODUCER: ClassVar[int]
    _PEER_EVENT: ClassVar[int]
    _PEER_PRODUCER_NAME: ClassVar[str]
    # A frontend may put `size` slots beyond what it has taken, a backend none: it answers what it took. What
    # the peer may publish beyond what we published is the same the other way round.
    _PUTS_FIRST: ClassVar[bool]

    __slots__ = (
        "_consumed",
        "_memory",
        "_peer_seen",
        "_produced",
        "_published",
        "_put_lead",
        "_take_lead",
        "_words",
        "high_water",
        "notifications_sent",
        "notifications_suppressed",
        "put_total",
        "size",
        "slot_size",
        "taken",
    )

    def _attach(self, memory: SlotMemory, slot_size: int, produced: int, consumed: int) -> None:
        self._memory = memory
        self._words = memory.words
        self.size = memory.size
        self.slot_size = slot_size
        self._put_lead = memory.size if self._PUTS_FIRST else 0
        self._take_lead = 0 if self._PUTS_FIRST else memory.size
        self._produced = produced
        self._published = produced
        self._consumed = consumed
        self._peer_seen = consumed
        self.taken = 0
        self.put_total = 0
        self.high_water = 0
        self.notifications_sent = 0
        self.notifications_suppressed = 0

    @property
    def indices(self) -> PrivateIndices:
        """The private indices, to save beside the pages, without slots that were put and not published."""
        return PrivateIndices(self._published, self._consumed)

    def put(self, slot: BytesLike) -> None:
        """Store one slot; shorter data is padded with zeroes, so that nothing stale reaches the peer
        (XSA-216).

        Raises RingFull if a frontend has no free slot, RingMisuse if a backend has no request left to answer
        or if `slot` is longer than slot_size bytes.
        """
        if len(slot) != self.slot_size:
            slot = self._padded(slot)
        self.put_run(slot)

    def put_many(self, slots: Sequence[BytesLike]) -> None:
        """Store several slots, as `put` does: all of them or, when an error is raised, none."""
        if any(len(slot) != self.slot_size for slot in slots):
            slots = [self._padded(slot) for slot in slots]
        self.put_run(b"".join(slots))

    def put_run(self, run: BytesLike) -> None:
        """Store the slots that `run` consists of: all of them or, when `put` would raise, none."""
        count, rest = divmod(len(run), self.slot_size)
        if rest:
            raise RingMisuse("bytes of a run", len(run), f"a multiple of slot_size {self.slot_size}")
        produced = self._produced
        room = (self._consumed + self._put_lead - produced) & U32_MASK
        if count > room:
            raise self._no_room(count, room)
        self._memory.copy_in(produced, run)
        self._produced = produced = (produced + count) & U32_MASK
        self.put_total += count
        if self._PUTS_FIRST:
            self._note_in_flight((produced - self._consumed) & U32_MASK)

    def publish(self) -> bool:
        """Show the peer all that was put (RING_PUSH_*_AND_CHECK_NOTIFY). True: the caller must notify."""
        new, old = self._produced, self._published
        if new == old:
            return False
        words = self._words
        words[self._MY_PRODUCER] = new  # after the slots: x86-64 keeps stores in order
        self._published = new
        fence()  # the peer sees the index before we look whether it sleeps
        if (new - words[self._PEER_EVENT]) & U32_MASK < (new - old) & U32_MASK:
            self.notifications_sent += 1
            return True
        self.notifications_suppressed += 1
        return False

    def take(self) -> bytes | None:
        """A copy of the next slot, or None. Raises PeerViolation as `take_run` does."""
        return self.take_run(1) or None

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
        self._consumed = consumed = (consumed + count) & U32_MASK
        self.taken += count
        if not self._PUTS_FIRST:
            self._note_in_flight((consumed - self._produced) & U32_MASK)
        return run

    def rearm(self) -> bool:
        """The final check before sleeping (RING_FINAL_CHECK_FOR_*). True: there is work, do not sleep.

        False: the peer will notify with the next slot that it publishes. Raises PeerViolation as `take_run`
        does.
        """
        if self._available():
            return True
        self._words[self._MY_EVENT] = (self._consumed + 1) & U32_MASK
        fence()  # the peer sees our wish before we look for what it published meanwhile
        return self._available() > 0

    def detach(self) -> None:
        """Let go of the shared pages, before they are unmapped or freed: this ring can never touch them
        again.

        Any later use of the ring raises RingMisuse; the counters stay readable.
        """
        self._memory.release()
        self._memory = cast(SlotMemory, Detached())
        self._words = cast(memoryview, self._memory)

    def _available(self) -> int:
        """How many slots the peer has published that were not taken, from one read of its bounded index."""
        claimed: int = self._words[self._PEER_PRODUCER]
        seen = self._peer_seen
        ceiling = self._published + self._take_lead
        if (claimed - seen) & U32_MASK > (ceiling - seen) & U32_MASK:
            expected = f"{seen:#x} to {wrap(ceiling):#x}"
            raise PeerViolation(self._PEER_PRODUCER_NAME, claimed, expected)
        self._peer_seen = claimed
        return (claimed - self._consumed) & U32_MASK

    def _no_room(self, count: int, room: int) -> RingError:
        return RingFull(count, room)

    def _padded(self, slot: BytesLike) -> bytes:
        if len(slot) > self.slot_size:
            raise RingMisuse("bytes of a slot", len(slot), f"at most {self.slot_size}")
        return bytes(slot).ljust(self.slot_size, b"\0")

    def _note_in_flight(self, in_flight: int) -> None:
        self.high_water = max(self.high_water, in_flight)
