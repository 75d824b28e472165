"""What callers wait for: one or many requests, and how each becomes a slot when an id is free.

A request on its way is described by what its slot holds: the tuple of a request with one segment (most are), or the
packed slot. The description is kept until the answer comes, so that it can be sent again to a backend that comes back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import ClassVar

from kernel.parking import Waiter
from ringbuffers.protocols.blkif_runs import RW1

Description = RW1 | bytes
"""A request as it is on the ring. Of both kinds, the first item is the operation."""


class Submission(ABC):
    """Requests of one caller.

    operation: the BLKIF_OP_* that the caller asked for. waiter: woken when the last is answered. left: requests that have no id yet. remaining: requests that have no answer
    yet. failures: those that were refused, with their status. ended: no answer is waited for any more. abandoned: set when
    the caller has gone; called at the end. packed: `take` returns slots, not tuples.
    """

    packed: ClassVar[bool] = False

    __slots__ = ("abandoned", "ended", "failures", "left", "operation", "remaining", "waiter")

    def __init__(self, operation: int, count: int, waiter: Waiter[None]) -> None:
        self.operation = operation
        self.left = count
        self.remaining = count
        self.waiter = waiter
        self.ended = False
        self.failures: list[tuple[Description, int]] = []
        self.abandoned: Callable[[], None] | None = None

    @abstractmethod
    def take(self, ids: Sequence[int]) -> Sequence[Description]:
        """The next requests, one for each of `ids`, which are at most `left`."""

    def end(self, error: Exception | None) -> None:
        """Every request was answered, or none that has no answer ever will be, because of `error`."""
        self.ended = True
        if self.abandoned is not None:
            self.abandoned()
        elif error is None:
            self.waiter.wake(None)
        else:
            self.waiter.fail(error)


class Pages(Submission):
    """Reads or writes of one page each, or of the first sectors of one.

    sectors, grefs: of the pages, in order. lasts: the last sector used in each page; None: all eight of all.
    """

    __slots__ = ("_grefs", "_lasts", "_sectors")

    def __init__(
        self,
        operation: int,
        sectors: Sequence[int],
        grefs: Sequence[int],
        lasts: Sequence[int] | None,
        waiter: Waiter[None],
    ) -> None:
        super().__init__(operation, len(sectors), waiter)
        self._sectors = sectors
        self._grefs = grefs
        self._lasts = lasts

    def take(self, ids: Sequence[int]) -> Sequence[Description]:
        """Tuples of the columns, put together by `zip` alone."""
        start = len(self._sectors) - self.left
        end = start + len(ids)
        self.left -= len(ids)
        columns = ids, self._sectors[start:end], self._grefs[start:end]
        lasts = repeat(7) if self._lasts is None else self._lasts[start:end]
        return list(zip(repeat(self.operation), repeat(1), repeat(0), *columns, repeat(0), lasts))


class OnePage(Submission):
    """A read or write within one page, whose first `sectors` it uses."""

    __slots__ = ("_gref", "_last", "_sector")

    def __init__(self, operation: int, sector: int, sectors: int, gref: int, waiter: Waiter[None]) -> None:
        super().__init__(operation, 1, waiter)
        self._sector = sector
        self._last = sectors - 1
        self._gref = gref

    def take(self, ids: Sequence[int]) -> Sequence[Description]:
        """The one tuple."""
        self.left = 0
        return ((self.operation, 1, 0, ids[0], self._sector, self._gref, 0, self._last),)


class Slots(Submission):
    """Requests of any kind. pack: for each, makes the slot of the id that it is given."""

    packed: ClassVar[bool] = True

    __slots__ = ("_pack",)

    def __init__(self, operation: int, pack: Sequence[Callable[[int], bytes]], waiter: Waiter[None]) -> None:
        super().__init__(operation, len(pack), waiter)
        self._pack = pack

    def take(self, ids: Sequence[int]) -> Sequence[Description]:
        """Their slots."""
        start = len(self._pack) - self.left
        self.left -= len(ids)
        return [pack(request_id) for pack, request_id in zip(self._pack[start:], ids)]
