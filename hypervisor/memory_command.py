"""The command of a memory_op: an operation, and above it how many extents are done (public/memory.h,
MEMOP_EXTENT_SHIFT).

The progress that a command claims was perhaps made up by the guest: handlers check it against the size of
the request.
"""

from __future__ import annotations

from typing import Final

from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op_number
from hypervisor.continuation import Continuation

MEMOP_EXTENT_SHIFT: Final = 6
MEMOP_CMD_MASK: Final = (1 << MEMOP_EXTENT_SHIFT) - 1
MAX_EXTENTS: Final = 0xFFFF_FFFF >> MEMOP_EXTENT_SHIFT  # more could not be encoded


def go_on(operation: int, done: int, arg: int) -> Continuation:
    """Continue `operation` on the struct at `arg` after `done` extents."""
    return Continuation(memory_op_number, (operation | done << MEMOP_EXTENT_SHIFT, arg))
