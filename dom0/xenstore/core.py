"""The XenStore daemon without its I/O: bytes of many clients in, bytes out (docs/misc/xenstore.txt).

A client is a `Connection`; `receive` takes its bytes, `turn` serves whoever is next, `connection.output`
holds what to send. Nothing here waits, opens or reads a clock: time, domains and rings are handed in. An
error in our own code ends one connection, not the daemon.
"""

import heapq
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dom0.xenstore.connection import Connection, Failure, Transport
from dom0.xenstore.dispatch import handle
from dom0.xenstore.domain import Domain, DomainInfo
from dom0.xenstore.domains import INTRODUCED, RELEASED, ConnectRing, Domains, GetDomainInfo
from dom0.xenstore.errors import CannotConnect, ConnectionLost
from dom0.xenstore.fairness import Fairness
from dom0.xenstore.operations import make_directory
from dom0.xenstore.permissions import private_to
from dom0.xenstore.quotas import Quotas, SoftQuotas
from dom0.xenstore.store import Store
from dom0.xenstore.watches import Watches
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols.xs_wire import XS_TYPE_COUNT, MessageTooLong

# How many requests of one client are served before it is the next one's turn.
REQUESTS_PER_TURN: Final = 16
# How often one guest is complained about in the log.
_MAX_COMPLAINTS: Final = 10


def no_rings(domid: int, _gfn: int, _port: int) -> Transport:
    """For a daemon that serves sockets only."""
    raise CannotConnect(domid, "this daemon reaches no rings")


def no_domains(_domid: int) -> DomainInfo | None:
    """For a daemon on a machine without guests."""
    return None


