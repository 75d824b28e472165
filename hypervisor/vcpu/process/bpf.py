"""Programs for seccomp: the few instructions of classic BPF that a filter of system calls needs (linux/filter.h,
linux/seccomp.h).
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import Final, NamedTuple

LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_IF_ABOVE: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_IF_NOT_BELOW: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

NUMBER_OFFSET: Final = 0  # struct seccomp_data
ARCH_OFFSET: Final = 4
ARGS_OFFSET: Final = 16

LONGEST_JUMP: Final = 0xFF

_INSTRUCTION: Final = Codec("<HBBI")


class Instruction(NamedTuple):
    """struct sock_filter. A jump goes on `if_true` or `if_false` instructions behind the next one."""

    code: int
    if_true: int
    if_false: int
    value: int


Program = list[Instruction]


def load(offset: int) -> Instruction:
    """Take the word of struct seccomp_data at `offset`."""
    return Instruction(LOAD_WORD, 0, 0, offset)


def mask(value: int) -> Instruction:
    """Keep these bits of what was taken."""
    return Instruction(AND, 0, 0, value)


def end(value: int) -> Instruction:
    """Return `value`, a SECCOMP_RET_*."""
    return Instruction(RETURN, 0, 0, value)


def jump(code: int, value: int, if_true: int = 0, if_false: int = 0) -> Instruction:
    """Compare what was taken with `value`."""
    assert 0 <= if_true <= LONGEST_JUMP
    assert 0 <= if_false <= LONGEST_JUMP
    return Instruction(code, if_true, if_false, value)


def encode(program: Program) -> bytes:
    """As the kernel takes it."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
