"""The XenStore client: requests, watches and transactions over the ring page that a domain shares with the
daemon.
"""

from kernel.xenstore.client import XenStoreClient
from kernel.xenstore.errors import StoreConnectionBroken, StoreError, TransactionConflict
from kernel.xenstore.transaction import Transaction
from kernel.xenstore.watches import Watch

__all__ = [
    "StoreConnectionBroken",
    "StoreError",
    "Transaction",
    "TransactionConflict",
    "Watch",
    "XenStoreClient",
]
