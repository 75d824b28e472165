"""nmi.h: callbacks for non-maskable interrupts."""

from typing import Final

from hypervisor.abi.layout import Struct, u64

XEN_NMIREASON_io_error: Final = 1
XEN_NMIREASON_pci_serr: Final = 2
XEN_NMIREASON_unknown: Final = 4

XENNMI_register_callback: Final = 0
XENNMI_unregister_callback: Final = 1


class xennmi_callback(Struct, size=16):
    handler_address: u64 = 0
    pad: u64 = 0
