"""Writes of a guest's kernel to its level-1 tables, which it has mapped read-only: done here, each entry checked.

Follows ptwr_emulated_update (xen/arch/x86/pv/ro-page-fault.c) of Xen 4.17. Emulated is what writes one aligned operand
of 1 to 8 bytes; CMPXCHG8B and CMPXCHG16B are not (XSA-200).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.pv.arithmetic import BINARY_OPERATIONS, compare, evaluate, exchange_add
from hypervisor.pv.bounce import EFLAGS_DF
from hypervisor.pv.canonical import U64
from hypervisor.pv.cpu import Segment
from hypervisor.pv.decode import Instruction, Truncated, decode
from hypervisor.pv.fetch import FetchFault, fetch
from hypervisor.pv.frames import OWN_L1
from hypervisor.pv.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

_CF: Final = 1
_PAGE: Final = (1 << PAGE_SHIFT) - 1


class _Store:
    """One write to come: where (machine address), how many bytes, and what is there now."""

    __slots__ = ("_page_tables", "machine", "old", "size")

    def __init__(self, vcpu: PvVcpu, address: int, fault: int, size: int) -> None:
        """Refused unless it is aligned and in the page that faulted."""
        domain = vcpu.domain
        self._page_tables = domain.page_tables
        self.size = size
        if (address ^ fault) & ~_PAGE or address & size - 1:
            raise _Refused
        self.machine = domain.page_tables.translate(vcpu.kernel_root, address, False)
        if self.machine < 0:
            raise _Refused
        self.old = int.from_bytes(domain.memory.octets[self.machine : self.machine + size], "little")

    def write(self, value: int) -> None:
        mask = (1 << self.size * 8) - 1
        if not self._page_tables.emulate_pte_write(self.machine, self.size, value & mask):
            raise _Refused


class _Refused(Exception):
    """The guest gets its page fault."""


def emulate_table_write(vcpu: PvVcpu, fault: int) -> bool:
    """The guest's kernel has tried to write at `fault`. True: it was an entry, and is written; False: the guest gets
    its fault.
    """
    domain = vcpu.domain
    machine = domain.page_tables.translate(vcpu.kernel_root, fault, False)
    if machine < 0 or domain.frames.uses[machine >> PAGE_SHIFT] != OWN_L1:
        return False
    try:
        fetched = fetch(vcpu)
        if fetched is None or fetched.width != 64:
            return False
        instruction = decode(fetched.data, fetched.width)
        if instruction is None:
            return False
        _execute(vcpu, instruction, fault)
    except (FetchFault, Truncated, _Refused):
        return False
    return True


def _execute(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    """Write, then set registers and flags, then RIP."""
    opcode = instruction.opcode
    if opcode in (0xAA, 0xAB):
        _store_string(vcpu, instruction, fault)
    elif opcode in (0xA4, 0xA5):
        _move_string(vcpu, instruction, fault)
    else:
        _with_modrm(vcpu, instruction, fault)
        vcpu.domain.cpu.rip = vcpu.domain.cpu.rip + instruction.length & U64


def _operand_size(instruction: Instruction) -> int:
    return instruction.operand_bytes if instruction.opcode & 1 else 1


def _register(vcpu: PvVcpu, instruction: Instruction, number: int, size: int) -> int:
    """A general register as an operand; AH to BH where there is no REX."""
    cpu = vcpu.domain.cpu
    if size == 1 and not instruction.rex and 4 <= number < 8:
        return cpu.gpr(number - 4) >> 8 & 0xFF
    return cpu.gpr(number) & (1 << size * 8) - 1


def _set_register(vcpu: PvVcpu, instruction: Instruction, number: int, size: int, value: int) -> None:
    """32-bit results clear the upper half, smaller ones keep the rest."""
    cpu = vcpu.domain.cpu
    if size >= 4:
        cpu.set_gpr(number, value)
        return
    shift = 0
    if size == 1 and not instruction.rex and 4 <= number < 8:
        number, shift = number - 4, 8
    mask = (1 << size * 8) - 1
    cpu.set_gpr(number, cpu.gpr(number) & ~(mask << shift) | value << shift)


def _with_modrm(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    opcode = instruction.opcode
    instruction.read_modrm()
    if instruction.mod == 3:
        raise _Refused
    if opcode in (0x88, 0x89):
        size = _operand_size(instruction)
        store = _store(vcpu, instruction, fault, size)
        store.write(_register(vcpu, instruction, instruction.reg, size))
    elif opcode in (0xC6, 0xC7):
        size = _operand_size(instruction)
        value = instruction.signed(min(size, 4))
        if instruction.reg & 7:
            raise _Refused
        _store(vcpu, instruction, fault, size).write(value)
    elif opcode in (0x86, 0x87):
        _exchange(vcpu, instruction, fault)
    elif opcode < 0x40 and opcode & 7 in (0, 1) and opcode >> 3 in BINARY_OPERATIONS:
        size = _operand_size(instruction)
        store = _store(vcpu, instruction, fault, size)
        _operate(vcpu, store, opcode >> 3, _register(vcpu, instruction, instruction.reg, size))
    elif opcode in (0x80, 0x81, 0x83):
        _operate_immediate(vcpu, instruction, fault)
    elif opcode in _BIT_OPERATIONS or opcode == 0x0FBA:
        _change_bit(vcpu, instruction, fault)
    elif opcode in (0x0FB0, 0x0FB1):
        _compare_exchange(vcpu, instruction, fault)
    elif opcode in (0x0FC0, 0x0FC1):
        _exchange_and_add(vcpu, instruction, fault)
    else:
        raise _Refused


def _store(vcpu: PvVcpu, instruction: Instruction, fault: int, size: int, plus: int = 0) -> _Store:
    """All of the instruction was read, so that RIP-relative addresses are known."""
    cpu = vcpu.domain.cpu
    offset = instruction.offset(cpu.gpr, cpu.rip + instruction.length) + plus
    segment = instruction.default_segment()
    if segment is Segment.FS:
        offset += cpu.fs_base
    elif segment is Segment.GS:
        offset += cpu.gs_base
    return _Store(vcpu, offset & U64, fault, size)


def _set_flags(vcpu: PvVcpu, flags: int, mask: int) -> None:
    cpu = vcpu.domain.cpu
    cpu.rflags = cpu.rflags & ~mask | flags


def _operate(vcpu: PvVcpu, store: _Store, operation: int, operand: int) -> None:
    carry = vcpu.domain.cpu.rflags & _CF
    result, flags, mask = evaluate(operation, store.old, operand, store.size, carry)
    store.write(result)
    _set_flags(vcpu, flags, mask)


def _operate_immediate(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    size = _operand_size(instruction)
    operand = instruction.signed(min(size, 4) if instruction.opcode == 0x81 else 1)
    operation = instruction.reg & 7
    if operation not in BINARY_OPERATIONS:
        raise _Refused
    store = _store(vcpu, instruction, fault, size)
    _operate(vcpu, store, operation, operand & (1 << size * 8) - 1)


def _exchange(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    size = _operand_size(instruction)
    store = _store(vcpu, instruction, fault, size)
    store.write(_register(vcpu, instruction, instruction.reg, size))
    _set_register(vcpu, instruction, instruction.reg, size, store.old)


def _exchange_and_add(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    size = _operand_size(instruction)
    store = _store(vcpu, instruction, fault, size)
    result, flags, mask = exchange_add(store.old, _register(vcpu, instruction, instruction.reg, size), size)
    store.write(result)
    _set_register(vcpu, instruction, instruction.reg, size, store.old)
    _set_flags(vcpu, flags, mask)


def _compare_exchange(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    """The engine stands still, so that nobody changes the entry between the comparison and the write."""
    size = _operand_size(instruction)
    store = _store(vcpu, instruction, fault, size)
    expected = _register(vcpu, instruction, 0, size)
    _, flags, mask = compare(expected, store.old, size)
    if expected == store.old:
        store.write(_register(vcpu, instruction, instruction.reg, size))
    else:
        _set_register(vcpu, instruction, 0, size, store.old)
    _set_flags(vcpu, flags, mask)


_BTS, _BTR, _BTC = 5, 6, 7
_BIT_OPERATIONS: Final = {0x0FAB: _BTS, 0x0FB3: _BTR, 0x0FBB: _BTC}


def _change_bit(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    """A bit number in a register reaches beyond the operand, in steps of its size."""
    size = instruction.operand_bytes
    bits = size * 8
    plus = 0
    if instruction.opcode == 0x0FBA:
        operation = instruction.reg & 7
        number = instruction.immediate(1) % bits
        if operation not in (_BTS, _BTR, _BTC):
            raise _Refused
    else:
        operation = _BIT_OPERATIONS[instruction.opcode]
        number = _register(vcpu, instruction, instruction.reg, size)
        if number >> bits - 1:
            number -= 1 << bits
        plus, number = number // bits * size, number % bits
    store = _store(vcpu, instruction, fault, size, plus)
    bit = 1 << number
    if operation == _BTS:
        store.write(store.old | bit)
    elif operation == _BTR:
        store.write(store.old & ~bit)
    else:
        store.write(store.old ^ bit)
    _set_flags(vcpu, _CF if store.old & bit else 0, _CF)


def _store_string(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    """STOS: one step; RIP stays while a repeated one is not done."""
    cpu = vcpu.domain.cpu
    size = _operand_size(instruction)
    if instruction.address_bytes != 8 or (instruction.rep and not cpu.rcx):
        raise _Refused
    _Store(vcpu, cpu.rdi, fault, size).write(cpu.rax)
    _step(vcpu, instruction, size, False)


def _move_string(vcpu: PvVcpu, instruction: Instruction, fault: int) -> None:
    """MOVS: one step."""
    domain = vcpu.domain
    cpu = domain.cpu
    size = _operand_size(instruction)
    source = cpu.rsi
    if instruction.address_bytes != 8 or (instruction.rep and not cpu.rcx):
        raise _Refused
    if instruction.segment is Segment.FS:
        source = source + cpu.fs_base & U64
    elif instruction.segment is Segment.GS:
        source = source + cpu.gs_base & U64
    machine = domain.page_tables.translate(vcpu.kernel_root, source, False)
    if machine < 0 or (source & _PAGE) + size > _PAGE + 1:
        raise _Refused
    value = int.from_bytes(domain.memory.octets[machine : machine + size], "little")
    _Store(vcpu, cpu.rdi, fault, size).write(value)
    _step(vcpu, instruction, size, True)


def _step(vcpu: PvVcpu, instruction: Instruction, size: int, moves: bool) -> None:
    cpu = vcpu.domain.cpu
    step = -size if cpu.rflags & EFLAGS_DF else size
    cpu.rdi = cpu.rdi + step & U64
    if moves:
        cpu.rsi = cpu.rsi + step & U64
    if instruction.rep:
        cpu.rcx = cpu.rcx - 1 & U64
        if cpu.rcx:
            return
    cpu.rip = cpu.rip + instruction.length & U64
