"""The life of a domain, as a table.

Pausing is apart from it (pause counts, as in Xen), and so is blocking (a state of each vCPU); `Status`
joins all three into the one word that a list of domains shows.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Final

from hypervisor.errors import InvalidArgument


class Life(Enum):
    """Where in its life a domain is."""

    CREATED = "created"  # being built: paused, never yet unpaused
    ALIVE = "alive"
    SHUT_DOWN = "shut down"  # for a reason; nothing of it runs, its memory stays for whoever looks
    DYING = "dying"  # being torn down, in slices
    DEAD = "dead"  # torn down; peers may still refer to its frames (a zombie)
    GONE = "gone"  # the domid is free again


class LifeEvent(Enum):
    """What moves a domain on."""

    START = "first unpause"
    SHUTDOWN = "SCHEDOP_shutdown, or a crash"
    RESUME = "resumed after a suspend"
    KILL = "destroydomain"
    RELINQUISHED = "all its resources are given up"
    UNREFERENCED = "no peer refers to its frames"


TRANSITIONS: Final = MappingProxyType(
    {
        (Life.CREATED, LifeEvent.START): Life.ALIVE,
        (Life.CREATED, LifeEvent.SHUTDOWN): Life.SHUT_DOWN,
        (Life.CREATED, LifeEvent.KILL): Life.DYING,
        (Life.ALIVE, LifeEvent.SHUTDOWN): Life.SHUT_DOWN,
        (Life.ALIVE, LifeEvent.KILL): Life.DYING,
        (Life.SHUT_DOWN, LifeEvent.RESUME): Life.ALIVE,
        (Life.SHUT_DOWN, LifeEvent.KILL): Life.DYING,
        (Life.DYING, LifeEvent.RELINQUISHED): Life.DEAD,
        (Life.DEAD, LifeEvent.UNREFERENCED): Life.GONE,
    }
)


class Status(Enum):
    """What a list of domains shows; the letter is xl's."""

    CREATED = "created"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUT_DOWN = "shut down"
    DYING = "dying"
    DEAD = "dead"


class WrongLife(InvalidArgument):
    """This cannot happen to a domain in that state of its life (EINVAL)."""

    def __init__(self, domid: int, life: Life, event: LifeEvent) -> None:
        super().__init__(f"domain {domid} ({life.value})", event.value)
        self.domid = domid
        self.life = life
        self.event = event


def next_life(domid: int, life: Life, event: LifeEvent) -> Life:
    """The state that follows; WrongLife for a pair that the table does not list."""
    following = TRANSITIONS.get((life, event))
    if following is None:
        raise WrongLife(domid, life, event)
    return following
