"""The shared ring of split drivers, both ends (public/io/ring.h of Xen 4.17).

The frontend puts requests and takes responses; the backend takes requests and puts responses, in the same
slots. Each end owns two indices of its own (what it has put, what it has taken) and one event index in the
shared header, by which it asks to be notified. The other end's producer index is read once per call, bounded,
and only then believed.

The order of work, the same at both ends:

    put, put_many, put_run      fill slots that the peer does not look at yet
    publish                     show them to the peer; True: the caller must notify it
    take, take_many, take_run   copy out what the peer published; nobody looks at a slot a second time
    rearm                       before sleeping: ask for a notification and look again; True: do not sleep

Batches. `take_run` returns all slots at hand as one private `bytes`, slot after slot, and `put_run` stores
such bytes, whose slots a `struct.Struct` walks with `iter_unpack`: a fraction of the price of single slots.

    for id, operation, status in blkif_runs.unpack_response_run(front.take_run()): ...

After a `PeerViolation` nothing was taken, and every further take raises it again while the index stays wrong.
The owner closes the ring, once.

An end belongs to one thread. Before the pages are unmapped or freed, the owner detaches it.
"""

from collections.abc import Sequence
from typing import Self

from ringbuffers.errors import RingError, RingMisuse
from ringbuffers.indices import distance, wrap
from ringbuffers.shared_ring import PrivateIndices, SharedRing
from ringbuffers.slots import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SlotMemory


class FrontRing(SharedRing):
    """The frontend's end. It owns the shared memory until the backend maps it, and initialises the header."""

    _MY_PRODUCER = REQ_PROD
    _MY_EVENT = RSP_EVENT
    _PEER_PRODUCER = RSP_PROD
    _PEER_EVENT = REQ_EVENT
    _PEER_PRODUCER_NAME = "rsp_prod"
    _PUTS_FIRST = True

    __slots__ = ()

    def __init__(self, pages: Sequence[memoryview], slot_size: int) -> None:
        """A new ring (XEN_FRONT_RING_INIT) on zeroed pages; see SlotMemory.

        Raises RingMisuse for pages that cannot hold one.
        """
        memory = SlotMemory(pages, slot_size)
        memory.clear_header()
        memory.words[REQ_EVENT] = 1
        memory.words[RSP_EVENT] = 1
        self._attach(memory, 0, 0)

    @classmethod
    def attach(cls, pages: Sequence[memoryview], slot_size: int, indices: PrivateIndices) -> Self:
        """The same ring again, after a restore: the shared header is kept, `indices` are what was saved.

        Raises RingMisuse if they cannot belong together.
        """
        ring = cls.__new__(cls)
        memory = SlotMemory(pages, slot_size)
        consumed = wrap(indices.consumed)
        if distance(*indices) > memory.size:
            raise RingMisuse("saved indices", indices, f"at most {memory.size} slots in flight")
        ring._attach(memory, consumed + distance(indices.produced, consumed), consumed)
        return ring

    @property
    def free(self) -> int:
        """Slots that may still be put (RING_FREE_REQUESTS)."""
        return self.size - self.in_flight

    @property
    def in_flight(self) -> int:
        """Requests that were put and whose responses were not taken."""
        return self._produced - self._consumed

    @property
    def pending(self) -> int:
        """Responses to take (XEN_RING_NR_UNCONSUMED_RESPONSES). Raises PeerViolation."""
        return self._available()


class BackRing(SharedRing):
    """The backend's end, on pages that the frontend owns and may change at any time."""

    _MY_PRODUCER = RSP_PROD
    _MY_EVENT = REQ_EVENT
    _PEER_PRODUCER = REQ_PROD
    _PEER_EVENT = RSP_EVENT
    _PEER_PRODUCER_NAME = "req_prod"
    _PUTS_FIRST = False

    __slots__ = ()

    @classmethod
    def attach(cls, pages: Sequence[memoryview], slot_size: int, *, resume: bool = False) -> Self:
        """Attach to a ring that a frontend initialised (BACK_RING_ATTACH). The header is not written.

        resume: False starts at 0, a ring just initialised. True starts at the shared rsp_prod, a ring that
        another backend served before: what it took and did not answer is taken again. That is right if it
        answered in order or had nothing in flight. Look at the ring at once, without waiting for a
        notification.

        Raises RingMisuse for pages that cannot hold a ring, PeerViolation if req_prod is out of bounds
        already.
        """
        ring = cls.__new__(cls)
        memory = SlotMemory(pages, slot_size)
        start = memory.words[RSP_PROD] if resume else 0
        ring._attach(memory, start, start)
        ring._available()
        return ring

    def _no_room(self, count: int) -> RingError:
        unanswered = self._consumed - self._produced
        return RingMisuse("number of responses", count, f"at most {unanswered}, one for each request taken")

    @property
    def in_flight(self) -> int:
        """Requests that were taken and whose responses are not published."""
        return self._consumed - self._published

    @property
    def unconsumed(self) -> int:
        """Requests to take (XEN_RING_NR_UNCONSUMED_REQUESTS). Raises PeerViolation."""
        return self._available()
