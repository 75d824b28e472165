"""What the daemon knows of one domain: its identity in permissions, what it owns, and what that costs.

One object is one life of a domain. Whoever takes over the number of a dead domain gets a new object, so that
neither permissions (XSA-322, XSA-417) nor counters (XSA-483) pass on: permissions name the object, not the
number.
"""

from typing import TYPE_CHECKING, NamedTuple

from dom0.xenstore.errors import OverQuota
from dom0.xenstore.quotas import Quotas

if TYPE_CHECKING:
    from dom0.xenstore.connection import Connection

CONTROL_DOMID = 0


class DomainInfo(NamedTuple):
    """What the hypervisor says of a domain that exists (getdomaininfo).

    identity: anything that differs between two domains which had the same number, such as the handle.
    """

    shutdown: bool = False
    dying: bool = False
    identity: object = None


class Domain:
    """One life of one domain.

    nodes, memory: the nodes it owns; the bytes of these, of its watches, open transactions and unread output.
    owned: the paths of its nodes (not kept for the control domain, which never dies).
    alive: until its number may go to another domain.
    connection: its ring, while it is introduced. shutdown: its end was announced already.
    warned: the log says that it takes much memory. complaints: how often its connection was given up.
    """

    __slots__ = (
        "alive",
        "complaints",
        "connection",
        "domid",
        "identity",
        "memory",
        "nodes",
        "owned",
        "privileged",
        "quotas",
        "shutdown",
        "warned",
    )

    def __init__(self, domid: int, quotas: Quotas, identity: object = None) -> None:
        self.domid = domid
        self.privileged = domid == CONTROL_DOMID
        self.quotas = quotas
        self.identity = identity
        self.alive = True
        self.nodes = 0
        self.memory = 0
        self.owned: dict[bytes, None] = {}
        self.connection: Connection | None = None
        self.shutdown = False
        self.warned = False
        self.complaints = 0

    def __repr__(self) -> str:
        return f"Domain({self.domid}, nodes={self.nodes}, memory={self.memory})"

    @property
    def over_memory(self) -> bool:
        """Whether it holds more than it may, which only its unread output can lead to."""
        return not self.privileged and self.memory > self.quotas.memory

    def require_memory(self, size: int) -> None:
        """OverQuota if `size` more bytes would exceed what the domain may hold."""
        if not self.privileged and self.memory + size > self.quotas.memory:
            raise OverQuota("memory", self.quotas.memory, self.domid)

    def add_node(self, path: bytes, size: int) -> None:
        """The node is now in the store and is the domain's."""
        self.nodes += 1
        self.memory += size + len(path)
        if not self.privileged:
            self.owned[path] = None

    def drop_node(self, path: bytes, size: int) -> None:
        """The reverse of add_node, with the node's size of now."""
        self.nodes -= 1
        self.memory -= size + len(path)
        if not self.privileged:
            del self.owned[path]
