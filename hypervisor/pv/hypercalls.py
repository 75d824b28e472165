"""The hypercalls of a native guest: which are done in its own process, and which travel to the machine-wide core.

Local are those that need nothing but the domain's own state: page tables, the processor, its timers, blocking. The
rest is the machine-wide core's; of some of these something is done here first (frames that are still in use are not
given back) or afterwards (it is learnt what a port stands for). Arguments are masked to the widths that Xen declares
(xen/include/hypercall-defs.c).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from hypervisor.abi import xen as abi
from hypervisor.abi.errno import XEN_ENOSYS
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.pv import remote
from hypervisor.pv.cpu_hypercalls import CPU_HYPERCALLS
from hypervisor.pv.multicall import run_batch
from hypervisor.pv.sched import LOCAL as LOCAL_SCHED
from hypervisor.pv.sched import sched_op

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.pv.vcpu import PvVcpu

U16: Final = 0xFFFF
U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF

Result = int | Continuation | None
"""None: the registers are as they shall be"""
Handler = Callable[..., Result]

WIDTHS: Final[dict[int, tuple[int, ...]]] = {
    abi.HYPERVISOR_set_trap_table: (U64,),
    abi.HYPERVISOR_mmu_update: (U64, U32, U64, U32),
    abi.HYPERVISOR_set_gdt: (U64, U32),
    abi.HYPERVISOR_stack_switch: (U64, U64),
    abi.HYPERVISOR_set_callbacks: (U64, U64, U64),
    abi.HYPERVISOR_fpu_taskswitch: (U32,),
    abi.HYPERVISOR_set_debugreg: (U32, U64),
    abi.HYPERVISOR_get_debugreg: (U32,),
    abi.HYPERVISOR_update_descriptor: (U64, U64),
    abi.HYPERVISOR_memory_op: (U64, U64),
    abi.HYPERVISOR_multicall: (U64, U32),
    abi.HYPERVISOR_update_va_mapping: (U64, U64, U64),
    abi.HYPERVISOR_set_timer_op: (U64,),
    abi.HYPERVISOR_xen_version: (U32, U64),
    abi.HYPERVISOR_console_io: (U32, U32, U64),
    abi.HYPERVISOR_grant_table_op: (U32, U64, U32),
    abi.HYPERVISOR_vm_assist: (U32, U32),
    abi.HYPERVISOR_update_va_mapping_otherdomain: (U64, U64, U64, U16),
    abi.HYPERVISOR_iret: (),
    abi.HYPERVISOR_vcpu_op: (U32, U32, U64),
    abi.HYPERVISOR_set_segment_base: (U32, U64),
    abi.HYPERVISOR_mmuext_op: (U64, U32, U64, U32),
    abi.HYPERVISOR_nmi_op: (U32, U64),
    abi.HYPERVISOR_sched_op: (U32, U64),
    abi.HYPERVISOR_callback_op: (U32, U64),
    abi.HYPERVISOR_event_channel_op: (U32, U64),
    abi.HYPERVISOR_physdev_op: (U32, U64),
    abi.HYPERVISOR_hvm_op: (U64, U64),
    abi.HYPERVISOR_sysctl: (U64,),
    abi.HYPERVISOR_domctl: (U64,),
}


class Hypercalls:
    """The table of one domain."""

    def __init__(self, domain: PvDomain) -> None:
        self._tally = domain.tally
        page_tables = domain.page_tables
        handlers: dict[int, Handler] = {
            **CPU_HYPERCALLS,
            abi.HYPERVISOR_mmu_update: page_tables.mmu_update,
            abi.HYPERVISOR_update_va_mapping: page_tables.update_va_mapping,
            abi.HYPERVISOR_update_va_mapping_otherdomain: page_tables.update_va_mapping_otherdomain,
            abi.HYPERVISOR_mmuext_op: page_tables.mmuext_op,
            abi.HYPERVISOR_multicall: self._multicall,
            abi.HYPERVISOR_sched_op: _sched_op,
            abi.HYPERVISOR_event_channel_op: remote.event_channel_op,
            abi.HYPERVISOR_memory_op: remote.memory_op,
            abi.HYPERVISOR_grant_table_op: remote.grant_table_op,
            abi.HYPERVISOR_xen_version: remote.xen_version,
        }
        self._table: list[tuple[Handler, tuple[int, ...]] | None] = [None] * 64
        for number, widths in WIDTHS.items():
            self._table[number] = handlers.get(number, remote.forward(number)), widths

    def enter(self, vcpu: PvVcpu) -> None:
        """The vCPU, in its kernel mode, has executed SYSCALL: rax says which hypercall, and gets its result."""
        cpu = vcpu.domain.cpu
        number = cpu.rax & U32
        args = cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9
        result = self.dispatch(vcpu, number, args)
        if isinstance(result, Continuation):
            _execute_again(vcpu, result)
        elif result is not None:
            cpu.rax = result & U64

    def dispatch(self, vcpu: PvVcpu, number: int, args: tuple[int, ...]) -> Result:
        """One hypercall, or one entry of a multicall."""
        entry = self._table[number] if number < 64 else None
        if entry is None:
            return -XEN_ENOSYS
        handler, widths = entry
        tally = self._tally
        start = perf_counter_ns()
        try:
            count = len(widths)
            if count == 2:
                return handler(vcpu, args[0] & widths[0], args[1] & widths[1])
            if count == 4:
                return handler(
                    vcpu, args[0] & widths[0], args[1] & widths[1], args[2] & widths[2], args[3] & widths[3]
                )
            return handler(vcpu, *[value & width for value, width in zip(args, widths)])
        except XenError as error:
            vcpu.domain.refused(vcpu, number, error)
            return -error.errno
        finally:
            tally.hypercalls[number] += 1
            tally.nanoseconds[number] += perf_counter_ns() - start

    def _multicall(self, vcpu: PvVcpu, call_list: int, nr_calls: int) -> Result:
        return run_batch(self.dispatch, vcpu, call_list, nr_calls)


def _execute_again(vcpu: PvVcpu, rest: Continuation) -> None:
    """The guest makes the rest of the hypercall itself, as with Xen, when it has had its upcalls."""
    cpu = vcpu.domain.cpu
    cpu.rax = rest.number
    cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9 = (*rest.args, 0, 0, 0, 0, 0, 0)[:6]
    cpu.rip -= 2


def _sched_op(vcpu: PvVcpu, operation: int, arg: int) -> Result:
    if operation in LOCAL_SCHED:
        return sched_op(vcpu, operation, arg)
    return remote.ask(vcpu, abi.HYPERVISOR_sched_op, operation, arg)