class XenStore:
    """The store, its clients and the domains.

    now_ns: monotonic time. info, connect: see domains.py. log: takes a message.
    on_ready: called when somebody has to be served and nobody had; on_deadline: when `next_deadline_ns`
    became earlier.
    requests: carried out, by type; refused: answered with an error; conflicts: transactions that had to be
    repeated.
    """

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        info: GetDomainInfo = no_domains,
        connect: ConnectRing = no_rings,
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.now_ns = now_ns
        self.log = log
        self.tracing = False
        self.quotas = Quotas()
        self.soft_quotas = SoftQuotas()
        self.domains = Domains(self.quotas, info, connect)
        control = self.domains.control
        special = {name: private_to(control) for name in (INTRODUCED, RELEASED)}
        self.watches = Watches(now_ns, special, self._arm)
        self.fairness = Fairness(now_ns, self._arm)
        self.store = Store(
            control, lambda path, exact, before: self.watches.fire(self.store, path, exact, before)
        )
        self.connections: dict[Connection, None] = {}
        self.requests = [0] * XS_TYPE_COUNT
        self.refused = 0
        self.conflicts = 0
        self.on_ready: Callable[[], None] = lambda: None
        self.on_deadline: Callable[[], None] = lambda: None
        self._ready: deque[Connection] = deque()
        self._timers: list[tuple[int, int, Connection]] = []
        self._armed = 0
        own = Connection(self.store, control, self.wake, None)
        make_directory(own.direct, own, b"/tool/xenstored")

    # Clients

    def connect(self, domain: Domain | None = None, transport: Transport | None = None) -> Connection:
        """A new client: a domain's ring, or else a socket, which speaks for the control domain."""
        connection = Connection(self.store, domain or self.domains.control, self.wake, transport)
        self.connections[connection] = None
        if transport is not None:
            transport.attach(lambda: self.wake(connection))
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The client is gone. Its watches, transactions, requests and answers are forgotten."""
        if connection.closed:
            return
        connection.closed = True
        self._strip(connection)
        self.fairness.forget(connection)
        del self.connections[connection]
        if connection.domain.connection is connection:
            connection.domain.connection = None
        if connection.transport is not None:
            try:
                connection.transport.close()
            except Exception:
                self.log(f"{connection} was not closed cleanly:\n{traceback.format_exc()}")

    def ignore(self, connection: Connection, failure: Failure) -> None:
        """The client broke the protocol. A socket is closed; a ring rests until it is introduced anew."""
        if not connection.usable:
            return
        connection.failure = failure
        self._strip(connection)
        if connection.transport is not None:
            with suppress(ConnectionLost, PeerViolation):
                connection.transport.fail(failure)
        if connection.domain.connection is not connection:
            self.disconnect(connection)

    def _reset(self, connection: Connection) -> None:
        """The client starts anew on the same ring, at a message border."""
        connection.failure = None
        connection.violation = None
        self._strip(connection)
        connection.parser.reset()

    def _strip(self, connection: Connection) -> None:
        self.watches.remove_all(connection)
        connection.abandon_transactions()
        self.fairness.gave_up(connection)
        connection.inbox.clear()
        connection.output.clear()

    def receive(self, connection: Connection, data: bytes) -> None:
        """Bytes of a client, cut anywhere. They are served in its turns."""
        if connection.usable:
            self._parse(connection, data)
            self.wake(connection)

    def _parse(self, connection: Connection, data: bytes) -> None:
        try:
            connection.inbox.extend(connection.parser.feed(data))
        except MessageTooLong as violation:
            connection.inbox.extend(violation.messages)
            connection.violation = violation

    # Turns

    def wake(self, connection: Connection) -> None:
        """The client has something to be served or sent; it gets a turn."""
        if not connection.queued and not connection.closed:
            connection.queued = True
            self._ready.append(connection)
            if len(self._ready) == 1:
                self.on_ready()

    @property
    def ready(self) -> bool:
        """Whether anybody waits for a turn."""
        return bool(self._ready)

    def turn(self) -> None:
        """Serve the client whose turn it is: take in what it sent, answer some requests, send what fits."""
        connection = self._ready.popleft()
        connection.queued = False
        if connection.closed:
            return
        try:
            self._serve_turn(connection)
        except PeerViolation as violation:
            self._give_up(connection, Failure.RING_INDEX, str(violation))
        except ConnectionLost as loss:
            self._give_up(connection, Failure.COMMUNICATION, str(loss))
        except Exception:
            self._give_up(connection, Failure.COMMUNICATION, f"an error of ours:\n{traceback.format_exc()}")

    def _serve_turn(self, connection: Connection) -> None:
        transport = connection.transport
        if transport is not None:
            if transport.restarted():
                self._reset(connection)
            if not connection.inbox and connection.may_ask:
                data = transport.fill()
                if data:
                    self._parse(connection, data)
        self.serve(connection, REQUESTS_PER_TURN)
        if connection.violation is not None and connection.usable and not connection.inbox:
            self._give_up(connection, Failure.PROTOCOL, str(connection.violation))
        if not connection.usable:
            return
        more = transport is not None and transport.flush(connection.output)
        connection.blocked = not connection.may_ask
        if (more or connection.inbox) and not connection.blocked:
            self.wake(connection)
        self._warn(connection.domain)

    def _give_up(self, connection: Connection, failure: Failure, reason: str) -> None:
        """Ignore the client. A guest that starts anew to break the protocol again cannot fill the log."""
        connection.domain.complaints += 1
        if connection.privileged or connection.domain.complaints <= _MAX_COMPLAINTS:
            self.log(f"{connection} is ignored: {reason}")
        self.ignore(connection, failure)

    def serve(self, connection: Connection, limit: int) -> int:
        """Carry out up to `limit` requests that wait; how many that were."""
        inbox = connection.inbox
        served = 0
        while inbox and served < limit and connection.may_ask:
            handle(self, connection, inbox.popleft())
            served += 1
        return served

    def _warn(self, domain: Domain) -> None:
        """Report once that a guest takes much memory, and again once it took less."""
        much = not domain.privileged and domain.memory > self.soft_quotas.memory
        if much and not domain.warned:
            self.log(f"domain {domain.domid} holds {domain.memory} bytes of the store")
        domain.warned = much

    # Time

    def _arm(self, connection: Connection, deadline_ns: int) -> None:
        self._armed += 1
        heapq.heappush(self._timers, (deadline_ns, self._armed, connection))
        if self._timers[0][1] == self._armed:
            self.on_deadline()

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expire` is due, if it is."""
        return self._timers[0][0] if self._timers else None

    def expire(self) -> None:
        """Drop events that were not read in time, and let those go who waited long enough for others."""
        now = self.now_ns()
        while self._timers and self._timers[0][0] <= now:
            _, _, connection = heapq.heappop(self._timers)
            if connection.closed:
                continue
            self.fairness.expire(connection, now)
            connection.output.expire(now)
            deadline = connection.output.next_deadline_ns()
            connection.ticking = deadline is not None
            if deadline is not None:
                self._arm(connection, deadline)
