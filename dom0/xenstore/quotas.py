"""What one unprivileged domain may take. Names, values and descriptions are C xenstored's (CONTROL quota)."""

from dataclasses import dataclass, field, fields
from typing import Any


def _quota(value: int, name: str, description: str) -> Any:
    return field(default=value, metadata={"name": name, "description": description})


@dataclass(slots=True)
class Quotas:
    """The limits that a request fails on. Each is the largest number allowed; control domains have none."""

    nodes: int = _quota(1000, "nodes", "Nodes per domain")
    watches: int = _quota(128, "watches", "Watches per domain")
    transactions: int = _quota(10, "transactions", "Transactions per domain")
    outstanding: int = _quota(20, "outstanding", "Outstanding requests per domain")
    transaction_nodes: int = _quota(
        1024, "transaction-nodes", "Max. number of accessed nodes per transaction"
    )
    memory: int = _quota(2560 * 1024, "memory", "Total Xenstore memory per domain (error level)")
    node_size: int = _quota(2048, "node-size", "Max. size of a node")
    path_max: int = _quota(2048, "path-max", "Max. length of a node path")
    permissions: int = _quota(5, "permissions", "Max. number of permissions per node")


@dataclass(slots=True)
class SoftQuotas:
    """The limits that are only reported."""

    memory: int = _quota(2048 * 1024, "memory", "Total Xenstore memory per domain (warning level)")


def describe(quotas: Quotas | SoftQuotas) -> str:
    """The text that CONTROL answers with."""
    lines = (
        f"{f.metadata['name']:<17}: {getattr(quotas, f.name):8d} {f.metadata['description']}\n"
        for f in fields(quotas)
    )
    return "Quota settings:\n" + "".join(lines)


def change(quotas: Quotas | SoftQuotas, name: str, value: int) -> bool:
    """Set the quota that CONTROL calls `name`; whether there is one."""
    for f in fields(quotas):
        if f.metadata["name"] == name:
            setattr(quotas, f.name, value)
            return True
    return False
