"""Writing and removing descriptions in XenStore, inside transactions."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from dom0.toolstack.layout import Node
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

T = TypeVar("T")


class OneAtATime:
    """The transactions of a toolstack. They all change the same few folders, so that two at a time would only
    make each other begin anew.
    """

    def __init__(self, store: XenStoreClient) -> None:
        self._store = store
        self._turn = anyio.Lock()

    async def __call__(self, function: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `function` in a transaction, when its turn has come. Raises what XenStoreClient.transact does."""
        async with self._turn:
            return await self._store.transact(function)


async def write_nodes(transaction: Transaction, nodes: Iterable[Node]) -> None:
    """Writes `nodes` in their order; permissions are set at once: what follows below inherits them."""
    await transaction.write_nodes((node.path, node.value, node.permissions) for node in nodes)


async def remove_tree(transaction: Transaction, path: str) -> None:
    """Removes a node with everything below it, and then each parent that is left without children.

    Stops below the folder of a domain: `/local/domain/0` and `/libxl/1` stay. What is not there is removed.
    """
    kept = 3 if path.startswith("/local/domain/") else 2
    await _remove(transaction, path)
    parts = path.split("/")
    for depth in range(len(parts) - 1, kept + 1, -1):
        parent = "/".join(parts[:depth])
        try:
            if await transaction.directory(parent):
                return
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            continue
        await _remove(transaction, parent)


async def _remove(transaction: Transaction, path: str) -> None:
    try:
        await transaction.rm(path)
    except StoreError as error:
        if error.name != "ENOENT":
            raise
