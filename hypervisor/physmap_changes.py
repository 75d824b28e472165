"""What changes in a guest's physmap, as its journal says it: for whoever has to map the same into a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from hypervisor.guest_memory import PageKind


@dataclass(frozen=True, slots=True)
class MapRam:
    """`count` guest frames from `gpfn` are the domain's own frames from `mfn` on, all in one extent."""

    gpfn: int
    mfn: int
    count: int


@dataclass(frozen=True, slots=True)
class MapPage:
    """`gpfn` shows a frame that is not ordinary RAM: a special one of the domain, or one of another domain."""

    gpfn: int
    mfn: int
    writable: bool
    kind: PageKind


@dataclass(frozen=True, slots=True)
class Unmap:
    """Nothing is mapped at `count` guest frames from `gpfn` any more."""

    gpfn: int
    count: int


Change: TypeAlias = MapRam | MapPage | Unmap


class Journal(Protocol):
    """Who follows a physmap: a list, or whoever looks up for himself what stands there now."""

    def append(self, change: Change, /) -> None:
        """One change more; it is about to be made, in the same step of the core."""
