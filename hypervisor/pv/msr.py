"""Model-specific registers as a guest's kernel reads and writes them by RDMSR and WRMSR.

Follows guest_rdmsr and guest_wrmsr (xen/arch/x86/msr.c) and read_msr and write_msr (pv/emul-priv-op.c) of Xen 4.17, for
an AMD processor and without msr_relaxed: what is not listed is #GP (XSA-333).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.pv.canonical import is_canonical

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

MSR_IA32_TSC: Final = 0x10
MSR_AMD_PATCHLEVEL: Final = 0x8B
MSR_IA32_MPERF: Final = 0xE7
MSR_IA32_APERF: Final = 0xE8
MSR_IA32_MCG_CAP: Final = 0x179
MSR_IA32_MCG_STATUS: Final = 0x17A
MSR_IA32_CR_PAT: Final = 0x277
MSR_IA32_PERF_CAPABILITIES: Final = 0x345
MSR_IA32_MC0_CTL: Final = 0x400
MSR_EFER: Final = 0xC000_0080
MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
MSR_SHADOW_GS_BASE: Final = 0xC000_0102
MSR_K8_HWCR: Final = 0xC001_0015

XEN_PAT: Final = 0x0000_0501_0007_0406
"""WB WT UC- UC WC WP UC UC"""
EFER: Final = 0xD01
"""SCE, LME, LMA, NXE"""
MACHINE_CHECK_BANKS: Final = 2

_CONSTANT: Final = {
    MSR_AMD_PATCHLEVEL: 0,
    MSR_IA32_MCG_CAP: MACHINE_CHECK_BANKS,
    MSR_IA32_MCG_STATUS: 0,
    MSR_IA32_CR_PAT: XEN_PAT,
    MSR_IA32_PERF_CAPABILITIES: 0,
    MSR_EFER: EFER,
    MSR_K8_HWCR: 0,
    0xC001_0041: 0,
    0xC001_0042: 0,
    0xC001_0061: 0,
    0xC001_0062: 0,
    0xC001_0063: 0,
    0xC001_0064: 0,
    0xC001_0065: 0,
    0xC001_0066: 0,
    0xC001_0067: 0,
    0xC001_0068: 0,
    **{
        MSR_IA32_MC0_CTL + 4 * bank + register: (1 << 64) - 1 if register == 0 else 0
        for bank in range(MACHINE_CHECK_BANKS)
        for register in range(4)
    },
}
"""among them K7_FID_VID_CTL and _STATUS, K8_PSTATE_*: read as 0"""

_IGNORED: Final = frozenset(
    {
        MSR_IA32_MPERF,
        MSR_IA32_APERF,
        MSR_IA32_MCG_STATUS,
        MSR_K8_HWCR,
        *range(0xC001_0061, 0xC001_0069),
        0xC001_0041,
        0xC001_0042,
        *range(MSR_IA32_MC0_CTL, MSR_IA32_MC0_CTL + 4 * MACHINE_CHECK_BANKS),
    }
)
"""Written without effect."""


def read_msr(vcpu: PvVcpu, index: int) -> int | None:
    """The register; None for #GP."""
    value = _CONSTANT.get(index)
    if value is not None:
        return value
    if index == MSR_FS_BASE:
        return vcpu.domain.cpu.fs_base
    if index == MSR_GS_BASE:
        return vcpu.domain.cpu.gs_base
    if index == MSR_SHADOW_GS_BASE:
        return vcpu.gs_base_user
    if index == MSR_IA32_TSC:
        return vcpu.domain.read_tsc()
    return None


def write_msr(vcpu: PvVcpu, index: int, value: int) -> bool:
    """False for #GP: the register is not the guest's to write, or the value is none that it takes (XSA-193)."""
    if index in (MSR_FS_BASE, MSR_GS_BASE, MSR_SHADOW_GS_BASE):
        if not is_canonical(value):
            return False
        if index == MSR_FS_BASE:
            vcpu.domain.cpu.fs_base = value
        elif index == MSR_GS_BASE:
            vcpu.domain.cpu.gs_base = value
        else:
            vcpu.gs_base_user = value
        return True
    return index in _IGNORED
