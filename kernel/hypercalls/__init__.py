"""Typed hypercalls: one method for each operation that a kernel uses, alone or in a batch that leaves as one
multicall.
"""

from kernel.hypercalls.arguments import ArgumentsFull
from kernel.hypercalls.batch import Batch
from kernel.hypercalls.call import NotCalledYet, Pending
from kernel.hypercalls.errors import (
    HypercallBusy,
    HypercallError,
    HypercallExists,
    HypercallFault,
    HypercallInvalid,
    HypercallNoSuchDomain,
    HypercallNotFound,
    HypercallNotPermitted,
    HypercallOutOfMemory,
    HypercallUnsupported,
)
from kernel.hypercalls.grant_table import CopyEnd, CopyOp, MapResult, TableSize
from kernel.hypercalls.interface import Hypercalls

__all__ = [
    "ArgumentsFull",
    "Batch",
    "CopyEnd",
    "CopyOp",
    "HypercallBusy",
    "HypercallError",
    "HypercallExists",
    "HypercallFault",
    "HypercallInvalid",
    "HypercallNoSuchDomain",
    "HypercallNotFound",
    "HypercallNotPermitted",
    "HypercallOutOfMemory",
    "HypercallUnsupported",
    "Hypercalls",
    "MapResult",
    "NotCalledYet",
    "Pending",
    "TableSize",
]
