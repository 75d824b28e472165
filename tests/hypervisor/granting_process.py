"""A granter in a process of its own: a kernel's grants on a shared frame of the grant table, and nothing else."""

from types import SimpleNamespace
from typing import cast

from kernel.errors import StillMapped
from kernel.grants import Grants
from kernel.hypercalls import Hypercalls
from kernel.pages import PageAllocator

ROUNDS = 150_000
USER, PFN = 7, 0x1234
REFERENCE = 8
"""the only one that is granted: the lowest that a kernel gives out"""
USED = 4000
"""a byte of an entry that is not granted: the user has the grant in use"""


def grant_and_end(page: memoryview) -> None:
    """Grant and end, often. A grant that has ended is in use no more, and nobody begins to use it."""
    grants = kernel_grants(page)
    for _ in range(ROUNDS):
        reference = grants.grant(USER, PFN)
        assert reference == REFERENCE
        while not ended(grants):
            pass
        assert not page[USED]


def ended(grants: Grants) -> bool:
    try:
        grants.end(REFERENCE)
    except StillMapped:
        return False
    return True


def kernel_grants(page: memoryview) -> Grants:
    memory = SimpleNamespace(page=lambda _pfn: page, share=lambda _domid, _pfns, readonly: None)
    pages = SimpleNamespace(reserve_gpfns=lambda _count: 0)
    hypercalls = SimpleNamespace(
        grant_query_size=lambda: (0, SimpleNamespace(max_frames=1)),
        add_to_physmap=lambda _space, _index, _gpfn: None,
    )
    return Grants(memory, cast(PageAllocator, pages), cast(Hypercalls, hypercalls))
