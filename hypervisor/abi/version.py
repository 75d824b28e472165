"""version.h: what a guest may ask about the Xen it runs on.

Strings are zero-terminated in arrays of the lengths below.
"""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Bytes, Struct, u32, u64

XENVER_version: Final = 0
XENVER_extraversion: Final = 1
XENVER_compile_info: Final = 2
XENVER_capabilities: Final = 3
XENVER_changeset: Final = 4
XENVER_platform_parameters: Final = 5
XENVER_get_features: Final = 6
XENVER_pagesize: Final = 7
XENVER_guest_handle: Final = 8
XENVER_commandline: Final = 9
XENVER_build_id: Final = 10

XEN_EXTRAVERSION_LEN: Final = 16
XEN_CAPABILITIES_INFO_LEN: Final = 1024
XEN_CHANGESET_INFO_LEN: Final = 64


class xen_compile_info(Struct, size=144):
    compiler: Annotated[bytes, Bytes(64)] = ZERO
    compile_by: Annotated[bytes, Bytes(16)] = ZERO
    compile_domain: Annotated[bytes, Bytes(32)] = ZERO
    compile_date: Annotated[bytes, Bytes(32)] = ZERO


class xen_platform_parameters(Struct, size=8):
    virt_start: u64 = 0


class xen_feature_info(Struct, size=8):
    """`submap` holds the XENFEAT_ bits 32 * submap_idx and up (features.py)."""

    submap_idx: u32 = 0
    submap: u32 = 0


class xen_build_id(Struct, size=4):
    """`len` bytes of the id follow."""

    len: u32 = 0
