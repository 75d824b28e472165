"""What a live view of a run shows, however it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One row of the live table."""

    domid: int
    name: str
    state: str
    program: str = ""
    hypercalls: int = 0
    upcalls: int = 0
    requests: int = 0
    bytes_moved: int = 0
    last_line: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the live table shows; `hidden` domains had no room."""

    rows: Sequence[DomainStatus]
    hidden: int = 0
