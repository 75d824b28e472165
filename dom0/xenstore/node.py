"""A node of the store: a value, permissions and the names of its children in the order of their creation."""

from typing import Final

from dom0.xenstore.permissions import Permissions

# What C xenstored's record of a node takes besides value and names; quotas are counted by it.
_RECORD_BYTES: Final = 24
_PERMISSION_BYTES: Final = 8
# Most nodes have no children, and share this.
_NO_CHILDREN: Final[dict[bytes, None]] = {}


class Node:
    """A node; its path is the key that it is found by.

    generation: when it was last changed, on the store's count of changes.
    children_size: bytes of the listing that DIRECTORY answers with.
    """

    __slots__ = ("_listing", "children", "children_size", "generation", "permissions", "value")

    def __init__(self, value: bytes, permissions: Permissions) -> None:
        self.value = value
        self.permissions = permissions
        self.children = _NO_CHILDREN
        self.children_size = 0
        self.generation = 0
        self._listing: bytes | None = b""

    @property
    def size(self) -> int:
        """Bytes that the node counts for, without its path."""
        return (
            _RECORD_BYTES + _PERMISSION_BYTES * self.permissions.count + len(self.value) + self.children_size
        )

    def permission_growth(self, permissions: Permissions) -> int:
        """How many bytes larger it were with these permissions."""
        return _PERMISSION_BYTES * (permissions.count - self.permissions.count)

    def copy(self) -> "Node":
        """An independent node with the same contents."""
        twin = Node(self.value, self.permissions)
        twin.children = self.children.copy() if self.children else _NO_CHILDREN
        twin.children_size = self.children_size
        twin.generation = self.generation
        twin._listing = self._listing
        return twin

    def add_child(self, name: bytes) -> None:
        """A child was created: it goes to the end of the list."""
        if self.children:
            self.children[name] = None
        else:
            self.children = {name: None}
        self.children_size += len(name) + 1
        self._listing = None

    def drop_child(self, name: bytes) -> None:
        """A child was removed."""
        del self.children[name]
        self.children_size -= len(name) + 1
        self._listing = None

    def listing(self) -> bytes:
        """The names, each with a NUL after it. Kept until they change: a long list is read in parts."""
        if self._listing is None:
            self._listing = b"".join([name + b"\0" for name in self.children])
        return self._listing
