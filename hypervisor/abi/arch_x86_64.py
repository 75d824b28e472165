"""arch-x86/xen.h and arch-x86/xen-x86_64.h: what the shared structs hold of the processor."""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Array, Bytes, Struct, u8, u16, u32, u64

FIRST_RESERVED_GDT_PAGE: Final = 14
FIRST_RESERVED_GDT_BYTE: Final = 0xE000
FIRST_RESERVED_GDT_ENTRY: Final = 0x1C00
XEN_LEGACY_MAX_VCPUS: Final = 32

VGCF_I387_VALID: Final = 1
VGCF_IN_KERNEL: Final = 4
VGCF_i387_valid: Final = 1
VGCF_in_kernel: Final = 4
VGCF_failsafe_disables_events: Final = 8
VGCF_syscall_disables_events: Final = 16
VGCF_online: Final = 32
VGCF_in_syscall: Final = 256
VGCF_IN_SYSCALL: Final = 256

XEN_X86_EMU_LAPIC: Final = 1
XEN_X86_EMU_HPET: Final = 2
XEN_X86_EMU_PM: Final = 4
XEN_X86_EMU_RTC: Final = 8
XEN_X86_EMU_IOAPIC: Final = 16
XEN_X86_EMU_PIC: Final = 32
XEN_X86_EMU_VGA: Final = 64
XEN_X86_EMU_IOMMU: Final = 128
XEN_X86_EMU_PIT: Final = 256
XEN_X86_EMU_USE_PIRQ: Final = 512
XEN_X86_EMU_VPCI: Final = 1024
XEN_X86_EMU_ALL: Final = 2047
XEN_X86_MSR_RELAXED: Final = 1
XEN_X86_MISC_FLAGS_MAX: Final = 1
XEN_CPUID_NO_SUBLEAF: Final = 0xFFFFFFFF
XEN_HVM_DEBUGCONS_IOPORT: Final = 0xE9

FLAT_RING3_CS32: Final = 0xE023
FLAT_RING3_CS64: Final = 0xE033
FLAT_RING3_DS32: Final = 0xE02B
FLAT_RING3_DS64: Final = 0x0
FLAT_RING3_SS32: Final = 0xE02B
FLAT_RING3_SS64: Final = 0xE02B
FLAT_KERNEL_DS64: Final = 0
FLAT_KERNEL_DS32: Final = 0xE02B
FLAT_KERNEL_DS: Final = 0
FLAT_KERNEL_CS64: Final = 0xE033
FLAT_KERNEL_CS32: Final = 0xE023
FLAT_KERNEL_CS: Final = 0xE033
FLAT_KERNEL_SS64: Final = 0xE02B
FLAT_KERNEL_SS32: Final = 0xE02B
FLAT_KERNEL_SS: Final = 0xE02B
FLAT_USER_DS64: Final = 0
FLAT_USER_DS32: Final = 0xE02B
FLAT_USER_DS: Final = 0
FLAT_USER_CS64: Final = 0xE033
FLAT_USER_CS32: Final = 0xE023
FLAT_USER_CS: Final = 0xE033
FLAT_USER_SS64: Final = 0xE02B
FLAT_USER_SS32: Final = 0xE02B
FLAT_USER_SS: Final = 0xE02B

HYPERVISOR_VIRT_START: Final = 0xFFFF800000000000
HYPERVISOR_VIRT_END: Final = 0xFFFF880000000000
MACH2PHYS_VIRT_START: Final = 0xFFFF800000000000
MACH2PHYS_VIRT_END: Final = 0xFFFF804000000000
MACH2PHYS_NR_ENTRIES: Final = 0x800000000

SEGBASE_FS: Final = 0
SEGBASE_GS_USER: Final = 1
SEGBASE_GS_KERNEL: Final = 2
SEGBASE_GS_USER_SEL: Final = 3


class arch_vcpu_info(Struct, size=16):
    cr2: u64 = 0
    pad: u64 = 0


class trap_info(Struct, size=16):
    vector: u8 = 0
    flags: u8 = 0
    cs: u16 = 0
    address: u64 = 0


class arch_shared_info(Struct, size=48):
    max_pfn: u64 = 0
    pfn_to_mfn_frame_list_list: u64 = 0
    nmi_reason: u64 = 0
    p2m_cr3: u64 = 0
    p2m_vaddr: u64 = 0
    p2m_generation: u64 = 0


class xen_arch_domainconfig(Struct, size=8):
    emulation_flags: u32 = 0
    misc_flags: u32 = 0


class xen_cpuid_leaf(Struct, size=24):
    leaf: u32 = 0
    subleaf: u32 = 0
    a: u32 = 0
    b: u32 = 0
    c: u32 = 0
    d: u32 = 0


class xen_msr_entry(Struct, size=16):
    idx: u32 = 0
    flags: u32 = 0
    val: u64 = 0


class iret_context(Struct, size=72):
    """What a PV kernel leaves on its stack for the iret hypercall."""

    rax: u64 = 0
    r11: u64 = 0
    rcx: u64 = 0
    flags: u64 = 0
    rip: u64 = 0
    cs: u64 = 0
    rflags: u64 = 0
    rsp: u64 = 0
    ss: u64 = 0


class cpu_user_regs(Struct, size=200):
    r15: u64 = 0
    r14: u64 = 0
    r13: u64 = 0
    r12: u64 = 0
    rbp: u64 = 0
    rbx: u64 = 0
    r11: u64 = 0
    r10: u64 = 0
    r9: u64 = 0
    r8: u64 = 0
    rax: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    error_code: u32 = 0
    entry_vector: u32 = 0
    rip: u64 = 0
    cs: u16 = 0
    _pad0: Annotated[tuple[int, ...], Array(u16, 1)] = ZERO
    saved_upcall_mask: u8 = 0
    _pad1: Annotated[bytes, Bytes(3)] = ZERO
    rflags: u64 = 0
    rsp: u64 = 0
    ss: u16 = 0
    _pad2: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    es: u16 = 0
    _pad3: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    ds: u16 = 0
    _pad4: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    fs: u16 = 0
    _pad5: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    gs: u16 = 0
    _pad6: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO


class vcpu_guest_context_fpu_ctxt(Struct, size=512, anonymous=True):
    x: Annotated[bytes, Bytes(512)] = ZERO


class vcpu_guest_context(Struct, size=5168):
    fpu_ctxt: vcpu_guest_context_fpu_ctxt = ZERO
    flags: u64 = 0
    user_regs: cpu_user_regs = ZERO
    trap_ctxt: Annotated[tuple[trap_info, ...], Array(trap_info, 256)] = ZERO
    ldt_base: u64 = 0
    ldt_ents: u64 = 0
    gdt_frames: Annotated[tuple[int, ...], Array(u64, 16)] = ZERO
    gdt_ents: u64 = 0
    kernel_ss: u64 = 0
    kernel_sp: u64 = 0
    ctrlreg: Annotated[tuple[int, ...], Array(u64, 8)] = ZERO
    debugreg: Annotated[tuple[int, ...], Array(u64, 8)] = ZERO
    event_callback_eip: u64 = 0
    failsafe_callback_eip: u64 = 0
    syscall_callback_eip: u64 = 0
    vm_assist: u64 = 0
    fs_base: u64 = 0
    gs_base_kernel: u64 = 0
    gs_base_user: u64 = 0
