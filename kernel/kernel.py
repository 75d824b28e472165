"""The kernel of one Python domain: everything that its drivers and its program use, put together at boot.

Booting makes one multicall (where are the store and the console, show us shared_info) and starts two tasks:
one takes upcalls, one serves the toolstack's `control` folder. All else begins when it is first used: the
grant table, the timer, devices.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from hypervisor.abi.hvm_params import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)
from hypervisor.abi.memory import XENMAPSPACE_shared_info
from hypervisor.abi.xen import DOMID_SELF
from kernel.clock import Clock
from kernel.console import Console, HypervisorConsole
from kernel.control import ShutdownRequest, serve_control
from kernel.events import EventPort, Events
from kernel.grants import Grants
from kernel.hypercalls import Hypercalls
from kernel.ledger import Leak
from kernel.pages import PageAllocator
from kernel.platform import Memory, Platform
from kernel.xenstore.client import XenStoreClient

if TYPE_CHECKING:
    from kernel.xenbus.device import Device

CLOSE_SECONDS: Final = 5.0
"""How long the peers of all devices together may take to close, when this domain shuts down."""


LEAK_PREFIX: Final = "leaked: "
"""How a line on the hypervisor's console begins that names a grant which was not ended."""


class Ring(NamedTuple):
    """A page shared with a daemon, and the port that notifies it: the store's or the console's."""

    pfn: int
    port: int


class Kernel:
    """Made by `Kernel.boot`.

    store_ring: the page and port of the store connection. A kernel that finds none (the initial domain) makes
    them itself, for a daemon in its own domain to bind to. console_ring: those of the console, None if the
    toolstack gave none. devices: the split devices that run now. tasks: for whatever shall run until the
    kernel ends. reports: what drivers have counted, by device; asked for when the program has ended.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.memory: Memory = platform.memory
        self.pages = PageAllocator(platform.memory, platform.nr_pages)
        self.hypercalls = Hypercalls(platform, self.pages)
        self.console: Console = HypervisorConsole(self.hypercalls)
        self.devices: dict[Device, None] = {}
        self.shutdown_requested = ShutdownRequest()
        self.leaks: list[Leak] = []
        self.reports: dict[str, Callable[[], str]] = {}
        self.tasks: TaskGroup
        self._log = HypervisorConsole(self.hypercalls)
        store, self.console_ring = self._find_rings()
        self.events = Events(self.hypercalls, self.memory.page(self._shared_info), self._port_failed)
        self.grants = Grants(self.memory, self.pages, self.hypercalls)
        self.clock = Clock(platform, self.hypercalls, self.events)
        self.store_ring = store or self._make_store_ring()
        self.store = XenStoreClient(
            self.memory.page(self.store_ring.pfn), self.events.adopt(self.store_ring.port)
        )

    def _find_rings(self) -> tuple[Ring | None, Ring | None]:
        """Ask for the rings and map shared_info, in one multicall."""
        self._shared_info = self.pages.reserve_gpfns(1)
        with self.hypercalls.batch() as batch:
            mapped = batch.add_to_physmap(XENMAPSPACE_shared_info, 0, self._shared_info)
            store_pfn = batch.hvm_get_param(HVM_PARAM_STORE_PFN)
            store_port = batch.hvm_get_param(HVM_PARAM_STORE_EVTCHN)
            console_pfn = batch.hvm_get_param(HVM_PARAM_CONSOLE_PFN)
            console_port = batch.hvm_get_param(HVM_PARAM_CONSOLE_EVTCHN)
        mapped.result()
        store = Ring(store_pfn.result(), store_port.result())
        console = Ring(console_pfn.result(), console_port.result())
        for ring in (store, console):
            self.pages.exclude(ring.pfn)
        return store if store.pfn else None, console if console.pfn else None

    def _make_store_ring(self) -> Ring:
        return Ring(self.pages.allocate().pfn, self.hypercalls.evtchn_alloc_unbound(DOMID_SELF))

    @classmethod
    @asynccontextmanager
    async def boot(cls, platform: Platform) -> AsyncIterator[Kernel]:
        """A running kernel; its tasks are cancelled at the end of the context."""
        kernel = cls(platform)
        async with anyio.create_task_group() as tasks:
            kernel.tasks = tasks
            tasks.start_soon(kernel.events.run, platform, name="upcalls")
            tasks.start_soon(serve_control, kernel, name="control")
            try:
                yield kernel
            finally:
                tasks.cancel_scope.cancel()

    async def close_devices(self) -> None:
        """Close all devices, the youngest first, and wait for their peers to let go, for CLOSE_SECONDS at the
        most.
        """
        closing = list(reversed(self.devices))
        for device in closing:
            device.close()
        with anyio.move_on_after(CLOSE_SECONDS):
            for device in closing:
                await device.wait_released()

    def report_leaks(self) -> list[Leak]:
        """Name every grant that has not been ended, on the hypervisor's console and in `leaks`."""
        self.leaks = self.grants.leaks()
        for leak in self.leaks:
            self.log(f"{LEAK_PREFIX}{leak}")
        return self.leaks

    def log(self, text: str) -> None:
        """A line for the machine's operator, on the hypervisor's console."""
        self._log.write(text + "\n")

    def _port_failed(self, port: EventPort, error: Exception) -> None:
        self.log(f"event port {port.port} closed: {type(error).__name__}: {error}")
