"""For tests of whoever uses a ring: see every access to its shared memory, and change that memory in between.

log = watch(ring)
log.before = lambda access: ...     # a hostile or busy peer, acting just before the access
ring.take_run()
assert log.loads["req_prod"] == 1 and set(log.copied.values()) == {1}
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from ringbuffers.shared_ring import SharedRing
from ringbuffers.slots import BytesLike, SlotMemory, SplitSlot

WORD_NAMES: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")


class Access(NamedTuple):
    """One access.

    kind: "load" or "store" of a header word, "copy" or "fill" of a slot. what: its name or its position.
    """

    kind: str
    what: str | int


class AccessLog:
    """What a watched ring has done to its shared memory so far.

    loads, stores: header words by name; copied, filled: slots by position; how often each. order: them all.
    """

    def __init__(self) -> None:
        self.before: Callable[[Access], None] | None = None
        self.order: list[Access] = []

    @property
    def loads(self) -> Counter[str | int]:
        """How often each header word was read."""
        return self._count("load")

    @property
    def stores(self) -> Counter[str | int]:
        """How often each header word was written."""
        return self._count("store")

    @property
    def copied(self) -> Counter[str | int]:
        """How often each slot was copied out."""
        return self._count("copy")

    @property
    def filled(self) -> Counter[str | int]:
        """How often each slot was written."""
        return self._count("fill")

    def note(self, kind: str, what: str | int) -> None:
        """Record an access that is about to happen."""
        access = Access(kind, what)
        if self.before is not None:
            self.before(access)
        self.order.append(access)

    def _count(self, kind: str) -> Counter[str | int]:
        return Counter(access.what for access in self.order if access.kind == kind)


def watch(ring: SharedRing) -> AccessLog:
    """Log every access that `ring` makes to its shared memory from now on."""
    log = AccessLog()
    ring._memory = cast(SlotMemory, _Memory(ring._memory, log))
    ring._words = cast(memoryview, _Words(ring._words, log))
    ring._slot_views = []
    return log


class _Words:
    def __init__(self, words: memoryview, log: AccessLog) -> None:
        self._words = words
        self._log = log

    def __getitem__(self, index: int) -> int:
        self._log.note("load", WORD_NAMES[index])
        value: int = self._words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._log.note("store", WORD_NAMES[index])
        self._words[index] = value


class _Memory:
    def __init__(self, memory: SlotMemory, log: AccessLog) -> None:
        self._memory = memory
        self._log = log

    def copy_out(self, index: int, count: int) -> bytes:
        for position in range(index, index + count):
            self._log.note("copy", position & self._memory.mask)
        return self._memory.copy_out(index, count)

    def copy_in(self, index: int, data: BytesLike) -> None:
        for position in range(index, index + len(data) // self._memory.slot_size):
            self._log.note("fill", position & self._memory.mask)
        self._memory.copy_in(index, data)

    def slots(self) -> list["_Slot"]:
        return [_Slot(slot, position, self._log) for position, slot in enumerate(self._memory.slots())]

    def release(self) -> None:
        self._memory.release()


class _Slot:
    def __init__(self, slot: memoryview | SplitSlot, position: int, log: AccessLog) -> None:
        self._slot = slot
        self._position = position
        self._log = log

    def tobytes(self) -> bytes:
        self._log.note("copy", self._position)
        return self._slot.tobytes()

    def __setitem__(self, whole: slice, data: BytesLike) -> None:
        self._log.note("fill", self._position)
        self._slot[whole] = data

    def release(self) -> None:
        self._slot.release()
