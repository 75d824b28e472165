"""event_channel.h: the operations on event channels and their arguments.

Xen fills in the port of what it allocates or binds, and evtchn_status from `status` on.
"""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Array, Bytes, Struct, Union, u8, u16, u32, u64

EVTCHNOP_bind_interdomain: Final = 0
EVTCHNOP_bind_virq: Final = 1
EVTCHNOP_bind_pirq: Final = 2
EVTCHNOP_close: Final = 3
EVTCHNOP_send: Final = 4
EVTCHNOP_status: Final = 5
EVTCHNOP_alloc_unbound: Final = 6
EVTCHNOP_bind_ipi: Final = 7
EVTCHNOP_bind_vcpu: Final = 8
EVTCHNOP_unmask: Final = 9
EVTCHNOP_reset: Final = 10
EVTCHNOP_init_control: Final = 11
EVTCHNOP_expand_array: Final = 12
EVTCHNOP_set_priority: Final = 13
EVTCHNOP_reset_cont: Final = 14  # the hypervisor's own: how a sliced reset goes on

BIND_PIRQ__WILL_SHARE: Final = 1

EVTCHNSTAT_closed: Final = 0
EVTCHNSTAT_unbound: Final = 1
EVTCHNSTAT_interdomain: Final = 2
EVTCHNSTAT_pirq: Final = 3
EVTCHNSTAT_virq: Final = 4
EVTCHNSTAT_ipi: Final = 5

EVTCHN_2L_NR_CHANNELS: Final = 4096
EVTCHN_FIFO_PRIORITY_MAX: Final = 0
EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
EVTCHN_FIFO_PRIORITY_MIN: Final = 15
EVTCHN_FIFO_MAX_QUEUES: Final = 16
EVTCHN_FIFO_PENDING: Final = 31
EVTCHN_FIFO_MASKED: Final = 30
EVTCHN_FIFO_LINKED: Final = 29
EVTCHN_FIFO_BUSY: Final = 28
EVTCHN_FIFO_LINK_BITS: Final = 17
EVTCHN_FIFO_LINK_MASK: Final = 0x1FFFF
EVTCHN_FIFO_NR_CHANNELS: Final = 0x20000


class evtchn_alloc_unbound(Struct, size=8):
    dom: u16 = 0
    remote_dom: u16 = 0
    port: u32 = 0


class evtchn_bind_interdomain(Struct, size=12):
    remote_dom: u16 = 0
    remote_port: u32 = 0
    local_port: u32 = 0


class evtchn_bind_virq(Struct, size=12):
    virq: u32 = 0
    vcpu: u32 = 0
    port: u32 = 0


class evtchn_bind_pirq(Struct, size=12):
    pirq: u32 = 0
    flags: u32 = 0
    port: u32 = 0


class evtchn_bind_ipi(Struct, size=8):
    vcpu: u32 = 0
    port: u32 = 0


class evtchn_close(Struct, size=4):
    port: u32 = 0


class evtchn_send(Struct, size=4):
    port: u32 = 0


class evtchn_status_u_unbound(Struct, size=2, anonymous=True):
    dom: u16 = 0


class evtchn_status_u_interdomain(Struct, size=8, anonymous=True):
    dom: u16 = 0
    port: u32 = 0


class evtchn_status_u(Union, size=8, anonymous=True):
    """Which alternative holds is said by evtchn_status.status."""

    unbound: evtchn_status_u_unbound = ZERO
    interdomain: evtchn_status_u_interdomain = ZERO
    pirq: u32 = ZERO
    virq: u32 = ZERO


class evtchn_status(Struct, size=24):
    dom: u16 = 0
    port: u32 = 0
    status: u32 = 0
    vcpu: u32 = 0
    u: evtchn_status_u = ZERO


class evtchn_bind_vcpu(Struct, size=8):
    port: u32 = 0
    vcpu: u32 = 0


class evtchn_unmask(Struct, size=4):
    port: u32 = 0


class evtchn_reset(Struct, size=2):
    dom: u16 = 0


class evtchn_init_control(Struct, size=24):
    control_gfn: u64 = 0
    offset: u32 = 0
    vcpu: u32 = 0
    link_bits: u8 = 0
    _pad: Annotated[bytes, Bytes(7)] = ZERO


class evtchn_expand_array(Struct, size=8):
    array_gfn: u64 = 0


class evtchn_set_priority(Struct, size=8):
    port: u32 = 0
    priority: u32 = 0


class evtchn_fifo_control_block(Struct, size=72):
    ready: u32 = 0
    _rsvd: u32 = 0
    head: Annotated[tuple[int, ...], Array(u32, (15 + 1))] = ZERO
