"""Whoever makes a transaction fail lets its owner go first.

C xenstored slows down all guests' writes while any transaction is open, so that a guest which writes all the
time cannot starve the toolstack's transactions (XSA-206). Here only who really spoilt one waits: until its
victim has ended a transaction that looked at the same node, or for a bounded time. So a victim needs one try
more than there are guests that disturb it, and nobody else is slowed down.

A control domain waits for nobody. A guest that made another wait cannot do so again for ten times as long, so
that this is no weapon either.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from dom0.xenstore.connection import Connection
from dom0.xenstore.transaction import Transaction

# How long a guest waits at most: for a control domain, which may be a tool with a round trip for each of 100
# requests, and for another guest.
HOLD_FOR_CONTROL_NS: Final = 10**9
HOLD_FOR_GUEST_NS: Final = 10**8
_PARDON_FACTOR: Final = 10


class Hold(NamedTuple):
    """`culprit` waits for `victim`, who looked at `path`, until `deadline_ns`."""

    victim: Connection
    culprit: Connection
    path: bytes
    deadline_ns: int


class Fairness:
    """The holds of all connections. arm: makes sure that `expire` is called for a connection at a time."""

    def __init__(self, now_ns: Callable[[], int], arm: Callable[[Connection, int], None]) -> None:
        self._now_ns = now_ns
        self._arm = arm

    def spoilt(self, transaction: Transaction) -> None:
        """The transaction could not commit, for what its culprit did."""
        victim, culprit = transaction.connection, transaction.culprit
        if culprit is None or culprit is victim or culprit.privileged or not culprit.usable:
            return
        now = self._now_ns()
        if culprit.pardons.get(victim, 0) > now:
            return
        deadline = now + (HOLD_FOR_CONTROL_NS if victim.privileged else HOLD_FOR_GUEST_NS)
        self._lift_all([hold for hold in culprit.holds.values() if hold.victim is victim])
        hold = Hold(victim, culprit, transaction.conflict, deadline)
        culprit.holds[victim] = hold
        victim.holding[culprit] = hold
        self._arm(culprit, deadline)

    def ended(self, transaction: Transaction) -> None:
        """The transaction was committed or given up: who spoilt it before need not wait any longer."""
        victim = transaction.connection
        if victim.holding:
            self._lift_all([hold for hold in victim.holding.values() if hold.path in transaction.entries])

    def expire(self, culprit: Connection, now_ns: int) -> None:
        """Let a connection go that has waited long enough."""
        self._lift_all([hold for hold in culprit.holds.values() if hold.deadline_ns <= now_ns])
        for victim in [victim for victim, until in culprit.pardons.items() if until <= now_ns]:
            del culprit.pardons[victim]

    def gave_up(self, victim: Connection) -> None:
        """All its transactions are abandoned."""
        self._lift_all(list(victim.holding.values()))

    def forget(self, connection: Connection) -> None:
        """The connection is gone: nobody waits for it, and it waits for nobody."""
        self._lift_all([*connection.holds.values(), *connection.holding.values()])
        connection.pardons.clear()

    def _lift_all(self, holds: list[Hold]) -> None:
        for hold in holds:
            victim, culprit = hold.victim, hold.culprit
            del culprit.holds[victim]
            del victim.holding[culprit]
            if not victim.privileged:
                now = self._now_ns()
                waited = min(now - (hold.deadline_ns - HOLD_FOR_GUEST_NS), HOLD_FOR_GUEST_NS)
                culprit.pardons[victim] = now + _PARDON_FACTOR * waited
                self._arm(culprit, culprit.pardons[victim])
            if not culprit.holds:
                culprit.relieved()
