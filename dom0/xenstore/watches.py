"""Watches by path, and the events that changes give.

A change costs one look-up per level of its path and one step per watch that matches, however many watches
there are.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Final

from dom0.xenstore import paths
from dom0.xenstore.connection import Connection
from dom0.xenstore.errors import AlreadyThere, Missing, TooBig
from dom0.xenstore.output import Ticket
from dom0.xenstore.permissions import READ, Permissions
from dom0.xenstore.store import Store
from ringbuffers.protocols.xs_wire import XENSTORE_PAYLOAD_MAX

# A guest that does not read its events for so long loses them; whoever caused them waits no longer.
EVENT_TIMEOUT_NS: Final = 20 * 10**9


class Watch:
    """One watch.

    path: absolute or special. skip: how much of a path its events leave out, if it was set by a relative one.
    """

    __slots__ = ("connection", "number", "path", "skip", "token")

    def __init__(self, connection: Connection, number: int, path: bytes, token: bytes, skip: int) -> None:
        self.connection = connection
        self.number = number
        self.path = path
        self.token = token
        self.skip = skip

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.path) + len(self.token)

    def payload(self, path: bytes) -> bytes:
        """The event for a change at `path`; for the watch's own path if it gets too long (XSA-324)."""
        payload = b"%s\0%s\0" % (path[self.skip :], self.token)
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            return b"%s\0%s\0" % (self.path[self.skip :], self.token)
        return payload


_age = attrgetter("number")


class Watches:
    """All watches of all connections.

    special: who may receive special events, by name. sent: events queued so far. ticket: of the guest's
    request that is being handled, if one is: events that it causes keep it outstanding. newborn: was set by
    this request; its first event follows the answer.
    arm: makes sure that a connection's output is expired at a time.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        special: dict[bytes, Permissions],
        arm: Callable[[Connection, int], None],
    ) -> None:
        self._by_path: dict[bytes, dict[Watch, None]] = {}
        self._count = 0
        self._now_ns = now_ns
        self._arm = arm
        self.special = special
        self.ticket: Ticket | None = None
        self.newborn: Watch | None = None
        self.sent = 0

    def add(self, connection: Connection, path: bytes, token: bytes, skip: int) -> Watch:
        """Register; AlreadyThere, TooBig (quota of watches) or OverQuota (memory)."""
        domain = connection.domain
        if (path, token) in connection.watches:
            raise AlreadyThere(path)
        if not connection.privileged and len(connection.watches) >= domain.quotas.watches:
            raise TooBig(path)
        domain.require_memory(len(path) + len(token))
        self._count += 1
        watch = Watch(connection, self._count, path, token, skip)
        domain.memory += watch.size
        connection.watches[path, token] = watch
        self._by_path.setdefault(path, {})[watch] = None
        return watch

    def remove(self, connection: Connection, path: bytes, token: bytes) -> None:
        """Missing if this connection has no such watch."""
        watch = connection.watches.pop((path, token), None)
        if watch is None:
            raise Missing(path)
        connection.domain.memory -= watch.size
        here = self._by_path[path]
        del here[watch]
        if not here:
            del self._by_path[path]

    def remove_all(self, connection: Connection) -> None:
        """The connection has none any more."""
        for path, token in list(connection.watches):
            self.remove(connection, path, token)

    def fire(self, store: Store, path: bytes, exact: bool, before: Permissions | None) -> None:
        """Send the events of a change at `path`, to those who may read the node, or might before.

        exact: only to watches on this very path. The oldest watch is served first.
        """
        matches = self._matching(path, exact)
        if len(matches) > 1:
            matches.sort(key=_age)
        for watch in matches:
            connection = watch.connection
            if connection.privileged or _may_know(store, connection, path, before):
                self.send(watch, path, self.ticket)

    def _matching(self, path: bytes, exact: bool) -> list[Watch]:
        by_path = self._by_path
        if exact:
            return list(by_path.get(path, ()))
        matches: list[Watch] = []
        while by_path:
            here = by_path.get(path)
            if here is not None:
                matches.extend(here)
            if len(path) == 1:
                break
            path = path[: path.rfind(b"/")] or paths.ROOT
        return matches

    def fire_special(self, name: bytes) -> None:
        """Send the events of `@introduceDomain` or `@releaseDomain`."""
        allowed = self.special[name]
        for watch in list(self._by_path.get(name, ())):
            connection = watch.connection
            if connection.privileged or allowed.access(connection.domain, connection.target) & READ:
                self.send(watch, name, self.ticket)

    def send(self, watch: Watch, path: bytes, ticket: Ticket | None) -> None:
        """Queue one event. A guest has to read it in time."""
        connection = watch.connection
        deadline = None if connection.privileged else self._now_ns() + EVENT_TIMEOUT_NS
        if connection.output.event(watch.payload(path), ticket, deadline):
            self.sent += 1
            if deadline is not None and not connection.ticking:
                connection.ticking = True
                self._arm(connection, deadline)
            connection.wake(connection)


def _may_know(store: Store, connection: Connection, path: bytes, before: Permissions | None) -> bool:
    """Whether a guest may learn of a change: it could read the node, or can read it or its parent."""
    domain, target = connection.domain, connection.target
    if before is not None and before.access(domain, target) & READ:
        return True
    node = store.nodes.get(path)
    if node is None:
        return False
    if node.permissions.access(domain, target) & READ:
        return True
    return bool(store.nodes[paths.parent(path)].permissions.access(domain, target) & READ)
