"""The domain builder: makes a domain by hypercalls and fills in what a kernel needs to begin.

A Python kernel is auto-translated, so that its domain is made as a toolstack makes a PVH one: RAM from guest
frame 0 on, the two ring pages where Xen's tools put special pages, event channels for both rings, HVM
parameters that say where they are, and two reserved grant entries by which the daemons map the rings without
any further right over the domain.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from dom0.toolstack.errors import BadMemorySize, BuildError, ForeignMapRefused, OutOfMachineMemory
from hypervisor.abi.domctl import XEN_DOMCTL_CDF_hap, XEN_DOMCTL_CDF_hvm
from hypervisor.abi.grant_table import (
    GNTTAB_RESERVED_CONSOLE,
    GNTTAB_RESERVED_XENSTORE,
    GTF_permit_access,
    grant_entry_v1,
)
from hypervisor.abi.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from hypervisor.abi.memory import XENMAPSPACE_grant_table
from hypervisor.abi.xen import DOMID_SELF
from kernel.errors import KernelError
from kernel.hypercalls import Hypercalls
from kernel.kernel import Kernel
from kernel.platform import PAGE_SHIFT

STORE_GFN: Final = 0xFEFFC
CONSOLE_GFN: Final = 0xFEFFF
SCRATCH_GFN: Final = 0xFEFF8
"""Special pages end at 0xFF000 where Xen's tools build; the scratch page is empty when the domain starts."""

MAX_PAGES: Final = SCRATCH_GFN
"""RAM begins at guest frame 0 and ends below the special pages."""

_RINGS: Final = {GNTTAB_RESERVED_XENSTORE: STORE_GFN, GNTTAB_RESERVED_CONSOLE: CONSOLE_GFN}
_LARGEST_ORDER: Final = 9
_EXTENTS_A_CALL: Final = 512


@dataclass(frozen=True, slots=True)
class BuiltDomain:
    """A domain that is complete and paused."""

    domid: int
    pages: int
    store_port: int
    console_port: int


def build_domain(kernel: Kernel, name: str, uuid: bytes, memory_bytes: int) -> BuiltDomain:
    """Makes a paused domain with one vCPU and `memory_bytes` of RAM, whose rings wait for dom0.

    Raises:
        BuildError: a step was refused; nothing of the domain is left.
    """
    hypercalls = kernel.hypercalls
    pages = memory_bytes >> PAGE_SHIFT
    if not 0 < pages <= MAX_PAGES:
        raise BuildError(name, "choose its size", BadMemorySize(memory_bytes, MAX_PAGES << PAGE_SHIFT))
    flags = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap
    with _step(name, "create"):
        domid = hypercalls.createdomain(uuid, flags=flags, max_vcpus=1)
    try:
        with _step(name, f"give it {pages} pages"):
            hypercalls.max_vcpus(domid, 1)
            hypercalls.max_mem(domid, (pages + 2) << (PAGE_SHIFT - 10))
            _populate(hypercalls, domid, pages)
        with _step(name, "open its rings"):
            ports = _open_rings(hypercalls, domid)
        with _step(name, "grant its rings"):
            _seed_grants(kernel, domid)
    except BaseException:
        hypercalls.destroydomain(domid)
        raise
    return BuiltDomain(domid, pages, *ports)


@contextmanager
def _step(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        raise BuildError(name, what, error) from error


def _populate(hypercalls: Hypercalls, domid: int, pages: int) -> None:
    """RAM in extents as large as a toolstack may ask for, then in ever smaller ones for the rest."""
    gpfn = 0
    for order in range(_LARGEST_ORDER, -1, -1):
        count = (pages - gpfn) >> order
        while count:
            extents = range(gpfn, gpfn + (min(count, _EXTENTS_A_CALL) << order), 1 << order)
            _populate_all(hypercalls, domid, extents, order)
            gpfn = extents.stop
            count = (pages - gpfn) >> order
    _populate_all(hypercalls, domid, (STORE_GFN, CONSOLE_GFN), 0)


def _populate_all(hypercalls: Hypercalls, domid: int, extents: range | tuple[int, ...], order: int) -> None:
    done = hypercalls.populate_physmap(extents, order=order, domid=domid)
    if done != len(extents):
        raise OutOfMachineMemory(domid, len(extents) << order, done << order)


def _open_rings(hypercalls: Hypercalls, domid: int) -> tuple[int, int]:
    """Ports of the domain that dom0 may bind to, told to its kernel with the rings' frames."""
    with hypercalls.batch() as batch:
        store = batch.evtchn_alloc_unbound(0, domid)
        console = batch.evtchn_alloc_unbound(0, domid)
    ports = store.result(), console.result()
    parameters = {
        HVM_PARAM_STORE_PFN: STORE_GFN,
        HVM_PARAM_STORE_EVTCHN: ports[0],
        HVM_PARAM_CONSOLE_PFN: CONSOLE_GFN,
        HVM_PARAM_CONSOLE_EVTCHN: ports[1],
    }
    with hypercalls.batch() as batch:
        settings = [batch.hvm_set_param(index, value, domid) for index, value in parameters.items()]
    for setting in settings:
        setting.result()
    return ports


def _seed_grants(kernel: Kernel, domid: int) -> None:
    """Writes the two reserved entries into the first frame of the domain's grant table."""
    with _grant_frame(kernel, domid) as frame:
        for reference, gfn in _RINGS.items():
            entry = grant_entry_v1(flags=GTF_permit_access, domid=0, frame=gfn)
            start = reference * grant_entry_v1.size
            frame[start : start + grant_entry_v1.size] = entry.pack()


@contextmanager
def _grant_frame(kernel: Kernel, domid: int) -> Iterator[memoryview]:
    """The first frame of a domain's grant table, mapped into this domain for a while."""
    hypercalls = kernel.hypercalls
    with ExitStack() as undo:
        ours = kernel.pages.reserve_gpfns(1)
        undo.callback(kernel.pages.release_gpfns, ours, 1)
        hypercalls.add_to_physmap(XENMAPSPACE_grant_table, 0, SCRATCH_GFN, domid)
        undo.callback(hypercalls.remove_from_physmap, SCRATCH_GFN, domid)
        _map_foreign(hypercalls, domid, SCRATCH_GFN, ours)
        undo.callback(hypercalls.remove_from_physmap, ours, DOMID_SELF)
        yield kernel.memory.page(ours)


def _map_foreign(hypercalls: Hypercalls, domid: int, gfn: int, ours: int) -> None:
    (error,) = hypercalls.map_foreign(domid, [gfn], [ours])
    if error:
        raise ForeignMapRefused(domid, gfn, -error)
