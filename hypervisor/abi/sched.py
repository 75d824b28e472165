"""sched.h: a vCPU yields, blocks or polls; a domain shuts down with a reason."""

from typing import Final

from hypervisor.abi.layout import Handle, Struct, s32, u16, u32, u64

SCHEDOP_yield: Final = 0
SCHEDOP_block: Final = 1
SCHEDOP_shutdown: Final = 2
SCHEDOP_poll: Final = 3
SCHEDOP_remote_shutdown: Final = 4
SCHEDOP_shutdown_code: Final = 5
SCHEDOP_watchdog: Final = 6
SCHEDOP_pin_override: Final = 7

SHUTDOWN_poweroff: Final = 0
SHUTDOWN_reboot: Final = 1
SHUTDOWN_suspend: Final = 2
SHUTDOWN_crash: Final = 3
SHUTDOWN_watchdog: Final = 4
SHUTDOWN_soft_reset: Final = 5
SHUTDOWN_MAX: Final = 5


class sched_shutdown(Struct, size=4):
    reason: u32 = 0


class sched_poll(Struct, size=24):
    """`timeout` is absolute system time in ns, 0 for none."""

    ports: Handle = 0
    nr_ports: u32 = 0
    timeout: u64 = 0


class sched_remote_shutdown(Struct, size=8):
    domain_id: u16 = 0
    reason: u32 = 0


class sched_watchdog(Struct, size=8):
    id: u32 = 0
    timeout: u32 = 0


class sched_pin_override(Struct, size=4):
    pcpu: s32 = 0
