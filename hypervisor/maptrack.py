"""The maptrack: which grants of others a domain has mapped, by handle.

A handle is what GNTTABOP_map_grant_ref returns and an unmap presents. Handles are reused as late as
possible (first in, first out, as in Xen), so that a stale one is noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hypervisor.grant_pin import Pin
    from hypervisor.grant_table import GrantTable

HANDLES_PER_FRAME: Final = 256
"""Xen's struct grant_mapping takes 16 bytes of a maptrack frame; a domain's limit is given in such frames"""


class Mapping:
    """One mapping of grant `reference` of `granter` at the mapper's guest frame `gpfn`."""

    __slots__ = ("gpfn", "granter", "pin", "readonly", "reference")

    def __init__(self, granter: GrantTable, reference: int, pin: Pin, gpfn: int, *, readonly: bool) -> None:
        self.granter = granter
        self.reference = reference
        self.pin = pin
        self.gpfn = gpfn
        self.readonly = readonly


class MapTrack:
    """All mappings that one domain has; at most `limit` at a time."""

    __slots__ = ("_free", "_slots", "limit")

    def __init__(self, frames: int) -> None:
        self.limit = frames * HANDLES_PER_FRAME
        self._slots: list[Mapping | None] = []  # by handle
        self._free: deque[int] = deque()

    def __iter__(self) -> Iterator[Mapping]:
        return (mapping for mapping in self._slots if mapping is not None)

    @property
    def full(self) -> bool:
        """Whether no handle is left."""
        return not self._free and len(self._slots) >= self.limit

    def add(self, mapping: Mapping) -> int:
        """Track a mapping; returns its handle. The caller has looked at `full`."""
        if self._free:
            handle = self._free.popleft()
            self._slots[handle] = mapping
        else:
            handle = len(self._slots)
            self._slots.append(mapping)
        return handle

    def get(self, handle: int) -> Mapping | None:
        """The mapping with this handle (unsigned), if there is one."""
        return self._slots[handle] if handle < len(self._slots) else None

    def remove(self, handle: int) -> None:
        """The mapping with this handle is undone."""
        self._slots[handle] = None
        self._free.append(handle)

    @property
    def emptied(self) -> bool:
        """Whether `pop` has taken out everything."""
        return not self._slots

    def pop(self) -> Mapping | None:
        """Take the last slot away, and its mapping out if it has one: for teardown, after which no handle is
        given out again.
        """
        return self._slots.pop()
