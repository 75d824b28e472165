"""What runs in dom0: the XenStore daemon, the console daemon, the block backends and the toolstack.

Each stands on dom0's kernel alone, as it would on a real Xen's: grants, event channels, XenStore, hypercalls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from backends.block.backend import BlockBackend
from backends.console.daemon import ConsoleDaemon
from dom0.toolstack.toolstack import Toolstack
from dom0.xenstore.daemon import XenStoreDaemon
from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.kernel_rings import KernelRings
from hypervisor.abi.domctl import XEN_DOMINF_dying, XEN_DOMINF_shutdown
from hypervisor.abi.xen import VIRQ_DOM_EXC
from kernel.hypercalls import HypercallNoSuchDomain
from kernel.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Services:
    """The running services, and the kernel that they run on."""

    kernel: Kernel
    xenstore: XenStoreDaemon
    consoles: ConsoleDaemon
    blocks: BlockBackend
    toolstack: Toolstack


async def start_services(
    kernel: Kernel,
    *,
    console_folder: Path,
    now: Callable[[], float],
    log: Callable[[str], None],
    sockets: Sequence[str | PathLike[str]] = (),
) -> Services:
    """Starts everything that guests need of dom0; it runs until dom0's kernel ends.

    Args:
        kernel: dom0's.
        console_folder: where the consoles are logged.
        now: Unix time in seconds.
        log: takes a line of a daemon.
        sockets: paths of Unix sockets on which XenStore is served, too.
    """
    xenstore = XenStoreDaemon(
        clock=kernel.clock,
        info=lambda domid: _domain_info(kernel, domid),
        connect_domain=KernelRings(kernel.memory, kernel.grants, kernel.events),
        log=log,
    )
    kernel.events.bind_virq(VIRQ_DOM_EXC).on_event = xenstore.domains_changed
    xenstore.introduce(0, kernel.store_ring.pfn, kernel.store_ring.port)
    await kernel.tasks.start(xenstore.run, sockets)
    services = Services(
        kernel=kernel,
        xenstore=xenstore,
        consoles=ConsoleDaemon(kernel, console_folder, log=log),
        blocks=BlockBackend(kernel),
        toolstack=Toolstack(kernel, now),
    )
    for service in (services.consoles, services.blocks, services.toolstack):
        kernel.tasks.start_soon(service.run)
    return services


def _domain_info(kernel: Kernel, domid: int) -> DomainInfo | None:
    """What the hypervisor knows of a domain; None if there is none."""
    try:
        info = kernel.hypercalls.getdomaininfo(domid)
    except HypercallNoSuchDomain:
        return None
    if info.domain != domid:
        return None
    return DomainInfo(
        shutdown=bool(info.flags & XEN_DOMINF_shutdown),
        dying=bool(info.flags & XEN_DOMINF_dying),
        identity=info.handle,
    )
