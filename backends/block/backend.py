"""The block backend of a service domain: all virtual block devices that it serves, for all domains."""

from collections import defaultdict
from collections.abc import Callable
from typing import Final, NamedTuple

from backends.block.device import BlockDevice, OpenStore
from backends.block.keys import FRONTEND_KEYS, SetupKeys
from backends.block.pages import PageBudget
from backends.block.stats import DeviceStats
from backends.contract import BlockStore
from backends.params import config_of
from backends.registry import load_backend
from kernel.kernel import Kernel
from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.bus import BackendBus

VBD: Final = "vbd"
_DISKS_REMEMBERED: Final = 4096


MakeDevice = Callable[[Kernel, BackendDevice, OpenStore, PageBudget], BlockDevice]
"""Makes the driver of one device; BlockDevice, or what behaves as it does."""


class ServedDisk(NamedTuple):
    """One disk, as the report shows it. vdev: its name in the guest. backend: the store's name."""

    domid: int
    devid: int
    vdev: str
    backend: str
    stats: DeviceStats


def store_of(setup: SetupKeys) -> BlockStore:
    """The store that the toolstack named: `type` is a backend's name or module:Class, `params` its settings.

    Raises BackendError, pydantic.ValidationError.
    """
    store = load_backend(setup.type)
    return store(config_of(store.Config, setup.params), read_only=setup.read_only)


class BlockBackend:
    """Finds the devices in XenStore and runs a driver for each. open_store: makes the store that a device
    names. make_device: makes a device's driver.
    """

    def __init__(
        self, kernel: Kernel, open_store: OpenStore = store_of, make_device: MakeDevice = BlockDevice
    ) -> None:
        self._kernel = kernel
        self._make_device = make_device
        self._open_store = open_store
        self._budgets: defaultdict[int, PageBudget] = defaultdict(PageBudget)
        self._disks: dict[tuple[int, int], ServedDisk] = {}
        self._bus = BackendBus(kernel, VBD, self._make_driver, peer_keys=FRONTEND_KEYS)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        await self._bus.run()

    def disks_of(self, domid: int) -> list[ServedDisk]:
        """The disks of a domain, those of an ended one included, by number."""
        return sorted(disk for key, disk in self._disks.items() if key[0] == domid)

    def driver_of(self, domid: int, devid: int) -> BlockDevice | None:
        """The driver of a disk that is served now."""
        device = self._bus.devices.get((domid, devid))
        driver = getattr(device, "driver", None)
        return driver if isinstance(driver, BlockDevice) else None

    async def resize(self, domid: int, devid: int) -> bool:
        """The store of a disk may have another size now: look, and tell the frontend. Returns whether it has.

        Raises StoreError.
        """
        driver = self.driver_of(domid, devid)
        return driver is not None and await driver.resize()

    def _make_driver(self, device: BackendDevice) -> BlockDevice:
        budget = self._budgets[device.frontend_domid]
        driver = self._make_device(self._kernel, device, self._open_store, budget)
        key = device.frontend_domid, device.devid
        vdev = device.keys.get("dev", str(device.devid))
        self._disks.pop(key, None)
        self._disks[key] = ServedDisk(*key, vdev, driver.setup.type, driver.stats)
        if len(self._disks) > _DISKS_REMEMBERED:
            del self._disks[next(iter(self._disks))]
        return driver
