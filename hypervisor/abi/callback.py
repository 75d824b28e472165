"""callback.h: where a PV guest wants its upcalls."""

from typing import Final

from hypervisor.abi.layout import Struct, u16, u64

CALLBACKTYPE_event: Final = 0
CALLBACKTYPE_failsafe: Final = 1
CALLBACKTYPE_syscall: Final = 2
CALLBACKTYPE_sysenter_deprecated: Final = 3
CALLBACKTYPE_nmi: Final = 4
CALLBACKTYPE_sysenter: Final = 5
CALLBACKTYPE_syscall32: Final = 7
CALLBACKF_mask_events: Final = 1
CALLBACKOP_register: Final = 0
CALLBACKOP_unregister: Final = 1


class callback_register(Struct, size=16):
    type: u16 = 0
    flags: u16 = 0
    address: u64 = 0


class callback_unregister(Struct, size=4):
    type: u16 = 0
    _unused: u16 = 0
