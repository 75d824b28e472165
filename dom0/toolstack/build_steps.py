"""What building any domain takes: memory, event channels and grants for the two rings, looks at its pages."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from dom0.toolstack.errors import BuildError, ForeignMapRefused, OutOfMachineMemory
from hypervisor.abi.grant_table import GTF_permit_access, grant_entry_v1
from hypervisor.abi.xen import DOMID_SELF
from kernel.errors import KernelError
from kernel.hypercalls import Hypercalls
from kernel.kernel import Kernel

_LARGEST_ORDER: Final = 9
_EXTENTS_A_CALL: Final = 512


@dataclass(frozen=True, slots=True)
class BuiltDomain:
    """A domain that is complete and paused. store_gfn, console_gfn: its rings, in its own frame numbers. p2m: of a
    native domain whose machine frames are not in order, the u64 number of each of its pages, packed.
    """

    domid: int
    pages: int
    store_port: int
    store_gfn: int
    console_port: int
    console_gfn: int
    p2m: bytes = b""


@contextmanager
def step(name: str, what: str) -> Iterator[None]:
    """What goes wrong in the block is a BuildError of domain `name`."""
    try:
        yield
    except (KernelError, OSError) as error:
        raise BuildError(name, what, error) from error


def populate(hypercalls: Hypercalls, domid: int, first: int, pages: int) -> None:
    """RAM from frame `first` on, in extents as large as a toolstack may ask for, then in ever smaller ones for the
    rest. Raises OutOfMachineMemory.
    """
    done = 0
    for order in range(_LARGEST_ORDER, -1, -1):
        count = (pages - done) >> order
        while count:
            start = first + done
            extents = range(start, start + (min(count, _EXTENTS_A_CALL) << order), 1 << order)
            populate_extents(hypercalls, domid, extents, order)
            done = extents.stop - first
            count = (pages - done) >> order


def populate_extents(hypercalls: Hypercalls, domid: int, extents: Sequence[int], order: int) -> None:
    """RAM in all of these extents. Raises OutOfMachineMemory."""
    done = hypercalls.populate_physmap(extents, order=order, domid=domid)
    if done != len(extents):
        raise OutOfMachineMemory(domid, len(extents) << order, done << order)


def open_ports(hypercalls: Hypercalls, domid: int) -> tuple[int, int]:
    """Ports of the domain that dom0 may bind to, for the XenStore ring and the console."""
    with hypercalls.batch() as batch:
        store = batch.evtchn_alloc_unbound(0, domid)
        console = batch.evtchn_alloc_unbound(0, domid)
    return store.result(), console.result()


def write_grants(frame: memoryview, rings: Mapping[int, int]) -> None:
    """Entries of a grant table's first frame by which dom0 may map the rings: by reference, their frames."""
    for reference, gfn in rings.items():
        entry = grant_entry_v1(flags=GTF_permit_access, domid=0, frame=gfn)
        start = reference * grant_entry_v1.size
        frame[start : start + grant_entry_v1.size] = entry.pack()


@contextmanager
def foreign_page(kernel: Kernel, domid: int, gfn: int) -> Iterator[memoryview]:
    """A page of the domain, mapped into this one for a while. Raises ForeignMapRefused."""
    ours = kernel.pages.reserve_gpfns(1)
    try:
        (error,) = kernel.hypercalls.map_foreign(domid, [gfn], [ours])
        if error:
            raise ForeignMapRefused(domid, gfn, -error)
        try:
            yield kernel.memory.page(ours)
        finally:
            kernel.hypercalls.remove_from_physmap(ours, DOMID_SELF)
    finally:
        kernel.pages.release_gpfns(ours, 1)
