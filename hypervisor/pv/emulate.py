"""Privileged instructions that a guest's kernel executes at CPL 3: they fault, and are done here as far as a guest may.

Follows xen/arch/x86/pv/emul-priv-op.c and emul-inv-op.c of Xen 4.17. CLI and STI do nothing (with POPF not trapping,
Xen lets them have no effect on the upcall mask either); the guest masks events by its vcpu_info.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import FLAT_KERNEL_CS64
from hypervisor.errors import XenError
from hypervisor.pv import cpuid, port_io
from hypervisor.pv.bounce import EFLAGS_DF
from hypervisor.pv.canonical import U32, U64
from hypervisor.pv.control_registers import read_control_register, write_control_register
from hypervisor.pv.cpu import Segment
from hypervisor.pv.debug import get_debugreg, set_debugreg
from hypervisor.pv.decode import Instruction, Truncated, decode
from hypervisor.pv.fetch import FetchFault, fetch, fetch_bytes
from hypervisor.pv.msr import read_msr, write_msr

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

CLI: Final = 0xFA
STI: Final = 0xFB
_FLAG_INSTRUCTIONS: Final = (CLI, STI)

_FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"
"""UD2, "xen", CPUID (XEN_CPUID of arch-x86/xen.h)"""
_FORCED_PREFIX: Final = 5


def emulate_privileged(vcpu: PvVcpu) -> bool:
    """The instruction at RIP raised #GP(0). True: it is done, and RIP behind it; False: the guest gets the fault.
    FetchFault: it gets a page fault.
    """
    domain = vcpu.domain
    cpu = domain.cpu
    if cpu.selector(Segment.CS) == FLAT_KERNEL_CS64 and port_io.iopl_permits(vcpu):
        rip = cpu.rip
        machine = domain.page_tables.translate(vcpu.root, rip, False)
        if machine >= 0 and domain.memory.octets[machine] in _FLAG_INSTRUCTIONS:
            cpu.rip = rip + 1 & U64  # what a kernel executes by far most often
            return True
    fetched = fetch(vcpu)
    if fetched is None:
        return False
    data, width = fetched
    if data[0] in _FLAG_INSTRUCTIONS:
        if not port_io.iopl_permits(vcpu):
            return False
        _advance(vcpu, 1, width)
        return True
    instruction = decode(data, width)
    if instruction is None or instruction.lock:
        return False
    handler = _HANDLERS.get(instruction.opcode)
    if handler is None:
        return False
    try:
        done = handler(vcpu, instruction)
    except (Truncated, XenError):
        return False
    if done:
        _advance(vcpu, instruction.length, width)
    return done


def emulate_forced_cpuid(vcpu: PvVcpu) -> bool:
    """The instruction at RIP raised #UD. True: it was CPUID behind the prefix that asks for emulation."""
    fetched = fetch(vcpu)
    if fetched is None:
        return False
    data, width = fetched
    wanted = len(_FORCED_CPUID)
    head = data[:wanted]
    if head != _FORCED_CPUID:
        if len(head) < wanted and _FORCED_CPUID.startswith(head):
            rip = vcpu.domain.cpu.rip + len(head)
            fetch_bytes(vcpu, rip & U64, 1)
        return False
    cpuid.execute(vcpu)
    _advance(vcpu, wanted, width)
    return True


def _advance(vcpu: PvVcpu, length: int, width: int) -> None:
    cpu = vcpu.domain.cpu
    cpu.rip = cpu.rip + length & (U64 if width == 64 else U32)


# The handlers: True, the instruction is done. XenError and False: #GP.


