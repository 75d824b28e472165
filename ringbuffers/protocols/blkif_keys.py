"""The XenStore keys of the block protocol, as public/io/blkif.h documents them.

Values are decimal strings unless said otherwise; "0/1" is a boolean. A missing key has the default in
brackets.
"""

from typing import Final

# Of the backend: how its device is set up, written by the toolstack and private to the backend's side.
MODE: Final = "mode"  # "r" or "w"
PARAMS: Final = "params"  # free text for whoever opens the store
TYPE: Final = "type"  # "file", "phy", "tap"
PHYSICAL_DEVICE: Final = "physical-device"  # "MAJOR:MINOR", hexadecimal
PHYSICAL_DEVICE_PATH: Final = "physical-device-path"
DIRECT_IO_SAFE: Final = "direct-io-safe"  # 0/1 [0]
DISCARD_ENABLE: Final = "discard-enable"  # 0/1 [1]

# Of the backend: features, published with XenbusStateInitWait.
FEATURE_BARRIER: Final = "feature-barrier"  # 0/1 [0]
FEATURE_FLUSH_CACHE: Final = "feature-flush-cache"  # 0/1 [0]
FEATURE_DISCARD: Final = "feature-discard"  # 0/1 [0]
FEATURE_PERSISTENT: Final = "feature-persistent"  # 0/1 [0]; published by both sides
FEATURE_MAX_INDIRECT_SEGMENTS: Final = "feature-max-indirect-segments"  # [no indirect requests]
MAX_RING_PAGE_ORDER: Final = "max-ring-page-order"  # log2 of pages [0]
MAX_RING_PAGES: Final = "max-ring-pages"  # the older spelling, in pages [1]
MULTI_QUEUE_MAX_QUEUES: Final = "multi-queue-max-queues"  # [1]

# Of the backend: properties of the device, published with XenbusStateConnected.
SECTORS: Final = "sectors"  # u64, in units of sector-size
SECTOR_SIZE: Final = "sector-size"  # bytes, a power of two from 512; 512 unless feature-large-sector-size
PHYSICAL_SECTOR_SIZE: Final = "physical-sector-size"  # bytes, a multiple of sector-size [sector-size]
INFO: Final = "info"  # bitmap of VDISK_*
DISCARD_ALIGNMENT: Final = "discard-alignment"  # bytes [0]
DISCARD_GRANULARITY: Final = "discard-granularity"  # bytes [sector-size]
DISCARD_SECURE: Final = "discard-secure"  # 0/1 [0]

# Of the frontend: the transport, published with XenbusStateInitialised.
EVENT_CHANNEL: Final = "event-channel"
RING_REF: Final = (
    "ring-ref"  # the gref of a ring of one page; a larger ring has ring-ref0, ring-ref1… instead
)
RING_PAGE_ORDER: Final = "ring-page-order"  # log2 of pages [0]
NUM_RING_PAGES: Final = "num-ring-pages"  # the older spelling, in pages [1]
PROTOCOL: Final = "protocol"  # an XEN_IO_PROTO_ABI_* [native]
MULTI_QUEUE_NUM_QUEUES: Final = "multi-queue-num-queues"  # [1]
FEATURE_LARGE_SECTOR_SIZE: Final = "feature-large-sector-size"  # 0/1 [0]
TRUSTED: Final = "trusted"  # 0/1 [1]; written by the toolstack: whether to trust the backend

# Of the frontend: what the device is, written by the toolstack.
DEVICE_TYPE: Final = "device-type"  # "disk", "cdrom", "floppy"
VIRTUAL_DEVICE: Final = (
    "virtual-device"  # the number of docs/misc/vbd-interface.txt, also the name of the directory
)

# Values of `protocol` (public/io/protocols.h).
XEN_IO_PROTO_ABI_X86_32: Final = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64: Final = "x86_64-abi"
XEN_IO_PROTO_ABI_ARM: Final = "arm-abi"
XEN_IO_PROTO_ABI_NATIVE: Final = XEN_IO_PROTO_ABI_X86_64


def ring_ref(page: int) -> str:
    """The key of the grant of one page of a ring of several pages."""
    return f"{RING_REF}{page}"


def queue_directory(queue: int) -> str:
    """The directory that holds ring-ref and event-channel of one of several queues."""
    return f"queue-{queue}"
