"""xen_version: what a guest may ask about the Xen that it runs on.

Follows xen/common/kernel.c. Strings are zero-padded to their arrays, so that nothing of ours is in the
rest. The command line and the build id are for control domains; others read "<denied>", or get -EPERM, as
Xen does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha1
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import features
from hypervisor.abi.errno import XEN_ENOBUFS
from hypervisor.abi.version import (
    XEN_CAPABILITIES_INFO_LEN,
    XEN_CHANGESET_INFO_LEN,
    XEN_EXTRAVERSION_LEN,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
    xen_build_id,
    xen_compile_info,
    xen_feature_info,
    xen_platform_parameters,
)
from hypervisor.errors import InvalidArgument
from hypervisor.extent import PAGE_SIZE

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

MAJOR: Final = 4
MINOR: Final = 17
EXTRA: Final = b".0-domzero"
CAPABILITIES: Final = b"xen-3.0-x86_64 hvm-3.0-x86_64 "
CHANGESET: Final = b"domzero"
COMMANDLINE: Final = b""
COMMANDLINE_LEN: Final = 1024
DENIED: Final = b"<denied>\0"
HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
BUILD_ID: Final = sha1(b"domzero %d.%d%s" % (MAJOR, MINOR, EXTRA), usedforsecurity=False).digest()


def xen_version(caller: Vcpu, operation: int, arg: int) -> int:
    """The hypercall: `arg` is the guest address of what is asked for."""
    return _ANSWERS[operation](caller, arg)


def _padded(text: bytes, size: int) -> Callable[[Vcpu, int], int]:
    """An answer that is one string in an array of `size` bytes."""
    answer = text.ljust(size, b"\0")

    def write(caller: Vcpu, arg: int) -> int:
        caller.access.write(arg, answer)
        return 0

    return write


def _version(_caller: Vcpu, _arg: int) -> int:
    return MAJOR << 16 | MINOR


def _compile_info(caller: Vcpu, arg: int) -> int:
    info = xen_compile_info(compiler=b"python".ljust(64, b"\0"), compile_by=b"domzero".ljust(16, b"\0"))
    caller.access.write_struct(arg, info)
    return 0


def _platform_parameters(caller: Vcpu, arg: int) -> int:
    caller.access.write_struct(arg, xen_platform_parameters(virt_start=HYPERVISOR_VIRT_START))
    return 0


def _get_features(caller: Vcpu, arg: int) -> int:
    memory = caller.access
    info = memory.read_struct(xen_feature_info, arg)
    if info.submap_idx != 0:
        raise InvalidArgument("submap_idx", info.submap_idx, "0")
    info.submap = _NATIVE if caller.domain.traits.pv else _AUTO_TRANSLATED
    if caller.domain.domid == 0:
        info.submap |= 1 << features.XENFEAT_dom0
    memory.write_struct(arg, info)
    return 0


def _pagesize(_caller: Vcpu, arg: int) -> int:
    if arg:
        raise InvalidArgument("arg", arg, "a null handle")
    return PAGE_SIZE


def _guest_handle(caller: Vcpu, arg: int) -> int:
    caller.access.write(arg, caller.domain.handle)
    return 0


def _commandline(caller: Vcpu, arg: int) -> int:
    answer = COMMANDLINE.ljust(COMMANDLINE_LEN, b"\0") if caller.domain.privileged else DENIED
    caller.access.write(arg, answer)
    return 0


def _build_id(caller: Vcpu, arg: int) -> int:
    """The length of the build id; with `arg`, the id is written behind the xen_build_id there, if its
    `len` is enough.
    """
    if arg:
        memory = caller.access
        length = memory.read_struct(xen_build_id, arg).len
        if length == 0:
            raise InvalidArgument("len", length, "at least 1")
        if length < len(BUILD_ID):
            raise InvalidArgument("len", length, f"at least {len(BUILD_ID)}", errno=XEN_ENOBUFS)
        memory.write(arg + xen_build_id.size, BUILD_ID)
    return len(BUILD_ID)


_AUTO_TRANSLATED: Final = (
    1 << features.XENFEAT_writable_page_tables
    | 1 << features.XENFEAT_auto_translated_physmap
    | 1 << features.XENFEAT_hvm_safe_pvclock
    | 1 << features.XENFEAT_hvm_callback_vector
    | 1 << features.XENFEAT_memory_op_vnode_supported
    | 1 << features.XENFEAT_not_direct_mapped
)

_NATIVE: Final = (
    1 << features.XENFEAT_pae_pgdir_above_4gb
    | 1 << features.XENFEAT_mmu_pt_update_preserve_ad
    | 1 << features.XENFEAT_highmem_assist
    | 1 << features.XENFEAT_gnttab_map_avail_bits
    | 1 << features.XENFEAT_memory_op_vnode_supported
    | 1 << features.XENFEAT_direct_mapped
)
"""what Xen 4.17 tells a 64-bit PV guest"""

_ANSWERS: Final[Mapping[int, Callable[[Vcpu, int], int]]] = MappingProxyType(
    {
        XENVER_version: _version,
        XENVER_extraversion: _padded(EXTRA, XEN_EXTRAVERSION_LEN),
        XENVER_compile_info: _compile_info,
        XENVER_capabilities: _padded(CAPABILITIES, XEN_CAPABILITIES_INFO_LEN),
        XENVER_changeset: _padded(CHANGESET, XEN_CHANGESET_INFO_LEN),
        XENVER_platform_parameters: _platform_parameters,
        XENVER_get_features: _get_features,
        XENVER_pagesize: _pagesize,
        XENVER_guest_handle: _guest_handle,
        XENVER_commandline: _commandline,
        XENVER_build_id: _build_id,
    }
)
