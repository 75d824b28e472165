"""A transaction: a view that keeps what it saw and what it changed to itself until it ends.

It commits only if nothing that it looked at was changed meanwhile (C xenstored's rule: any access counts,
also a look at a missing node and the listing of a parent). Then its nodes replace the committed ones as they
are.

What it has seen stays as it was. Once something of that has changed, what it looks at next is of a later
time: a parent may name a child that is gone, or not name one that is there. It cannot commit any more;
operations take that as it comes.
"""

from typing import TYPE_CHECKING, Final

from dom0.xenstore.domain import Domain
from dom0.xenstore.errors import Conflict, OverQuota, SpoiledByQuota
from dom0.xenstore.node import Node
from dom0.xenstore.permissions import Permissions
from dom0.xenstore.store import Store

if TYPE_CHECKING:
    from dom0.xenstore.connection import Connection

# What an entry costs us besides the node, charged so that looking at missing nodes is not free.
_ENTRY_BYTES: Final = 64


class Entry:
    """One path in a transaction.

    base: the committed node when the transaction first looked; node: as the transaction sees it (both None:
    missing).
    announced: an event is due at commit; exact: only for watches on this very path.
    """

    __slots__ = ("announced", "base", "exact", "modified", "node")

    def __init__(self, base: Node | None) -> None:
        self.base = base
        self.node = base
        self.modified = False
        self.announced = False
        self.exact = True


class Transaction:
    """An open transaction of a connection.

    entries: all it looked at, in this order; the store's `readers` names it at each of these that is
    unchanged.
    spoiled: somebody changed one of them, first `culprit` did at `conflict`. failed: a request in it ran into
    a quota.
    created: net nodes by owner that a commit would add. memory: bytes charged to the connection's domain.
    """

    __slots__ = (
        "conflict",
        "connection",
        "created",
        "culprit",
        "entries",
        "failed",
        "id",
        "memory",
        "spoiled",
        "store",
    )

    def __init__(self, store: Store, connection: "Connection", transaction_id: int) -> None:
        self.store = store
        self.connection = connection
        self.id = transaction_id
        self.entries: dict[bytes, Entry] = {}
        self.created: dict[Domain, int] = {}
        self.memory = 0
        self.failed = False
        self.spoiled = False
        self.culprit: Connection | None = None
        self.conflict = b""

    # Looking

    def peek(self, path: bytes) -> Node | None:
        entry = self.entries.get(path)
        return self.store.nodes.get(path) if entry is None else entry.node

    def get(self, path: bytes) -> Node | None:
        return self._enter(path).node

    def _enter(self, path: bytes) -> Entry:
        entry = self.entries.get(path)
        if entry is None:
            base = self.store.nodes.get(path)
            size = len(path) + (0 if base is None else base.size)
            self.require_room(self.connection.domain, 1, size)
            self._charge(_ENTRY_BYTES + size)
            entry = self.entries[path] = Entry(base)
            self.store.readers.setdefault(path, set()).add(self)
        return entry

    def require_room(self, _owner: Domain, entries: int, size: int) -> None:
        connection, domain = self.connection, self.connection.domain
        if connection.privileged:
            return
        limit = domain.quotas.transaction_nodes
        if len(self.entries) + entries > limit:
            raise OverQuota("transaction-nodes", limit, domain.domid)
        domain.require_memory(size + entries * _ENTRY_BYTES)  # until the end, all it holds is the caller's

    def nodes_of(self, domain: Domain) -> int:
        return domain.nodes + self.created.get(domain, 0)

    # Changing: requests ask for room before they begin, so that from here on nothing is refused.

    def change(self, path: bytes, node: Node) -> Node:
        entry = self.entries[path]
        if not entry.modified:
            node = entry.node = node.copy()
            entry.modified = True
        self.store.generation += 1
        node.generation = self.store.generation
        return node

    def resize(self, _node: Node, growth: int) -> None:
        self._charge(growth)

    def insert(self, path: bytes, node: Node) -> None:
        entry = self._enter(path)
        entry.node = node
        entry.modified = True
        self.store.generation += 1
        node.generation = self.store.generation
        self._count(node.permissions.owner, 1)
        self._charge(node.size)

    def delete(self, path: bytes, node: Node) -> None:
        entry = self.entries[path]
        entry.node = None
        entry.modified = True
        self._count(node.permissions.owner, -1)
        self._charge(-node.size)

    def assign(self, _path: bytes, node: Node, permissions: Permissions) -> None:
        self._count(node.permissions.owner, -1)
        before = node.size
        node.permissions = permissions
        self._count(permissions.owner, 1)
        self._charge(node.size - before)

    def announce(self, path: bytes, exact: bool, _permissions: Permissions | None) -> None:
        entry = self.entries[path]
        entry.exact = entry.exact and exact
        entry.announced = True

    def _count(self, owner: Domain, nodes: int) -> None:
        self.created[owner] = self.created.get(owner, 0) + nodes

    def _charge(self, size: int) -> None:
        self.memory += size
        self.connection.domain.memory += size

    # Ending

    def spoil(self, path: bytes, culprit: "Connection | None") -> None:
        """Something it looked at changes. The first to do so is remembered."""
        if not self.spoiled:
            self.spoiled = True
            self.culprit = culprit
            self.conflict = path

    def discard(self) -> None:
        """Forget everything. Called once, however it ends."""
        readers = self.store.readers
        for path in self.entries:
            looking = readers.get(path)
            if looking is not None:
                looking.discard(self)
                if not looking:
                    del readers[path]
        self.connection.domain.memory -= self.memory
        self.memory = 0

    def commit(self) -> None:
        """Make its changes the store's, all or none, then announce them. `discard` was called.

        Conflict, SpoiledByQuota or OverQuota, and nothing has changed.
        """
        if self.failed:
            raise SpoiledByQuota(self.id)
        if self.spoiled:
            raise Conflict(self.conflict)
        changes = [(path, entry) for path, entry in self.entries.items() if entry.modified]
        for path, entry in changes:
            if entry.node is not None and not entry.node.permissions.owner.alive:
                raise Conflict(path)
        if not self.connection.privileged:
            self._require_quotas(changes)
        for path, entry in changes:
            self._apply(path, entry)
        for path, entry in changes:
            if entry.announced and not (entry.base is None and entry.node is None):
                before = None if entry.base is None else entry.base.permissions
                self.store.announce(path, entry.exact, before)

    def _require_quotas(self, changes: list[tuple[bytes, Entry]]) -> None:
        for owner, nodes in self.created.items():
            limit = owner.quotas.nodes
            if nodes > 0 and not owner.privileged and owner.nodes + nodes > limit:
                raise OverQuota("nodes", limit, owner.domid)
        mine = self.connection.domain
        growth = 0
        for path, entry in changes:
            for node, sign in ((entry.base, -1), (entry.node, 1)):
                if node is not None and node.permissions.owner is mine:
                    growth += sign * (node.size + len(path))
        if growth > 0:
            mine.require_memory(growth)

    def _apply(self, path: bytes, entry: Entry) -> None:
        store = self.store
        if entry.base is None and entry.node is None:
            return
        store.disturb(path, self.connection)
        if entry.base is not None:
            store.remove(path)
        if entry.node is not None:
            store.add(path, entry.node)