def _clts(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    if vcpu.in_kernel:
        vcpu.domain.cpu.task_switched = False
    return vcpu.in_kernel


def _wbinvd(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    """There is no cache to write back."""
    return vcpu.in_kernel


def _read_cr(vcpu: PvVcpu, instruction: Instruction) -> bool:
    if not vcpu.in_kernel:
        return False
    instruction.read_modrm()
    value = read_control_register(vcpu, instruction.reg)
    _set_whole(vcpu, instruction, value)
    return True


def _write_cr(vcpu: PvVcpu, instruction: Instruction) -> bool:
    if not vcpu.in_kernel:
        return False
    instruction.read_modrm()
    write_control_register(vcpu, instruction.reg, _whole(vcpu, instruction))
    return True


def _read_dr(vcpu: PvVcpu, instruction: Instruction) -> bool:
    if not vcpu.in_kernel:
        return False
    instruction.read_modrm()
    _set_whole(vcpu, instruction, get_debugreg(vcpu, instruction.reg))
    return True


def _write_dr(vcpu: PvVcpu, instruction: Instruction) -> bool:
    if not vcpu.in_kernel:
        return False
    instruction.read_modrm()
    set_debugreg(vcpu, instruction.reg, _whole(vcpu, instruction))
    return True


def _register_operand(instruction: Instruction) -> int:
    """MOV to and from CR and DR takes ModRM's rm for a register, whatever mod says."""
    return instruction.rm if instruction.mod == 3 else instruction.rm | (instruction.rex & 1) << 3


def _whole(vcpu: PvVcpu, instruction: Instruction) -> int:
    value = vcpu.domain.cpu.gpr(_register_operand(instruction))
    return value if instruction.width == 64 else value & U32


def _set_whole(vcpu: PvVcpu, instruction: Instruction, value: int) -> None:
    vcpu.domain.cpu.set_gpr(_register_operand(instruction), value if instruction.width == 64 else value & U32)


def _rdmsr(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    if not vcpu.in_kernel:
        return False
    cpu = vcpu.domain.cpu
    value = read_msr(vcpu, cpu.rcx & U32)
    if value is None:
        return False
    cpu.rax = value & U32
    cpu.rdx = value >> 32
    return True


def _wrmsr(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    cpu = vcpu.domain.cpu
    return vcpu.in_kernel and write_msr(vcpu, cpu.rcx & U32, (cpu.rdx & U32) << 32 | cpu.rax & U32)


def _rdtsc(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    """It traps only while the guest's CR4.TSD is set."""
    cpu = vcpu.domain.cpu
    if not vcpu.in_kernel:
        return False
    tsc = vcpu.domain.read_tsc()
    cpu.rax = tsc & U32
    cpu.rdx = tsc >> 32
    return True


def _cpuid(vcpu: PvVcpu, _instruction: Instruction) -> bool:
    cpuid.execute(vcpu)
    return True


def _in(vcpu: PvVcpu, instruction: Instruction) -> bool:
    cpu = vcpu.domain.cpu
    size = _port_bytes(instruction)
    port = cpu.rdx & 0xFFFF if instruction.opcode & 8 else instruction.immediate(1)
    if not port_io.permitted(vcpu, port, size):
        return False
    value = port_io.read(port, size)
    if size == 4:
        cpu.rax = value
    else:
        mask = (1 << size * 8) - 1
        cpu.rax = cpu.rax & ~mask | value
    return True


def _out(vcpu: PvVcpu, instruction: Instruction) -> bool:
    size = _port_bytes(instruction)
    port = vcpu.domain.cpu.rdx & 0xFFFF if instruction.opcode & 8 else instruction.immediate(1)
    return port_io.permitted(vcpu, port, size)


def _port_bytes(instruction: Instruction) -> int:
    return min(instruction.operand_bytes, 4) if instruction.opcode & 1 else 1


def _string_io(vcpu: PvVcpu, instruction: Instruction) -> bool:
    """INS and OUTS to ports that are the guest's to use: one step of a repeated one, so that it is never long."""
    domain = vcpu.domain
    cpu = domain.cpu
    size = _port_bytes(instruction)
    if instruction.width != 64 or instruction.address_bytes != 8:
        return False
    if not port_io.permitted(vcpu, cpu.rdx & 0xFFFF, size):
        return False
    if instruction.rep and not cpu.rcx:
        return True
    step = -size if cpu.rflags & EFLAGS_DF else size
    if instruction.opcode & 2:
        domain.page_tables.read(vcpu.root, port_io.source_address(vcpu, instruction.segment), size)
        cpu.rsi = cpu.rsi + step & U64
    else:
        data = port_io.read(cpu.rdx & 0xFFFF, size).to_bytes(size, "little")
        domain.page_tables.write(vcpu.root, cpu.rdi, data)
        cpu.rdi = cpu.rdi + step & U64
    if instruction.rep:
        cpu.rcx = cpu.rcx - 1 & U64
        if cpu.rcx:
            cpu.rip = cpu.rip - instruction.length & U64
    return True


_HANDLERS: Final[dict[int, Callable[[PvVcpu, Instruction], bool]]] = {
    0x6C: _string_io,
    0x6D: _string_io,
    0x6E: _string_io,
    0x6F: _string_io,
    0xE4: _in,
    0xE5: _in,
    0xE6: _out,
    0xE7: _out,
    0xEC: _in,
    0xED: _in,
    0xEE: _out,
    0xEF: _out,
    0x0F06: _clts,
    0x0F09: _wbinvd,
    0x0F20: _read_cr,
    0x0F21: _read_dr,
    0x0F22: _write_cr,
    0x0F23: _write_dr,
    0x0F30: _wrmsr,
    0x0F31: _rdtsc,
    0x0F32: _rdmsr,
    0x0FA2: _cpuid,
}

__all__ = ["FetchFault", "emulate_forced_cpuid", "emulate_privileged"]
