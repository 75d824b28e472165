/* Instructions that only ring 0 executes, in the guest's kernel: emulated as Xen does, or a fault
 * (XSA-12, 54, 67, 260, 265, 293, 333). */
#include "../kernel.h"

static s64 read_msr(u32 number, u64 *value)
{
    u32 low = 0, high = 0;
    s64 vector = ATTEMPT("rdmsr", : "+a"(low), "+d"(high) : "c"(number));
    *value = (u64)high << 32 | low;
    return vector;
}

CASE(privileged)
{
    u64 value;
    volatile vcpu_info_t *info = &shared->vcpu_info[0];
    events_off();
    s64 vector = ATTEMPT("sti", : : : "memory");
    check((vector == -1 || vector == 13) && info->evtchn_upcall_mask == 1, "sti: %ld, and events stay masked", vector);
    events_on();
    vector = ATTEMPT("cli", : : : "memory");
    check((vector == -1 || vector == 13) && info->evtchn_upcall_mask == 0, "cli: %ld, and events stay on", vector);
    asm volatile("pushfq\n\tpopq %0" : "=r"(value));
    check(value & FLAG_IF, "interrupts are on: %lx", value);
    vector = ATTEMPT("inb $0x80, %%al", : : : "rax");
    check(vector == 13, "in: %ld", vector);
    vector = ATTEMPT("outb %%al, $0x80", : : "a"(0));
    check(vector == 13, "out: %ld", vector);
    vector = ATTEMPT("movw $0xcf8, %%dx\n\toutl %%eax, %%dx", : : "a"(0) : "rdx");
    check(vector == 13 || vector == -1, "out to the PCI bus: %ld", vector);
    u64 buffer = 0;
    vector = ATTEMPT("rep outsb", : : "S"(&buffer), "c"(4ul), "d"(0x3f8) : "memory");
    check(vector == 13, "outs: %ld", vector);
    vector = ATTEMPT("rep insb", : : "D"(&buffer), "c"(4ul), "d"(0x3f8) : "memory");
    check(vector == 13, "ins: %ld", vector);
    struct physdev_set_iopl iopl = {.iopl = 1};
    check_result(HYPERCALL(physdev_op, PHYSDEVOP_set_iopl, &iopl), 0, "set_iopl 1");
    iopl.iopl = 4;
    check_refused(HYPERCALL(physdev_op, PHYSDEVOP_set_iopl, &iopl), "set_iopl 4");
    vector = ATTEMPT("cli", : : : "memory");
    check(vector == -1 && info->evtchn_upcall_mask == 0, "cli with it: %ld", vector);
    u32 read = 0;
    vector = ATTEMPT("inl $0x80, %%eax", : "+a"(read));
    check(vector == -1 && read == ~0u, "in then reads nothing: %ld, %x", vector, read);
    vector = ATTEMPT("outb %%al, $0x80", : : "a"(0));
    check(vector == -1, "out then writes nothing: %ld", vector);
    iopl.iopl = 0;
    check_result(HYPERCALL(physdev_op, PHYSDEVOP_set_iopl, &iopl), 0, "set_iopl 0");

    vector = ATTEMPT("movq %%cr0, %0", : "+r"(value));
    check(vector == -1 && value & 1 && value >> 31 & 1, "CR0 says %lx", value);
    vector = ATTEMPT("movq %0, %%cr0", : : "r"(value & ~(1ul << 31)));
    check(vector == 13, "turning paging off: %ld", vector);
    vector = ATTEMPT("movq %0, %%cr0", : : "r"(value & ~(1ul << 16)));
    check(vector == 13, "turning write protection off: %ld", vector);
    vector = ATTEMPT("movq %%cr3, %0", : "+r"(value));
    check(vector == -1 && value >> 12 == root_mfn(), "CR3 says %lx", value);
    vector = ATTEMPT("movq %0, %%cr3", : : "r"(0xfffff000ul));
    check(vector == 13, "a bad root in CR3: %ld", vector);
    vector = ATTEMPT("movq %0, %%cr3", : : "r"(root_mfn() << 12));
    check(vector == -1, "the root in CR3: %ld", vector);
    vector = ATTEMPT("movq %%cr4, %0", : "+r"(value));
    check(vector == -1 && value & 0x20, "CR4 says %lx", value);
    u64 with = value;
    vector = ATTEMPT("movq %0, %%cr4", : : "r"(value));
    check(vector == -1, "the same in CR4: %ld", vector);
    vector = ATTEMPT("movq %0, %%cr4", : : "r"(value | 0x20000000ul));
    ATTEMPT("movq %%cr4, %0", : "+r"(with));
    check(with == value, "a reserved bit in CR4: %ld, then %lx", vector, with);
    vector = ATTEMPT("movq %0, %%cr4", : : "r"(value & ~0x20ul));
    ATTEMPT("movq %%cr4, %0", : "+r"(with));
    check(with == value, "turning PAE off: %ld, then %lx", vector, with);
    vector = ATTEMPT("clts", : :);
    check(vector == -1, "clts: %ld", vector);
    check_result(HYPERCALL(fpu_taskswitch, 1), 0, "fpu_taskswitch");
    vector = ATTEMPT("fninit", : :);
    check(vector == 7, "the FPU is off: %ld", vector);
    vector = ATTEMPT("fninit", : :);
    check(vector == -1, "and on then: %ld", vector);
    vector = ATTEMPT("movq %%dr7, %0", : "+r"(value));
    check(vector == -1, "DR7 says %lx", value);
    vector = ATTEMPT("wbinvd", : :);
    check(vector == -1 || vector == 13, "wbinvd: %ld", vector);
    vector = ATTEMPT("invlpg (%0)", : : "r"(start_info));
    check(vector == 13, "invlpg: %ld", vector);
    static const u8 table[16];
    vector = ATTEMPT("lgdt (%0)", : : "r"(table));
    check(vector == 13, "lgdt: %ld", vector);
    vector = ATTEMPT("lidt (%0)", : : "r"(table));
    check(vector == 13, "lidt: %ld", vector);
    vector = ATTEMPT("lldt %w0", : : "r"(8));
    check(vector == 13, "lldt: %ld", vector);
    vector = ATTEMPT("ltr %w0", : : "r"(0xe040));
    check(vector == 13, "ltr: %ld", vector);
    vector = ATTEMPT("xorl %%ecx, %%ecx\n\txsetbv", : : "a"(5), "d"(0) : "rcx");
    check(vector == 13 || vector == 6, "xsetbv with AVX but no SSE: %ld", vector);
    vector = ATTEMPT("movl $1, %%ecx\n\txsetbv", : : "a"(3), "d"(0) : "rcx");
    check(vector == 13 || vector == 6, "xsetbv 1: %ld", vector);
    vector = ATTEMPT("vmcall", : :);
    check(vector == 6 || vector == 13, "vmcall: %ld", vector);
    vector = ATTEMPT("int $0x81", : :);
    check(vector == 13 && probe.error == (0x81 << 3 | 2), "int 0x81 without handler: %ld, %lx", vector, probe.error);
    vector = ATTEMPT("int $14", : :);
    check(vector == 13 && probe.error == (14 << 3 | 2), "int 14 with a handler of level 0: %ld, %lx", vector, probe.error);
    set_trap(0x90, 1, (u64)entries[0x90]);
    vector = ATTEMPT("int $0x90", : :);
    check(vector == 0x90, "int 0x90 with one of level 1: %ld", vector);

    static const u32 unknown[] = {0x0, 0x10, 0x174, 0x1a0, 0x38f, 0x345, 0xc0010010, 0xc0000082, 0x40000000, 0xffffffff,
                                  0x12345678, 0xc8f, 0x9c, 0x480};
    for (unsigned each = 0; each < sizeof unknown / 4; each++) {
        vector = read_msr(unknown[each], &value);
        check(vector == -1 || vector == 13, "reading MSR %x: %ld, %lx", unknown[each], vector, value);
        vector = ATTEMPT("wrmsr", : : "c"(unknown[each]), "a"(0xdeadbeef), "d"(0xdeadbeef));
        check(vector == -1 || vector == 13, "writing it: %ld", vector);
    }
    vector = read_msr(0xc0000080, &value);
    check(vector == -1 && value & 0x100, "EFER says %lx", value);
    u32 registers[4] = {0x40000000, 0, 0, 0};
    vector = ATTEMPT(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\tcpuid",
                     : "+a"(registers[0]), "=b"(registers[1]), "+c"(registers[2]), "=d"(registers[3]));
    check(vector == -1 && registers[1] == 0x566e6558, "the forced CPUID knows Xen: %x", registers[1]);
    registers[0] = 7;
    registers[2] = 0;
    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\tcpuid"
                 : "+a"(registers[0]), "=b"(registers[1]), "+c"(registers[2]), "=d"(registers[3]));
    check(!(registers[1] & 1), "FSGSBASE is not offered");
    vector = ATTEMPT("wrfsbase %0", : : "r"(0ul));
    check(vector == 6 || vector == 13, "wrfsbase: %ld", vector);
    check(HYPERCALL(domctl, 0) < 0, "domctl");
    check(HYPERCALL(sysctl, 0) < 0, "sysctl");
    check(HYPERCALL(platform_op, 0) < 0, "platform_op");
    for (u64 number = 0; number < 64; number++)
        if (number > 42 || number == 22 || number == 27 || number == 31)
            check(hypercall(number, 0, 0, 0, 0, 0) < 0, "hypercall %lu", number);
    check(hypercall(~0ul, 0, 0, 0, 0, 0) < 0 && hypercall(1ul << 32 | 17, 0, 0, 0, 0, 0) != 1 && hypercall(64, 0, 0, 0, 0, 0) < 0,
          "hypercalls without number");
}

CASE(stepping)
{
    /* A breakpoint on what a hypercall reads, a single step over one: exceptions of the guest's, if any. */
    check_result(HYPERCALL(set_debugreg, 7, 0), 0, "no breakpoints");
    s64 vector = ATTEMPT("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tnop", : : : "memory", "cc");
    check(vector == 1, "a single step: %ld", vector);
    u64 flags;
    asm volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq\n\tpushfq\n\tpopq %0" : "=r"(flags) : : "cc", "memory");
    check(!(flags & 0x100), "no more of them");
    s64 result = __HYPERVISOR_xen_version;
    vector = ATTEMPT("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tsyscall\n\tnop", : "+a"(result) : "D"(0ul), "S"(0ul)
                     : "rcx", "r11", "memory", "cc");
    check(vector == 1 && result == 0x40011, "a single step over a hypercall: %ld, %lx", vector, result);
    asm volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" : : : "cc", "memory");
    check_result(HYPERCALL(set_debugreg, 6, 1ul << 13), 0, "DR6 with a bit of its own");
    check(HYPERCALL(xen_version, XENVER_version, 0) > 0, "the hypervisor is well");
}
