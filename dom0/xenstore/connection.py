"""One client: a domain's ring or a Unix socket, with its requests, answers, watches and transactions."""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from dom0.xenstore import paths
from dom0.xenstore.domain import Domain
from dom0.xenstore.errors import OverQuota
from dom0.xenstore.output import Output
from dom0.xenstore.store import Direct, Store
from dom0.xenstore.transaction import Transaction
from ringbuffers.protocols.xs_wire import Message, MessageTooLong, Parser

if TYPE_CHECKING:
    from dom0.xenstore.fairness import Hold
    from dom0.xenstore.watches import Watch

# Answers that a control client may leave unread before its requests wait. Guests have a quota of requests
# instead.
_CONTROL_OUTPUT_BYTES = 256 * 1024
_LAST_ID = 2**32 - 1


class Failure(Enum):
    """Why a connection is not served any more; the values are xs_wire.h's XENSTORE_ERROR_*."""

    COMMUNICATION = 1
    RING_INDEX = 2
    PROTOCOL = 3


class Transport(Protocol):
    """What carries the bytes. No call waits. `restarted`, `fill`, `flush` and `fail` may raise ConnectionLost
    or PeerViolation.
    """

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake`, which is quick, whenever the client sent something or made room."""

    def restarted(self) -> bool:
        """Whether the client asked to start anew. If so, both directions are empty now."""

    def fill(self) -> bytes:
        """What has arrived."""

    def flush(self, output: Output) -> bool:
        """Send what fits; whether more has arrived."""

    def fail(self, failure: Failure) -> None:
        """Tell the client that it is not served any more."""

    def close(self) -> None:
        """Let go of whatever carries the bytes."""


class Connection:
    """The state of one client.

    domain: whose requests these are (sockets are the control domain's). target: the domain that it acts for.
    inbox: requests that arrived and wait. failure: set once it is ignored; its domain lives on (XSA-325).
    outstanding: a guest's requests whose answers or events are unread.
    violation: its stream broke off after what is in the inbox.
    queued: it waits for its turn. blocked: its requests have to wait until it is `relieved`.
    holds: whose transactions it spoilt and has to wait for; holding: who waits for it; pardons: who cannot
    make it wait again before a time. ticking: its output will be expired.
    """

    __slots__ = (
        "blocked",
        "closed",
        "direct",
        "domain",
        "failure",
        "holding",
        "holds",
        "home",
        "inbox",
        "next_transaction",
        "output",
        "outstanding",
        "pardons",
        "parser",
        "privileged",
        "queued",
        "target",
        "ticking",
        "transactions",
        "transport",
        "violation",
        "wake",
        "watches",
    )

    def __init__(
        self, store: Store, domain: Domain, wake: Callable[["Connection"], None], transport: Transport | None
    ) -> None:
        self.domain = domain
        self.privileged = domain.privileged
        self.home = paths.home(domain.domid) + b"/"
        self.wake = wake
        self.transport = transport
        self.direct = Direct(store, self)
        self.target: Domain | None = None
        self.parser = Parser()
        self.inbox: deque[Message] = deque()
        self.output = Output(domain)
        self.outstanding = 0
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.failure: Failure | None = None
        self.closed = False
        self.violation: MessageTooLong | None = None
        self.queued = False
        self.blocked = False
        self.ticking = False
        self.holds: dict[Connection, Hold] = {}
        self.holding: dict[Connection, Hold] = {}
        self.pardons: dict[Connection, int] = {}

    def __repr__(self) -> str:
        kind = "ring" if self.domain.connection is self else "socket"
        return f"<{kind} of domain {self.domain.domid}>"

    @property
    def usable(self) -> bool:
        """Whether it is served at all."""
        return self.failure is None and not self.closed

    @property
    def may_ask(self) -> bool:
        """Whether its next request may be taken now: it reads its answers and has to wait for nobody."""
        if self.failure is not None or self.closed:
            return False
        if self.privileged:
            return self.output.size < _CONTROL_OUTPUT_BYTES
        domain = self.domain
        return (
            self.outstanding < domain.quotas.outstanding
            and not self.holds
            and not (self.output and domain.over_memory)
        )

    def relieved(self) -> None:
        """What kept its requests waiting may be over."""
        if self.blocked:
            self.blocked = False
            self.wake(self)

    def canonical(self, path: bytes) -> bytes:
        """The absolute form; special watch paths stay as they are. Not checked."""
        return path if path[:1] in (b"/", paths.SPECIAL) else self.home + path

    def start_transaction(self) -> Transaction:
        """Open a transaction. OverQuota if a guest has too many; ids are the connection's own, from 1."""
        limit = self.domain.quotas.transactions
        if not self.privileged and len(self.transactions) >= limit:
            raise OverQuota("transactions", limit, self.domain.domid)
        number = self.next_transaction
        while number in self.transactions:
            number = number % _LAST_ID + 1
        self.next_transaction = number % _LAST_ID + 1
        transaction = Transaction(self.direct.store, self, number)
        self.transactions[number] = transaction
        return transaction

    def end_transaction(self, transaction: Transaction) -> None:
        """It is over and forgotten; what it changed is still to be committed, if it shall be."""
        del self.transactions[transaction.id]
        transaction.discard()

    def abandon_transactions(self) -> None:
        """Forget all that are open."""
        for transaction in list(self.transactions.values()):
            self.end_transaction(transaction)
