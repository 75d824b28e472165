"""Entry points for what the engine meets while it executes a vCPU: exceptions, software interrupts, system calls.

Each changes the registers of `vcpu.domain.cpu` in place, so that the engine goes on where the guest is to go on: behind
an instruction that was emulated, or at a handler of its kernel with a frame on the kernel's stack (bounce.py). RIP is
on entry that of the instruction for faults, and of the next one for traps and SYSCALL; on return it is the one to
execute next. DomainCrash means that the guest has left nowhere to go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu


def deliver_exception(vcpu: PvVcpu, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
    """Let the guest's kernel handle hardware exception `vector`; without an entry in its trap table it crashes."""
    raise NotImplementedError


def exception(vcpu: PvVcpu, vector: int, error_code: int, cr2: int) -> None:
    """Any exception of the engine, by vector; error_code and cr2 are looked at only if the vector has them."""
    raise NotImplementedError


def page_fault(vcpu: PvVcpu, error_code: int, address: int) -> None:
    """#PF: a write to a level-1 table is emulated, anything else is the guest's."""
    raise NotImplementedError


def general_protection(vcpu: PvVcpu, error_code: int) -> None:
    """#GP: INT n, a privileged instruction that is emulated, or the guest's."""
    raise NotImplementedError


def invalid_opcode(vcpu: PvVcpu) -> None:
    """#UD: CPUID behind the forced emulation prefix, or the guest's."""
    raise NotImplementedError


def device_not_available(vcpu: PvVcpu) -> None:
    """#NM: CR0.TS is cleared, then the guest is told."""
    raise NotImplementedError


def debug(vcpu: PvVcpu) -> None:
    """#DB, with DR6 of the processor saying why."""
    raise NotImplementedError


def breakpoint_trap(vcpu: PvVcpu) -> None:
    """INT3: RIP is behind it."""
    raise NotImplementedError


def software_interrupt(vcpu: PvVcpu, vector: int, next_rip: int) -> None:
    """INT n: allowed if the trap table's DPL says so, else #GP."""
    raise NotImplementedError


def syscall(vcpu: PvVcpu) -> None:
    """SYSCALL in guest user mode."""
    raise NotImplementedError


def sysenter(vcpu: PvVcpu) -> None:
    """SYSENTER."""
    raise NotImplementedError


def deliver_upcall(vcpu: PvVcpu) -> None:
    """To be called before the engine goes on: an event upcall or NMI if one is due."""
    raise NotImplementedError


def cpuid(vcpu: PvVcpu) -> None:
    """A CPUID instruction, if the engine asks: registers get the answer, RIP stays."""
    raise NotImplementedError


def switch_in(vcpu: PvVcpu) -> None:
    """The vCPU is going to be executed; its register file is loaded (a reset one the first time)."""
    raise NotImplementedError


def switch_out(vcpu: PvVcpu) -> None:
    """The vCPU has been executed; its register file is saved afterwards."""
    raise NotImplementedError
