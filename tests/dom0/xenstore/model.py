"""The store as plainly as it can be said: everything is copied, everything is searched.

It answers as the real one has to: nodes with permissions by the life of a domain, transactions that copy what
they look at and conflict if any of it was touched since, a quota of nodes by owner, and watches.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

NOBODY = -1
MASKS = {"n": "", "r": "r", "w": "w", "b": "rw"}


@dataclass
class Node:
    """permissions: (letter, domid, life of that domain)."""

    value: str
    permissions: list[tuple[str, int, int]]
    children: list[str] = field(default_factory=list)

    @property
    def owner(self) -> int:
        return self.permissions[0][1]

    def spelled(self) -> str:
        return "".join(f"{letter}{domid}\0" for letter, domid, _ in self.permissions)


class Answer(Exception):
    """A request is answered with an error."""


def above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def below(path: str, name: str) -> str:
    return f"{path}/{name}" if path != "/" else f"/{name}"


class Global:
    """The committed nodes; touched: when a path was last changed or removed. hear: is told of changes."""

    def __init__(self, hear: Callable[[str, bool, Node | None], None]) -> None:
        self.nodes: dict[str, Node] = {"/": Node("", [("n", 0, 0)])}
        self.touched: dict[str, int] = {}
        self.now = 0
        self.announce = hear

    def look(self, path: str) -> Node | None:
        return self.nodes.get(path)

    peek = look

    def put(self, path: str, node: Node | None) -> None:
        self.now += 1
        self.touched[path] = self.now
        if node is None:
            del self.nodes[path]
        else:
            self.nodes[path] = node

    def owned(self, domid: int) -> int:
        return sum(node.owner == domid for node in self.nodes.values())


class Private:
    """A transaction. seen: what it looked at first, and when; own: as it is in the transaction."""

    def __init__(self, base: Global, who: int) -> None:
        self.base = base
        self.who = who
        self.seen: dict[str, tuple[Node | None, int]] = {}
        self.own: dict[str, Node | None] = {}
        self.changed: set[str] = set()
        self.due: dict[str, bool] = {}
        self.failed = False

    def spoiled(self) -> bool:
        return any(self.base.touched.get(path, 0) > when for path, (_, when) in self.seen.items())

    def peek(self, path: str) -> Node | None:
        return self.own[path] if path in self.own else self.base.nodes.get(path)

    def look(self, path: str) -> Node | None:
        if path not in self.seen:
            node = deepcopy(self.base.nodes.get(path))
            self.seen[path] = (node, self.base.now)
            self.own[path] = deepcopy(node)
        return self.own[path]

    def put(self, path: str, node: Node | None) -> None:
        self.look(path)
        self.own[path] = node
        self.changed.add(path)

    def owned(self, domid: int) -> int:
        changed = sum(n is not None and n.owner == domid for n in self.own.values())
        before = sum(n is not None and n.owner == domid for n, _ in self.seen.values())
        return self.base.owned(domid) + changed - before

    def announce(self, path: str, exact: bool, before: Node | None) -> None:
        self.due[path] = self.due.get(path, True) and exact

    def commit(self, lives: dict[int, int], quota: int) -> None:
        """Check everything, then change everything, then tell."""
        base, own = self.base, self.own
        if self.failed:
            raise Answer("ENOMEM")
        if self.spoiled():
            raise Answer("EAGAIN")
        if any(node is not None and lives[node.owner] != node.permissions[0][2] for node in own.values()):
            raise Answer("EAGAIN")
        for domid in lives:
            if self.who != 0 != domid and self.owned(domid) > max(quota, base.owned(domid)):
                raise Answer("ENOSPC")
        kept = [path for path in own if own[path] is not None or self.seen[path][0] is not None]
        for path in kept:
            if path in self.changed:
                base.put(path, own[path])
        for path in kept:
            if path in self.due:
                base.announce(path, self.due[path], self.seen[path][0])


View = Global | Private


class Model:
    """The requests. lives: how often each domain died. heard: what its watch on the root was told."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.store = Global(self.hear)
        self.lives = {0: 0}
        self.heard: dict[int, set[str]] = {}

    def hear(self, path: str, exact: bool, before: Node | None) -> None:
        if not exact:
            node, parent = self.store.nodes.get(path), self.store.nodes.get(above(path))
            candidates = [before, node] if node is None else [before, node, parent]
            for who, paths in self.heard.items():
                exists = node is not None or before is not None
                if exists and (who == 0 or any(n is not None and self.may(who, n, "r") for n in candidates)):
                    paths.add(path)

    def may(self, who: int, node: Node, need: str) -> bool:
        if who == 0 or node.permissions[0][1:] == (who, self.lives[who]):
            return True
        for letter, domid, life in node.permissions[1:]:
            if (domid, life) == (who, self.lives[who]):
                return need in MASKS[letter]
        return need in MASKS[node.permissions[0][0]]

    def find(self, view: View, who: int, path: str, need: str) -> Node:
        node = view.look(path)
        if node is not None:
            if not self.may(who, node, need):
                raise Answer("EACCES")
            return node
        nearest = above(path)
        while view.peek(nearest) is None:
            nearest = above(nearest)
        parent = view.look(nearest)
        assert parent is not None
        raise Answer("ENOENT" if self.may(who, parent, need) else "EACCES")

    def create(self, view: View, who: int, path: str, value: str) -> None:
        missing = [path]
        while view.peek(above(missing[-1])) is None:
            missing.append(above(missing[-1]))
        if who and view.owned(who) + len(missing) > self.quota:
            if isinstance(view, Private):
                view.failed = True
            raise Answer("ENOSPC")
        for made in reversed(missing):
            parent = view.look(above(made))
            assert parent is not None
            permissions = list(parent.permissions)
            if who:
                permissions[0] = (permissions[0][0], who, self.lives[who])
            if (name := made.rpartition("/")[2]) not in parent.children:
                parent = deepcopy(parent)
                parent.children.append(name)
                view.put(above(made), parent)
            view.put(made, Node(value if made == path else "", permissions))

    def write(self, view: View, who: int, path: str, value: str) -> str:
        try:
            node = deepcopy(self.find(view, who, path, "w"))
        except Answer as missing:
            if missing.args[0] != "ENOENT":
                raise
            self.create(view, who, path, value)
        else:
            node.value = value
            view.put(path, node)
        view.announce(path, False, None)
        return "OK\0"

    def make(self, view: View, who: int, path: str) -> str:
        try:
            self.find(view, who, path, "w")
        except Answer as missing:
            if missing.args[0] != "ENOENT":
                raise
            self.create(view, who, path, "")
            view.announce(path, False, None)
        return "OK\0"

    def remove(self, view: View, who: int, path: str) -> str:
        try:
            self.find(view, who, path, "w")
        except Answer as missing:
            if missing.args[0] == "ENOENT" and view.peek(above(path)) is not None:
                return "OK\0"
            raise
        if path == "/":
            raise Answer("EINVAL")
        self.cut(view, path)
        return "OK\0"

    def cut(self, view: View, path: str) -> None:
        parent, name = deepcopy(view.look(above(path))), path.rpartition("/")[2]
        self.cut_below(view, path, path)
        if parent is not None and name in parent.children:
            parent.children.remove(name)
            view.put(above(path), parent)

    def cut_below(self, view: View, path: str, top: str) -> None:
        node = view.look(path)
        if node is not None:
            for name in node.children:
                self.cut_below(view, below(path, name), top)
            view.announce(path, path != top, node)
            view.put(path, None)

    def permit(self, view: View, who: int, path: str, entries: list[tuple[str, int]]) -> str:
        if entries[0][1] not in self.lives:
            raise Answer("ENOENT")
        node = self.find(view, who, path, "w")
        if who and node.permissions[0][1:] != (who, self.lives[who]):
            raise Answer("EACCES")
        if who and entries[0][1] != who:
            raise Answer("EPERM")
        changed = deepcopy(node)
        changed.permissions = [(letter, domid, self.lives.get(domid, NOBODY)) for letter, domid in entries]
        view.put(path, changed)
        view.announce(path, False, node)
        return "OK\0"

    def bury(self, domid: int) -> None:
        """The domain died: its nodes go with all below them."""
        for path in sorted(self.store.nodes):
            node = self.store.nodes.get(path)
            if node is not None and node.owner == domid:
                if path == "/":
                    node.permissions[0] = (node.permissions[0][0], 0, 0)
                    self.store.put(path, node)
                else:
                    self.cut(self.store, path)
        self.lives[domid] += 1


def answer(request: Callable[[], str]) -> str:
    """What comes back."""
    try:
        return request()
    except Answer as error:
        return str(error.args[0])
