"""The store recounted from first principles: CONTROL check and the tests hold the counters against it."""

from collections import Counter
from typing import TYPE_CHECKING

from dom0.xenstore import paths
from dom0.xenstore.domain import Domain

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore


def problems(core: "XenStore") -> list[str]:
    """Everything that is not as it has to be; empty if all is well."""
    return [*_tree(core), *_counters(core), *_readers(core)]


def _tree(core: "XenStore") -> list[str]:
    """Every node is named by its parent, names only what is there, and counts its names right."""
    nodes = core.store.nodes
    found: list[str] = []
    for path, node in nodes.items():
        above = nodes.get(paths.parent(path))
        if above is None or (path != paths.ROOT and paths.leaf(path) not in above.children):
            found.append(f"{path!r} is not named by its parent")
        found.extend(
            f"{path!r} names a missing {name!r}"
            for name in node.children
            if paths.join(path, name) not in nodes
        )
        if node.children_size != len(node.listing()):
            found.append(f"{path!r} counts {node.children_size} bytes of names")
        if not node.permissions.owner.alive:
            found.append(f"{path!r} is owned by a dead domain {node.permissions.owner.domid}")
    return found


def _counters(core: "XenStore") -> list[str]:
    """Every domain's counters are the sums over what it has."""
    nodes: Counter[Domain] = Counter()
    memory: Counter[Domain] = Counter()
    for path, node in core.store.nodes.items():
        nodes[node.permissions.owner] += 1
        memory[node.permissions.owner] += node.size + len(path)
    for connection in core.connections:
        memory[connection.domain] += connection.output.size
        memory[connection.domain] += sum(watch.size for watch in connection.watches.values())
        memory[connection.domain] += sum(t.memory for t in connection.transactions.values())
    found: list[str] = []
    for domain in core.domains.known.values():
        if domain.nodes != nodes[domain]:
            found.append(f"domain {domain.domid} counts {domain.nodes} nodes, has {nodes[domain]}")
        if domain.memory != memory[domain]:
            found.append(f"domain {domain.domid} counts {domain.memory} bytes, has {memory[domain]}")
        owned = {p for p, n in core.store.nodes.items() if n.permissions.owner is domain}
        if not domain.privileged and owned != set(domain.owned):
            found.append(f"domain {domain.domid} does not know which nodes it owns")
    return found


def _readers(core: "XenStore") -> list[str]:
    """Only open transactions are told of conflicts, and all that can still commit."""
    open_transactions = {t for c in core.connections for t in c.transactions.values()}
    found = [
        f"{path!r} is held by a transaction that ended"
        for path, readers in core.store.readers.items()
        if not readers or not readers <= open_transactions
    ]
    for transaction in open_transactions:
        if not transaction.spoiled:
            found.extend(
                f"a change of {path!r} would go unnoticed by transaction {transaction.id}"
                for path in transaction.entries
                if transaction not in core.store.readers.get(path, ())
            )
    return found
