"""What callers wait for: one or many requests, and how they become slots when there is room on the ring.

A submission waits in the queue until all of its requests have an id, and it is settled when all are
answered. What tasks ask for one by one is gathered in a `Plug`, so that it goes out as one run, too.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

from kernel.parking import Waiter
from ringbuffers.protocols.blkif import with_id
from ringbuffers.protocols.blkif_columns import pack_page_requests


class Caller:
    """Somebody who waits for `remaining` requests of one operation.

    waiter: woken when the last is answered. failures: the slots of those that were refused, and the status.
    ended: no answer is waited for any more. abandoned: set when the caller has gone; called at the end.
    """

    __slots__ = ("abandoned", "ended", "failures", "operation", "remaining", "waiter")

    def __init__(self, operation: int, remaining: int, waiter: Waiter[None]) -> None:
        self.operation = operation
        self.remaining = remaining
        self.waiter = waiter
        self.failures: list[tuple[bytes, int]] | None = None
        self.ended = False
        self.abandoned: Callable[[], None] | None = None

    def end(self, error: Exception | None) -> None:
        """Every request was answered, or none that has no answer ever will be, because of `error`."""
        self.ended = True
        if self.abandoned is not None:
            self.abandoned()
        elif error is None:
            self.waiter.wake(None)
        else:
            self.waiter.fail(error)


class Taken(NamedTuple):
    """The next requests of a submission as slots, whose each of them is, and how many there are of each
    operation.
    """

    slots: bytes
    callers: Iterable[Caller]
    counts: Sequence[tuple[int, int]]


class Submission(ABC):
    """Requests in the queue. left: how many have no id yet."""

    left: int

    @abstractmethod
    def take(self, ids: range) -> Taken:
        """The next requests, one for each of `ids`, which are at most `left`."""

    @abstractmethod
    def callers(self) -> Iterable[Caller]:
        """Everybody whose requests were not all taken."""


class Pages(Submission):
    """Requests of one caller, of one page each. head: of all. sectors, pages: where, and the page words."""

    __slots__ = ("_caller", "_head", "_pages", "_sectors", "left")

    def __init__(self, caller: Caller, head: int, sectors: Sequence[int], pages: Sequence[int]) -> None:
        self.left = len(sectors)
        self._caller = caller
        self._head = array("Q", (head,))
        self._sectors = array("Q", sectors)
        self._pages = array("Q", pages)

    def take(self, ids: range) -> Taken:
        start = len(self._sectors) - self.left
        end = start + len(ids)
        self.left -= len(ids)
        heads = self._head * len(ids)
        slots = pack_page_requests(heads, ids, self._sectors[start:end], self._pages[start:end])
        return Taken(slots, repeat(self._caller, len(ids)), ((self._caller.operation, len(ids)),))

    def callers(self) -> Iterable[Caller]:
        return (self._caller,)


class Plug(Submission):
    """Requests of many callers, of one page each; `add` is for as long as the first was not taken."""

    __slots__ = ("_callers", "_heads", "_pages", "_sectors", "_start", "left")

    def __init__(self) -> None:
        self.left = 0
        self._start = 0
        self._callers: list[Caller] = []
        self._heads: list[int] = []
        self._sectors: list[int] = []
        self._pages: list[int] = []

    def add(self, caller: Caller, head: int, sector: int, page: int) -> None:
        """One more request."""
        self.left += 1
        self._callers.append(caller)
        self._heads.append(head)
        self._sectors.append(sector)
        self._pages.append(page)

    def take(self, ids: range) -> Taken:
        start, self._start = self._start, self._start + len(ids)
        self.left -= len(ids)
        part = slice(start, self._start)
        heads = self._heads[part]
        slots = pack_page_requests(heads, ids, self._sectors[part], self._pages[part])
        return Taken(slots, self._callers[part], [(head & 0xFF, heads.count(head)) for head in set(heads)])

    def callers(self) -> Iterable[Caller]:
        return self._callers[self._start :]


class Slots(Submission):
    """Requests of one caller, of any kind. pack: for each, makes the slot of the id that it is given."""

    __slots__ = ("_caller", "_pack", "left")

    def __init__(self, caller: Caller, pack: Sequence[Callable[[int], bytes]]) -> None:
        self.left = len(pack)
        self._caller = caller
        self._pack = pack

    def take(self, ids: range) -> Taken:
        start = len(self._pack) - self.left
        self.left -= len(ids)
        packed = [pack(request_id) for pack, request_id in zip(self._pack[start:], ids)]
        return Taken(b"".join(packed), repeat(self._caller, len(ids)), ((self._caller.operation, len(ids)),))

    def callers(self) -> Iterable[Caller]:
        return (self._caller,)


class Resent(Submission):
    """Requests that were sent on a ring which is not there any more: the slots, and whose each of them is. They
    are counted already.
    """

    __slots__ = ("_requests", "left")

    def __init__(self, requests: Sequence[tuple[bytes, Caller]]) -> None:
        self.left = len(requests)
        self._requests = requests

    def take(self, ids: range) -> Taken:
        taken = self._rest()[: len(ids)]
        self.left -= len(ids)
        slots = b"".join([with_id(slot, request_id) for (slot, _), request_id in zip(taken, ids)])
        return Taken(slots, [caller for _, caller in taken], ())

    def callers(self) -> Iterable[Caller]:
        return [caller for _, caller in self._rest()]

    def _rest(self) -> Sequence[tuple[bytes, Caller]]:
        return self._requests[len(self._requests) - self.left :]
