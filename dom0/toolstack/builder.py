"""The domain builder: makes a domain by hypercalls and fills in what a kernel needs to begin.

A Python kernel is auto-translated, so that its domain is made as a toolstack makes a PVH one: RAM from guest
frame 0 on, the two ring pages where Xen's tools put special pages, event channels for both rings, HVM
parameters that say where they are, and two reserved grant entries by which the daemons map the rings without
any further right over the domain.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from dom0.toolstack.build_steps import (
    BuiltDomain,
    foreign_page,
    open_ports,
    populate,
    populate_extents,
    step,
    write_grants,
)
from dom0.toolstack.errors import BadMemorySize, BuildError
from hypervisor.abi.domctl import XEN_DOMCTL_CDF_hap, XEN_DOMCTL_CDF_hvm
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from hypervisor.abi.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from hypervisor.abi.memory import XENMAPSPACE_grant_table
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
    with step(name, "create"):
        domid = hypercalls.createdomain(uuid, flags=flags, max_vcpus=1)
    try:
        with step(name, f"give it {pages} pages"):
            hypercalls.max_vcpus(domid, 1)
            hypercalls.max_mem(domid, (pages + 2) << (PAGE_SHIFT - 10))
            populate(hypercalls, domid, 0, pages)
            populate_extents(hypercalls, domid, (STORE_GFN, CONSOLE_GFN), 0)
        with step(name, "open its rings"):
            store_port, console_port = open_ports(hypercalls, domid)
            _tell_rings(hypercalls, domid, store_port, console_port)
        with step(name, "grant its rings"), _grant_frame(kernel, domid) as frame:
            write_grants(frame, _RINGS)
    except BaseException:
        hypercalls.destroydomain(domid)
        raise
    return BuiltDomain(domid, pages, store_port, STORE_GFN, console_port, CONSOLE_GFN)


def _tell_rings(hypercalls: Hypercalls, domid: int, store_port: int, console_port: int) -> None:
    """Tells the domain's kernel where its rings are."""
    parameters = {
        HVM_PARAM_STORE_PFN: STORE_GFN,
        HVM_PARAM_STORE_EVTCHN: store_port,
        HVM_PARAM_CONSOLE_PFN: CONSOLE_GFN,
        HVM_PARAM_CONSOLE_EVTCHN: console_port,
    }
    with hypercalls.batch() as batch:
        settings = [batch.hvm_set_param(index, value, domid) for index, value in parameters.items()]
    for setting in settings:
        setting.result()


@contextmanager
def _grant_frame(kernel: Kernel, domid: int) -> Iterator[memoryview]:
    """The first frame of a domain's grant table, mapped into this domain for a while."""
    hypercalls = kernel.hypercalls
    with ExitStack() as undo:
        hypercalls.add_to_physmap(XENMAPSPACE_grant_table, 0, SCRATCH_GFN, domid)
        undo.callback(hypercalls.remove_from_physmap, SCRATCH_GFN, domid)
        yield undo.enter_context(foreign_page(kernel, domid, SCRATCH_GFN))
