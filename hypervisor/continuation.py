"""How long work is sliced: a handler does a bounded number of steps, then asks to be called again.

Xen preempts on time; we count steps, so that the bound can be tested. As in Xen, a continuation is a
hypercall with arguments that the guest could have passed itself: what it encodes is checked like
everything else.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SLICE_STEPS: Final = 512
"""How many steps of bounded work (entries, extents, ports, frames) a handler may do before it returns a
Continuation
"""


class Continuation(NamedTuple):
    """The work is not done: execute this hypercall next, for the same vCPU. Its result is the result of
    the first one.
    """

    number: int
    args: tuple[int, ...]
