"""A device's `state` node: reading one, and changing the own one without undoing what the toolstack wrote.

A state is changed as Linux does it, by a transaction that reads the node and then writes it, so that a node
which the toolstack has removed does not come back. What was read is looked at, too: a node that says Closing
although its owner is not closing says that the toolstack detaches the device, and is not overwritten.
"""

from typing import Final

from kernel.xenbus.folder import is_gone
from kernel.xenbus.states import XenbusState, parse_state
from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreError
from kernel.xenstore.transaction import Transaction

ENDS: Final = (XenbusState.Closing, XenbusState.Closed, XenbusState.Unknown)
"""The states in which a device is not connected any more."""


class ToolstackCloses(Exception):
    """The own state node says Closing, and it was not us."""


async def read_state(store: XenStoreClient, folder: str) -> XenbusState:
    """The state in a device's folder; Unknown if there is none for us to see. Raises BadPeerState."""
    path = f"{folder}/state"
    try:
        return parse_state(path, await store.read(path))
    except StoreError as error:
        if is_gone(error):
            return XenbusState.Unknown
        raise


async def write_state(store: XenStoreClient, folder: str, before: XenbusState, after: XenbusState) -> None:
    """Change the own state. Raises ToolstackCloses, and StoreError if the node is gone; then nothing was
    written.
    """
    path = f"{folder}/state"

    async def switch(transaction: Transaction) -> None:
        found = parse_state(path, await transaction.read(path))
        if found is XenbusState.Closing and before not in ENDS and after not in ENDS:
            raise ToolstackCloses
        await transaction.write(path, str(int(after)))

    await store.transact(switch)
