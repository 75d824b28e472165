"""Executes filters as the kernel would (net/core/filter.c), independent of what has assembled them."""

from struct import Struct, iter_unpack, pack

WORD = 0xFFFF_FFFF
X86_64 = 0xC000_003E


def execute(code: bytes, number: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What the filter `code` returns for a system call. Fails on instructions that no filter of ours has."""
    padded = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = pack("<IIQ6Q", number & WORD, arch, 0x7FFF_0000_0000, *(arg & (1 << 64) - 1 for arg in padded))
    program = list(iter_unpack("<HBBI", code))
    accumulator, at = 0, 0
    while True:
        opcode, if_true, if_false, value = program[at]
        at += 1
        if opcode == 0x20:
            (accumulator,) = Struct("<I").unpack_from(data, value)
        elif opcode == 0x54:
            accumulator &= value
        elif opcode == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[
                opcode
            ]
            at += if_true if taken else if_false
