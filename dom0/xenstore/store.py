"""The tree, and the view of it that requests outside transactions have.

Nodes are found by their whole path, so that every step costs the same however large the store is. The store
also knows which open transactions looked at a path: a change spoils them (conflict), and leaves the node
objects that they hold as they were (isolation).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dom0.xenstore import paths
from dom0.xenstore.domain import Domain
from dom0.xenstore.node import Node
from dom0.xenstore.permissions import Permissions, private_to

if TYPE_CHECKING:
    from dom0.xenstore.connection import Connection
    from dom0.xenstore.transaction import Transaction

Announce = Callable[[bytes, bool, Permissions | None], None]


class Store:
    """The committed state.

    nodes: by path; the parent of every node is there and names it. generation: counts changes.
    readers: by path, the open transactions that looked at it since it last changed. A path without an entry
    is held by nobody, and its node may be altered in place.
    announce: told of every change (path, exact, permissions before) while a node that goes is still there.
    """

    __slots__ = ("announce", "generation", "nodes", "readers")

    def __init__(self, control: Domain, announce: Announce) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.readers: dict[bytes, set[Transaction]] = {}
        self.generation = 0
        self.announce = announce
        self.add(paths.ROOT, Node(b"", private_to(control)))

    def add(self, path: bytes, node: Node) -> None:
        """Put a node there that was not there."""
        self.generation += 1
        node.generation = self.generation
        self.nodes[path] = node
        node.permissions.owner.add_node(path, node.size)

    def remove(self, path: bytes) -> None:
        """Take a node away."""
        node = self.nodes.pop(path)
        node.permissions.owner.drop_node(path, node.size)

    def disturb(self, path: bytes, culprit: "Connection | None") -> None:
        """The path is about to change: who looked at it inside a transaction cannot commit any more."""
        readers = self.readers.pop(path, None)
        if readers is not None:
            for transaction in readers:
                transaction.spoil(path, culprit)


class Direct:
    """The view outside transactions: every change is visible to all at once."""

    __slots__ = ("connection", "store")

    def __init__(self, store: Store, connection: "Connection | None" = None) -> None:
        self.store = store
        self.connection = connection

    def peek(self, path: bytes) -> Node | None:
        return self.store.nodes.get(path)

    get = peek

    def nodes_of(self, domain: Domain) -> int:
        return domain.nodes

    def require_room(self, owner: Domain, _entries: int, size: int) -> None:
        if self.connection is not None and not self.connection.privileged:
            owner.require_memory(size)

    def change(self, path: bytes, node: Node) -> Node:
        store = self.store
        if path in store.readers:
            store.disturb(path, self.connection)
            node = store.nodes[path] = node.copy()
        store.generation += 1
        node.generation = store.generation
        return node

    def resize(self, node: Node, growth: int) -> None:
        node.permissions.owner.memory += growth

    def insert(self, path: bytes, node: Node) -> None:
        self.store.disturb(path, self.connection)
        self.store.add(path, node)

    def delete(self, path: bytes, _node: Node) -> None:
        self.store.disturb(path, self.connection)
        self.store.remove(path)

    def assign(self, path: bytes, node: Node, permissions: Permissions) -> None:
        node.permissions.owner.drop_node(path, node.size)
        node.permissions = permissions
        permissions.owner.add_node(path, node.size)

    def announce(self, path: bytes, exact: bool, permissions: Permissions | None) -> None:
        self.store.announce(path, exact, permissions)
