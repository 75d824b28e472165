"""What requests do to the tree, through a view. Everything is checked first, so that a refusal changes
nothing.

No step is recursive: paths may have a thousand components (XSA-418).
"""

from collections.abc import Iterator

from dom0.xenstore import paths
from dom0.xenstore.connection import Connection
from dom0.xenstore.errors import Denied, Invalid, Missing, OverQuota, OwnerKept, Refused
from dom0.xenstore.node import Node
from dom0.xenstore.permissions import OWN, READ, WRITE, Permissions
from dom0.xenstore.view import View


def find(view: View, connection: Connection, path: bytes, need: int) -> Node:
    """The node at `path` if the caller has all of `need` on it.

    Denied if not. If there is no node, Missing only for those who may see the nearest node above it; others
    shall not learn what exists, and get Denied.
    """
    node = view.get(path)
    if node is None:
        raise _absent(view, connection, path, need)
    if connection.privileged or node.permissions.access(connection.domain, connection.target) & need == need:
        return node
    raise Denied(path)


def _absent(view: View, connection: Connection, path: bytes, need: int) -> Refused:
    above, node = _nearest(view, path)
    view.get(above)
    if connection.privileged or node.permissions.access(connection.domain, connection.target) & need:
        return Missing(path)
    return Denied(path)


def _nearest(view: View, path: bytes) -> tuple[bytes, Node]:
    """The nearest existing node above `path`."""
    while True:
        path = paths.parent(path)
        node = view.peek(path)
        if node is not None:
            return path, node


def read(view: View, connection: Connection, path: bytes) -> Node:
    """The node, for its value, children or permissions."""
    return find(view, connection, path, READ)


def write(view: View, connection: Connection, path: bytes, value: bytes) -> None:
    """Set the value; a missing node and its missing parents are created."""
    try:
        node = find(view, connection, path, WRITE)
    except Missing:
        _create(view, connection, path, value)
    else:
        growth = len(value) - len(node.value)
        _require_size(connection, node.size + growth)
        if growth > 0:
            view.require_room(node.permissions.owner, 0, growth)
        node = view.change(path, node)
        node.value = value
        view.resize(node, growth)
    view.announce(path, False, None)


def make_directory(view: View, connection: Connection, path: bytes) -> None:
    """Create the node and its missing parents; one that is there stays as it is."""
    try:
        find(view, connection, path, WRITE)
    except Missing:
        _create(view, connection, path, b"")
        view.announce(path, False, None)


def _create(view: View, connection: Connection, path: bytes, value: bytes) -> None:
    """Create a missing node and its missing parents; all inherit from the nearest node above."""
    missing = [path]
    top = paths.parent(path)
    while view.peek(top) is None:
        missing.append(top)
        top = paths.parent(top)
    node = view.get(top)
    assert node is not None
    new = _new_nodes(node.permissions.inherited_by(connection.domain), missing, value)
    name = paths.leaf(missing[-1])
    _require_quotas(view, connection, node.size + len(name) + 1, new)
    if name not in node.children:  # see transaction.py
        node = view.change(top, node)
        node.add_child(name)
        view.resize(node, len(name) + 1)
    for created, child in new:
        view.insert(created, child)


def _new_nodes(permissions: Permissions, missing: list[bytes], value: bytes) -> list[tuple[bytes, Node]]:
    """The nodes to create, top first. `missing`: their paths, lowest first."""
    new: list[tuple[bytes, Node]] = []
    for path in reversed(missing):
        if new:
            new[-1][1].add_child(paths.leaf(path))
        new.append((path, Node(b"", permissions)))
    new[-1][1].value = value
    return new


def _require_quotas(
    view: View, connection: Connection, parent_size: int, new: list[tuple[bytes, Node]]
) -> None:
    if connection.privileged:
        return
    domain = connection.domain
    if view.nodes_of(domain) + len(new) > domain.quotas.nodes:
        raise OverQuota("nodes", domain.quotas.nodes, domain.domid)
    _require_size(connection, parent_size)
    size = 0
    for path, node in new:
        _require_size(connection, node.size)
        size += len(path) + node.size
    view.require_room(domain, len(new), size)


def _require_size(connection: Connection, size: int) -> None:
    domain = connection.domain
    if not connection.privileged and size > domain.quotas.node_size:
        raise OverQuota("node-size", domain.quotas.node_size, domain.domid)


def remove(view: View, connection: Connection, path: bytes) -> None:
    """Remove the node and all below it, whoever owns that.

    A missing node is removed already, if its parent is there.
    """
    try:
        node = find(view, connection, path, WRITE)
    except Missing:
        if view.peek(paths.parent(path)) is None:
            raise
        return
    if path == paths.ROOT:
        raise Invalid(path)
    remove_tree(view, path, node)


def remove_tree(view: View, path: bytes, node: Node) -> None:
    """Remove an existing node and all below it, children first. Watches below learn of theirs only."""
    above, name = paths.parent(path), paths.leaf(path)
    parent = view.get(above)
    doomed = list(_children_first(view, path, node))
    for gone, old in doomed:
        view.announce(gone, gone != path, old.permissions)
    if parent is not None and name in parent.children:  # see transaction.py
        parent = view.change(above, parent)
        parent.drop_child(name)
        view.resize(parent, -len(name) - 1)
    for gone, old in doomed:
        view.delete(gone, old)


def _children_first(view: View, path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """The subtree; every node comes after all that is below it."""
    stack = [(path, node, iter(node.children))]
    while stack:
        path, node, children = stack[-1]
        name = next(children, None)
        if name is None:
            stack.pop()
            yield path, node
        else:
            below = paths.join(path, name)
            child = view.get(below)
            if child is not None:  # see transaction.py
                stack.append((below, child, iter(child.children)))


def set_permissions(view: View, connection: Connection, path: bytes, permissions: Permissions) -> None:
    """Replace the list. Only the owner and control domains may, and only the latter may change the owner."""
    node = find(view, connection, path, WRITE | OWN)
    before = node.permissions
    if not connection.privileged and permissions.owner is not before.owner:
        raise OwnerKept(path)
    growth = node.permission_growth(permissions)
    _require_size(connection, node.size + growth)
    if growth > 0:
        view.require_room(before.owner, 0, growth)
    view.assign(path, view.change(path, node), permissions)
    view.announce(path, False, before)
