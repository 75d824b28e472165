"""A device's folder in XenStore: reading one, publishing keys, the error node.

Whatever a peer wrote is data of its choice: the number of nodes that are read is bounded, sizes are bounded
by the protocol, and nodes may vanish at any time (ENOENT) or become unreadable (EACCES: what a domain may not
see, for a domU).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from kernel.errors import KernelError
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

MAX_FOLDER_NODES: Final = 128
DEFAULT_ERRNO: Final = 22
_MAX_ERROR_TEXT: Final = 512


class PeerKeysViolation(KernelError):
    """The peer's folder has more nodes than any device needs."""

    def __init__(self, path: str, count: int) -> None:
        super().__init__(f"{path} has {count} nodes, expected at most {MAX_FOLDER_NODES}")
        self.path = path
        self.count = count


def is_gone(error: StoreError) -> bool:
    """Whether a node is not there, as far as this domain may know."""
    return error.name in ("ENOENT", "EACCES")


async def read_folder(store: XenStoreClient, path: str, names: Sequence[str] | None = None) -> dict[str, str]:
    """The values of the nodes `names` in `path`, or of all its nodes; those that are gone are left out.

    Raises PeerKeysViolation, and StoreError when the folder itself is gone and no names were given.
    """
    if names is None:
        names = await store.directory(path)
        if len(names) > MAX_FOLDER_NODES:
            raise PeerKeysViolation(path, len(names))
    values = await store.read_many([f"{path}/{name}" for name in names])
    return {name: value for name, value in zip(names, values) if value is not None}


async def publish(store: XenStoreClient, path: str, keys: Mapping[str, str]) -> None:
    """Write `keys` into the folder in one transaction."""

    async def write(transaction: Transaction) -> None:
        await transaction.write_many({f"{path}/{name}": value for name, value in keys.items()})

    if keys:
        await store.transact(write)


async def write_error(store: XenStoreClient, path: str, error: Exception) -> None:
    """Say in `error/<path>/error` what went wrong, as Linux does: an errno and a text. Never raises for the
    store's sake.
    """
    errno = getattr(error, "errno", None)
    text = f"{errno if isinstance(errno, int) else DEFAULT_ERRNO} {error}"
    try:
        await store.write(f"error/{path}/error", text.replace("\0", " ")[:_MAX_ERROR_TEXT])
    except StoreError:
        return
