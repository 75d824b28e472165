"""CPUID as a native guest sees it.

Follows guest_cpuid and cpuid_hypervisor_leaves of Xen 4.17, and public/arch-x86/cpuid.h. The features are those that
Xen offers a PV guest on a plain AMD K8, which is what the engine can execute at least; no XSAVE and no FSGSBASE, so
that the engine's CR4 has neither (XSA-293). Leaves beyond the largest one are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.pv.canonical import U32
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT
from hypervisor.pv.pvclock import scale

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX"""

XEN_FIRST: Final = 0x4000_0000
XEN_MAX_LEAVES: Final = 5
XEN_MAJOR: Final = 4
XEN_MINOR: Final = 17
FEAT1_MMU_PT_UPDATE_PRESERVE_AD: Final = 1
TSC_RELIABLE: Final = 2

_NOTHING: Final[Leaf] = (0, 0, 0, 0)
_ALL: Final = -1
"""a leaf without subleaves"""


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


_SIGNATURE: Final = 0x60FB1
"""family 15, model 107, stepping 1"""
_VENDOR: Final = _words(b"AuthenticAMD")
_NAME: Final = _words(b"domzero Virtual CPU".ljust(48, b"\0"))

_COMMON_EDX: Final = _bits(0, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 23, 24)
"""fpu de tsc msr pae mce cx8 apic mca cmov pat mmx fxsr: in leaf 1 and, on AMD, again in 0x80000001"""
_FEATURES_EDX: Final = _COMMON_EDX | _bits(19, 25, 26)
"""clflush sse sse2"""
_FEATURES_ECX: Final = _bits(0, 13, 31)
"""sse3 cx16 hypervisor"""
_EXTENDED_EDX: Final = _COMMON_EDX | _bits(11, 20, 29)
"""syscall nx lm"""
_EXTENDED_ECX: Final = _bits(0, 8)
"""lahf_lm 3dnowprefetch"""

_CLFLUSH_64: Final = 8 << 8
_ADDRESS_BITS: Final = 48 << 8 | 40

_LEAVES: Final[dict[tuple[int, int], Leaf]] = {
    (0, _ALL): (0xD, _VENDOR[0], _VENDOR[2], _VENDOR[1]),
    (1, _ALL): (_SIGNATURE, _CLFLUSH_64, _FEATURES_ECX, _FEATURES_EDX),
    (0x8000_0000, _ALL): (0x8000_0008, _VENDOR[0], _VENDOR[2], _VENDOR[1]),
    (0x8000_0001, _ALL): (_SIGNATURE, 0, _EXTENDED_ECX, _EXTENDED_EDX),
    (0x8000_0002, _ALL): (_NAME[0], _NAME[1], _NAME[2], _NAME[3]),
    (0x8000_0003, _ALL): (_NAME[4], _NAME[5], _NAME[6], _NAME[7]),
    (0x8000_0004, _ALL): (_NAME[8], _NAME[9], _NAME[10], _NAME[11]),
    (0x8000_0005, _ALL): (0x01FF_01FF, 0x01FF_01FF, 0x4002_0140, 0x4002_0140),
    (0x8000_0006, _ALL): (0, 0x4200_4200, 0x0200_8140, 0),
    (0x8000_0008, _ALL): (_ADDRESS_BITS, 0, 0, 0),
    (XEN_FIRST, _ALL): (XEN_FIRST + XEN_MAX_LEAVES, 0x566E_6558, 0x6558_4D4D, 0x4D4D_566E),
    (XEN_FIRST + 1, _ALL): (XEN_MAJOR << 16 | XEN_MINOR, 0, 0, 0),
    (XEN_FIRST + 2, _ALL): (1, XEN_FIRST, FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0),
    (XEN_FIRST + 5, 0): (0, MFN_END.bit_length() - 1 + PAGE_SHIFT, 0, 0),
}
_TIME: Final = XEN_FIRST + 3
_FEATURES: Final = 1
_APIC_ID_SHIFT: Final = 24


def leaf(vcpu: PvVcpu, number: int, subleaf: int) -> Leaf:
    """The four registers for CPUID with EAX `number` and ECX `subleaf`."""
    found = _LEAVES.get((number, _ALL)) or _LEAVES.get((number, subleaf), _NOTHING)
    if number == _FEATURES:
        eax, ebx, ecx, edx = found
        return eax, ebx | vcpu.id << _APIC_ID_SHIFT & U32, ecx, edx
    if number == _TIME:
        return _time_leaf(vcpu.domain.tsc_hz, subleaf)
    return found


def _time_leaf(tsc_hz: int, subleaf: int) -> Leaf:
    """The time stamp counter: not emulated, and its rate."""
    if subleaf == 0:
        return TSC_RELIABLE, 0, tsc_hz // 1000, 0
    if subleaf == 1:
        multiplier, shift = scale(tsc_hz)
        return 0, 0, multiplier, shift & U32
    return (tsc_hz // 1000, 0, 0, 0) if subleaf == 2 else _NOTHING


def execute(vcpu: PvVcpu) -> None:
    """The instruction: RAX to RDX get the answer."""
    cpu = vcpu.domain.cpu
    cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx = leaf(vcpu, cpu.rax & U32, cpu.rcx & U32)
