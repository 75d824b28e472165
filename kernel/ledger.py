"""Who granted which page to whom: the book that finds leaks.

A grant outlives nothing silently: every reference is entered with its owner (the device or program that
granted it, taken from the task that runs) and crossed out when it ends. Whether a page is mapped is not in
the book; the flags in the shared entry say that, and the hypervisor writes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

_owner: Final[ContextVar[str]] = ContextVar("grant_owner", default="kernel")


@contextmanager
def owned_by(name: str) -> Iterator[None]:
    """What this task, and those it starts, grant inside the block belongs to `name`, such as
    `device/vbd/51712`.
    """
    token = _owner.set(name)
    try:
        yield
    finally:
        _owner.reset(token)


class Entry(NamedTuple):
    """One grant that has not been ended: page `pfn` for domain `domid`, on behalf of `owner`."""

    reference: int
    domid: int
    pfn: int
    readonly: bool
    owner: str


class Leak(NamedTuple):
    """A grant that was still there when its domain shut down."""

    entry: Entry
    mapped: bool

    def __str__(self) -> str:
        reference, domid, pfn, readonly, owner = self.entry
        mode = "read-only" if readonly else "writable"
        state = "still mapped there" if self.mapped else "never ended"
        return f"grant {reference}: pfn {pfn:#x} {mode} for domain {domid} by {owner}, {state}"


class Ledger:
    """The grants of one kernel that have not been ended, by reference."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def enter(self, reference: int, domid: int, pfn: int, *, readonly: bool) -> None:
        """A grant begins."""
        self._entries[reference] = Entry(reference, domid, pfn, readonly, _owner.get())

    def find(self, reference: int) -> Entry | None:
        """The entry of a grant that has not been ended."""
        return self._entries.get(reference)

    def cross_out(self, reference: int) -> None:
        """A grant has ended."""
        del self._entries[reference]
