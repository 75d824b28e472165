"""A decoder for the few instructions that are emulated: prefixes, opcode, ModRM, and the address of its operand.

It reads the bytes that were fetched and nothing else. What it does not know is None: the guest gets its fault then.
Numbers of opcodes are those of the processor's manuals; two-byte ones are 0x0F00 and above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypervisor.pv.cpu import Segment

_SEGMENT_PREFIXES: Final = {
    0x26: Segment.ES,
    0x2E: Segment.CS,
    0x36: Segment.SS,
    0x3E: Segment.DS,
    0x64: Segment.FS,
    0x65: Segment.GS,
}
_OPERAND_SIZE: Final = 0x66
_ADDRESS_SIZE: Final = 0x67
_LOCK: Final = 0xF0
_REPNE: Final = 0xF2
_REP: Final = 0xF3
_TWO_BYTES: Final = 0x0F

NO_REGISTER: Final = -1


class Truncated(Exception):
    """The instruction goes on behind the bytes that could be fetched."""


class Instruction:
    """opcode       0x00 to 0xFF, or 0x0F00 to 0x0FFF
    operand_bytes   2, 4 or 8 by prefixes and width; opcodes on bytes know it themselves
    address_bytes   2, 4 or 8
    rep, lock, rex, segment   prefixes; segment is None without an override
    mod, reg, rm    of ModRM, with the bits of REX, after `read_modrm`
    length          bytes so far; of the whole instruction when all parts were read
    """

    __slots__ = (
        "_data",
        "address_bytes",
        "base",
        "displacement",
        "index",
        "length",
        "lock",
        "mod",
        "opcode",
        "operand_bytes",
        "reg",
        "rep",
        "rex",
        "rip_relative",
        "rm",
        "scale",
        "segment",
        "width",
    )

    def __init__(self, data: bytes, width: int) -> None:
        """Read prefixes and opcode. Truncated."""
        self._data = data
        self.width = width
        self.length = 0
        self.rep = 0
        self.lock = False
        self.segment: Segment | None = None
        self.mod = self.reg = self.rm = 0
        self.base = self.index = NO_REGISTER
        self.scale = self.displacement = 0
        self.rip_relative = False
        short_operand = width == 16
        other_address = False
        rex = 0
        while True:
            byte = self.immediate(1)
            if byte in _SEGMENT_PREFIXES:
                self.segment = _SEGMENT_PREFIXES[byte]
            elif byte == _OPERAND_SIZE:
                short_operand = width != 16
            elif byte == _ADDRESS_SIZE:
                other_address = True
            elif byte == _LOCK:
                self.lock = True
            elif byte in (_REP, _REPNE):
                self.rep = byte
            elif width == 64 and byte & 0xF0 == 0x40:
                rex = byte
                continue
            else:
                break
            rex = 0  # REX counts only right before the opcode
        self.opcode = _TWO_BYTES << 8 | self.immediate(1) if byte == _TWO_BYTES else byte
        self.rex = rex
        self.operand_bytes = 8 if rex & 8 else 2 if short_operand else 4
        if width == 64:
            self.address_bytes = 4 if other_address else 8
        else:
            self.address_bytes = 2 if (width == 16) != other_address else 4

    def immediate(self, size: int) -> int:
        """The next `size` bytes as an unsigned number. Truncated."""
        end = self.length + size
        if end > len(self._data):
            raise Truncated
        value = int.from_bytes(self._data[self.length : end], "little")
        self.length = end
        return value

    def signed(self, size: int) -> int:
        """The next `size` bytes as a signed number. Truncated."""
        value = self.immediate(size)
        return value - (1 << size * 8) if value >> size * 8 - 1 else value

    def read_modrm(self) -> None:
        """Read ModRM and what follows it: SIB, displacement. Truncated; 16-bit addresses are refused so, too."""
        byte = self.immediate(1)
        rex = self.rex
        self.mod = byte >> 6
        self.reg = byte >> 3 & 7 | (rex & 4) << 1
        self.rm = byte & 7
        if self.mod == 3:
            self.rm |= (rex & 1) << 3
            return
        if self.address_bytes == 2:
            raise Truncated
        if self.rm == 4:
            self._read_sib(rex)
        elif self.rm == 5 and self.mod == 0:
            self.displacement = self.signed(4)
            self.rip_relative = self.width == 64
        else:
            self.base = self.rm | (rex & 1) << 3
        if self.mod == 1:
            self.displacement = self.signed(1)
        elif self.mod == 2:
            self.displacement = self.signed(4)

    def _read_sib(self, rex: int) -> None:
        sib = self.immediate(1)
        index = sib >> 3 & 7 | (rex & 2) << 2
        if index != 4:
            self.index = index
            self.scale = sib >> 6
        if sib & 7 == 5 and self.mod == 0:
            self.displacement = self.signed(4)
        else:
            self.base = sib & 7 | (rex & 1) << 3

    def offset(self, gpr: Callable[[int], int], rip: int) -> int:
        """The operand's offset in its segment. rip: of the next instruction, so that all parts were read before."""
        offset = self.displacement
        if self.rip_relative:
            offset += rip
        if self.base != NO_REGISTER:
            offset += gpr(self.base)
        if self.index != NO_REGISTER:
            offset += gpr(self.index) << self.scale
        return offset & (1 << self.address_bytes * 8) - 1

    def default_segment(self) -> Segment:
        """That of its memory operand: the override, else SS where the base is a stack register, else DS."""
        if self.segment is not None:
            return self.segment
        return Segment.SS if self.base in (4, 5) else Segment.DS


def decode(data: bytes, width: int) -> Instruction | None:
    """Prefixes and opcode of the instruction at the start of `data`; None if it is not all there."""
    try:
        return Instruction(data, width)
    except Truncated:
        return None
