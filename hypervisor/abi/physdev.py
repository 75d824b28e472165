"""physdev.h: operations on physical devices, by number alone; memory.py uses the address of a PCI device."""

from typing import Final

from hypervisor.abi.layout import Handle, Struct, u8, u16, u32

PHYSDEVOP_eoi: Final = 12
PHYSDEVOP_pirq_eoi_gmfn_v1: Final = 17
PHYSDEVOP_pirq_eoi_gmfn_v2: Final = 28
PHYSDEVOP_irq_status_query: Final = 5
PHYSDEVOP_set_iopl: Final = 6
PHYSDEVOP_set_iobitmap: Final = 7
PHYSDEVOP_apic_read: Final = 8
PHYSDEVOP_apic_write: Final = 9
PHYSDEVOP_alloc_irq_vector: Final = 10
PHYSDEVOP_free_irq_vector: Final = 11
PHYSDEVOP_map_pirq: Final = 13
PHYSDEVOP_unmap_pirq: Final = 14
PHYSDEVOP_manage_pci_add: Final = 15
PHYSDEVOP_manage_pci_remove: Final = 16
PHYSDEVOP_restore_msi: Final = 19
PHYSDEVOP_manage_pci_add_ext: Final = 20
PHYSDEVOP_setup_gsi: Final = 21
PHYSDEVOP_get_free_pirq: Final = 23
PHYSDEVOP_pci_mmcfg_reserved: Final = 24
PHYSDEVOP_pci_device_add: Final = 25
PHYSDEVOP_pci_device_remove: Final = 26
PHYSDEVOP_restore_msi_ext: Final = 27
PHYSDEVOP_prepare_msix: Final = 30
PHYSDEVOP_release_msix: Final = 31
PHYSDEVOP_DBGP_RESET_PREPARE: Final = 1
PHYSDEVOP_DBGP_RESET_DONE: Final = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN: Final = 0
PHYSDEVOP_DBGP_BUS_PCI: Final = 1
PHYSDEVOP_dbgp_op: Final = 29
PHYSDEVOP_IRQ_UNMASK_NOTIFY: Final = 4
PHYSDEVOP_pirq_eoi_gmfn: Final = 28

XENIRQSTAT_needs_eoi: Final = 1
XENIRQSTAT_shared: Final = 2
MAP_PIRQ_TYPE_MSI: Final = 0x0
MAP_PIRQ_TYPE_GSI: Final = 0x1
MAP_PIRQ_TYPE_UNKNOWN: Final = 0x2
MAP_PIRQ_TYPE_MSI_SEG: Final = 0x3
MAP_PIRQ_TYPE_MULTI_MSI: Final = 0x4
XEN_PCI_MMCFG_RESERVED: Final = 0x1
XEN_PCI_DEV_EXTFN: Final = 0x1
XEN_PCI_DEV_VIRTFN: Final = 0x2
XEN_PCI_DEV_PXM: Final = 0x4


class physdev_pci_device(Struct, size=4):
    seg: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0


class physdev_set_iopl(Struct, size=4):
    iopl: u32 = 0


class physdev_set_iobitmap(Struct, size=16):
    bitmap: Handle = 0
    nr_ports: u32 = 0
