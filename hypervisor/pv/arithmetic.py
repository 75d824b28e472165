"""Results and flags of the arithmetic that is emulated: what the processor's manuals say of ADD, OR, AND, SUB, XOR…"""

from __future__ import annotations

from typing import Final

CF: Final = 1
PF: Final = 1 << 2
AF: Final = 1 << 4
ZF: Final = 1 << 6
SF: Final = 1 << 7
OF: Final = 1 << 11
ARITHMETIC: Final = CF | PF | AF | ZF | SF | OF

ADD, OR, ADC, SBB, AND, SUB, XOR = range(7)
BINARY_OPERATIONS: Final = frozenset({ADD, OR, ADC, SBB, AND, SUB, XOR})
"""by the numbers that opcodes 0x00 to 0x37 and 0x80 to 0x83 give them; 7 is CMP, which writes nothing"""

Outcome = tuple[int, int, int]
"""the result, the flags, and which flags are changed"""


def evaluate(operation: int, left: int, right: int, size: int, carry: int = 0) -> Outcome:
    """`left` and `right` are unsigned numbers of `size` bytes."""
    if operation in (OR, AND, XOR):
        result = left | right if operation == OR else left & right if operation == AND else left ^ right
        return result, _of_result(result, size), ARITHMETIC
    if operation in (ADD, ADC):
        return _add(left, right, size, carry if operation == ADC else 0)
    return _subtract(left, right, size, carry if operation == SBB else 0)


def compare(left: int, right: int, size: int) -> Outcome:
    """CMP: the flags of left - right."""
    return _subtract(left, right, size, 0)


def exchange_add(left: int, right: int, size: int) -> Outcome:
    """XADD's sum."""
    return _add(left, right, size, 0)


def _of_result(result: int, size: int) -> int:
    flags = 0 if result else ZF
    if result >> size * 8 - 1:
        flags |= SF
    if not (result & 0xFF).bit_count() & 1:
        flags |= PF
    return flags


def _add(left: int, right: int, size: int, carry: int) -> Outcome:
    bits = size * 8
    total = left + right + carry
    result = total & (1 << bits) - 1
    flags = _of_result(result, size) | total >> bits
    flags |= (left ^ right ^ result) & AF
    if (left ^ result) & (right ^ result) & 1 << bits - 1:
        flags |= OF
    return result, flags, ARITHMETIC


def _subtract(left: int, right: int, size: int, borrow: int) -> Outcome:
    bits = size * 8
    result = left - right - borrow & (1 << bits) - 1
    flags = _of_result(result, size)
    if left < right + borrow:
        flags |= CF
    flags |= (left ^ right ^ result) & AF
    if (left ^ right) & (left ^ result) & 1 << bits - 1:
        flags |= OF
    return result, flags, ARITHMETIC
