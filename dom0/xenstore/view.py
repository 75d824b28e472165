"""The store as one request sees it: directly, or through a transaction.

The operations on the tree (operations.py) are written once, against this interface. Whatever a view refuses
it refuses before it has changed anything.
"""

from typing import TYPE_CHECKING, Protocol

from dom0.xenstore.domain import Domain
from dom0.xenstore.node import Node
from dom0.xenstore.permissions import Permissions

if TYPE_CHECKING:
    from dom0.xenstore.connection import Connection


class View(Protocol):
    """Nodes by path."""

    @property
    def connection(self) -> "Connection | None":
        """On whose behalf; None is the daemon itself."""

    def peek(self, path: bytes) -> Node | None:
        """The node, without the view remembering that it was looked at."""

    def get(self, path: bytes) -> Node | None:
        """The node. A transaction depends on the answer from now on, also if there is no node."""

    def nodes_of(self, domain: Domain) -> int:
        """How many nodes the domain owns."""

    def require_room(self, owner: Domain, entries: int, size: int, /) -> None:
        """OverQuota unless it may touch `entries` more nodes and add `size` bytes to those of `owner`."""

    def change(self, path: bytes, node: Node) -> Node:
        """The node that `get` gave, in a form that may be altered in place, as of a new generation."""

    def resize(self, node: Node, growth: int, /) -> None:
        """The node, after `change`, has become `growth` bytes longer."""

    def insert(self, path: bytes, node: Node) -> None:
        """A new node, which its parent names already."""

    def delete(self, path: bytes, node: Node, /) -> None:
        """The node is gone; its parent names it no more."""

    def assign(self, path: bytes, node: Node, permissions: Permissions, /) -> None:
        """Replace the permissions, and with them maybe the owner, of a node after `change`."""

    def announce(self, path: bytes, exact: bool, permissions: Permissions | None, /) -> None:
        """The node was changed: tell the watches on it and, unless `exact`, on all above it.

        permissions: what the node had before, if they were changed or the node goes.
        """
