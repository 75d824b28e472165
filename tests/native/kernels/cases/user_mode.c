/* What the guest's user mode can do: nothing but enter the guest's kernel
 * (XSA-7, 8, 44, 136, 202, 339). */
#include "../kernel.h"

static void run(const char *what, u64 cs, u64 offset)
{
    user_exit.number = ~0ul;
    run_user((u64)USER_CODE + offset, cs, USER_FLAGS);
    check((user_exit.frame.cs & 3) == 3, "%s: left by %lx, error %lx, rip +%lx, rflags %lx, rax %lx", what, user_exit.number,
          user_exit.error, user_exit.frame.rip - (u64)USER_CODE, user_exit.frame.rflags, user_exit.frame.rax);
}

static void expect(const char *what, const u8 *code, size_t size, u64 number, u64 error)
{
    memcpy(user_data(), code, size);
    user_exit.number = ~0ul;
    run_user((u64)USER_DATA, FLAT_USER_CS, USER_FLAGS);
    check(user_exit.number == number && user_exit.error == error && (user_exit.frame.cs & 3) == 3,
          "%s: left by %lx, error %lx", what, user_exit.number, user_exit.error);
}

#define EXPECT(what, number, error, ...)                                                                           \
    do {                                                                                                           \
        static const u8 code[] = {__VA_ARGS__, 0xcc};                                                              \
        expect(what, code, sizeof code, number, error);                                                            \
    } while (0)

CASE(user_mode)
{
    static const u8 code[] = {
        /* +0: mov $18, %eax (console_io); syscall */ 0xb8, 18, 0, 0, 0, 0x0f, 0x05, 0xcc,
        /* +8: int $0x80 */ 0xcd, 0x80, 0xcc, 0xcc,
    };
    make_user(code, sizeof code);
    run("a hypercall from user mode", FLAT_USER_CS, 0);
    check(user_exit.number == ENTRY_SYSCALL && user_exit.frame.rax == 18, "is a system call of the guest's");
    check(user_exit.frame.rip == (u64)USER_CODE + 7, "to go on behind it");
    check(user_exit.frame.rflags & FLAG_IF, "with interrupts on");
    run("int 0x80", FLAT_USER_CS, 8);
    check(user_exit.number == 0x80 && user_exit.frame.rip == (u64)USER_CODE + 10, "enters the handler of level 3");
    EXPECT("int3", 3, 0, 0xcc);
    EXPECT("int 0x81, which has no handler", 13, 0x81 << 3 | 2, 0xcd, 0x81);
    EXPECT("int 14, whose handler has level 0", 13, 14 << 3 | 2, 0xcd, 14);
    EXPECT("int 0x82 of the hypervisor", 13, 0x82 << 3 | 2, 0xcd, 0x82);
    EXPECT("int 2", 13, 2 << 3 | 2, 0xcd, 2);
    EXPECT("cli", 13, 0, 0xfa);
    EXPECT("sti", 13, 0, 0xfb);
    EXPECT("hlt", 13, 0, 0xf4);
    EXPECT("rdmsr", 13, 0, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32);
    EXPECT("wrmsr", 13, 0, 0xb9, 0x82, 0, 0, 0xc0, 0x0f, 0x30);
    EXPECT("mov from cr3", 13, 0, 0x0f, 0x20, 0xd8);
    EXPECT("mov to cr3", 13, 0, 0x0f, 0x22, 0xd8);
    EXPECT("mov from cr0", 13, 0, 0x0f, 0x20, 0xc0);
    EXPECT("mov to cr4", 13, 0, 0x0f, 0x22, 0xe0);
    EXPECT("mov from dr7", 13, 0, 0x0f, 0x21, 0xf8);
    EXPECT("clts", 13, 0, 0x0f, 0x06);
    EXPECT("lgdt", 13, 0, 0x0f, 0x01, 0x14, 0x24);
    EXPECT("lidt", 13, 0, 0x0f, 0x01, 0x1c, 0x24);
    EXPECT("lldt", 13, 0, 0x0f, 0x00, 0xd0);
    EXPECT("ltr", 13, 0, 0x0f, 0x00, 0xd8);
    EXPECT("invlpg", 13, 0, 0x0f, 0x01, 0x3c, 0x24);
    EXPECT("wbinvd", 13, 0, 0x0f, 0x09);
    EXPECT("in", 13, 0, 0xe4, 0x80);
    EXPECT("out", 13, 0, 0xe6, 0x80);
    EXPECT("sysret", 13, 0, 0x48, 0x0f, 0x07);
    EXPECT("swapgs", 13, 0, 0x0f, 0x01, 0xf8);
    EXPECT("ud2", 6, 0, 0x0f, 0x0b);
    EXPECT("xsetbv", 13, 0, 0x31, 0xc9, 0x0f, 0x01, 0xd1);
    EXPECT("a far return to Xen's code segment", 13, 0xe008, 0x68, 0x08, 0xe0, 0, 0, 0x6a, 0, 0x48, 0x87, 0x04, 0x24,
           0x48, 0xcb);
    /* 48 a1 imm64: mov moffs, %rax */
    EXPECT("reading the kernel", 14, 4, 0x48, 0xa1, 0, 0, 0x10, 0x80, 0xff, 0xff, 0xff, 0xff);
    EXPECT("writing the kernel", 14, 6, 0x48, 0xa3, 0, 0, 0x10, 0x80, 0xff, 0xff, 0xff, 0xff);
    EXPECT("writing its own code", 14, 7, 0x48, 0xa3, 0, 0, 0x40, 0, 0, 0, 0, 0);
    EXPECT("writing the hypervisor's part", 14, 6, 0x48, 0xa3, 0, 0, 0, 0, 0x40, 0x80, 0xff, 0xff);
    EXPECT("reading a non-canonical address", 13, 0, 0x48, 0xa1, 0, 0, 0, 0, 0, 0x80, 0, 0);
    /* Xen means to emulate what is there, and meets a page fault. */
    EXPECT("a jump to a non-canonical address", 14, 4, 0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0xff, 0xe0);
    EXPECT("a jump to the kernel", 14, 0x14, 0x48, 0xc7, 0xc0, 0, 0, 0x10, 0x80, 0xff, 0xe0);
    EXPECT("sysenter", ENTRY_SYSENTER, 0, 0x0f, 0x34);
    /* pushf; orl $0x4000, (%rsp); popf; syscall: with NT, the kernel is entered without */
    EXPECT("a system call with NT", ENTRY_SYSCALL, 0, 0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0x0f, 0x05);
    u64 flags;
    asm volatile("pushfq\n\tpopq %0" : "=r"(flags));
    check(!(flags & 0x4000) && flags & FLAG_IF, "which is not kept: %lx", flags);
    /* pushf; orl $0x3000, (%rsp); popf; cli: IOPL cannot be raised */
    EXPECT("cli with IOPL 3", 13, 0, 0x9c, 0x81, 0x0c, 0x24, 0, 0x30, 0, 0, 0x9d, 0xfa);
}

CASE(compat_mode)
{
    /* 32-bit code in user mode. int $0x80 with the stack and registers of 32 bits. */
    static const u8 code[] = {
        /* +0: mov $0x12345678, %eax; push %eax; int $0x80 */ 0xb8, 0x78, 0x56, 0x34, 0x12, 0x50, 0xcd, 0x80,
        /* +8: inc %eax (a prefix in 64-bit mode); dec %ecx; int $0x80 */ 0x40, 0x49, 0xcd, 0x80,
        /* +12: syscall */ 0x0f, 0x05, 0xcc, 0xcc,
        /* +16: ud2 */ 0x0f, 0x0b, 0xcc, 0xcc,
        /* +20: mov 0x600000, %eax; incl 0x600000; int $0x80 */ 0xa1, 0, 0, 0x60, 0, 0xff, 0x05, 0, 0, 0x60, 0, 0xcd, 0x80,
        0xcc, 0xcc, 0xcc,
        /* +36: ljmp to 64-bit code: int $0x80 there */ 0xea, 0, 0, 0x60, 0, 0x33, 0xe0,
    };
    make_user(code, sizeof code);
    run("32-bit code", FLAT_RING3_CS32, 0);
    check(user_exit.number == 0x80 && (u32)user_exit.frame.rax == 0x12345678, "int 0x80 with eax");
    check(user_exit.frame.cs == FLAT_RING3_CS32, "cs is %lx", user_exit.frame.cs);
    check(user_exit.frame.rsp == (u64)USER_STACK + PAGE - 4, "4 octets are pushed: rsp %lx", user_exit.frame.rsp);
    run("instructions of 32 bits", FLAT_RING3_CS32, 8);
    check(user_exit.number == 0x80 && (u32)user_exit.frame.rax == 1 && (u32)user_exit.frame.rcx == 0xffffffff,
          "eax %lx, ecx %lx", user_exit.frame.rax, user_exit.frame.rcx);
    run("syscall", FLAT_RING3_CS32, 12);
    check(user_exit.number == ENTRY_SYSCALL32 || user_exit.number == 6, "of 32 bits enters its callback, or is undefined");
    run("ud2", FLAT_RING3_CS32, 16);
    check(user_exit.number == 6 && user_exit.frame.rip == (u64)USER_CODE + 16, "is undefined");
    *(u32 *)user_data() = 4711;
    run("memory", FLAT_RING3_CS32, 20);
    check(user_exit.number == 0x80 && (u32)user_exit.frame.rax == 4711 && *(u32 *)user_data() == 4712, "is read and written");
    memcpy(user_data(), (const u8[]){0x48, 0xff, 0xc0, 0xcd, 0x80}, 5);
    run("a far jump to 64-bit code", FLAT_RING3_CS32, 36);
    check(user_exit.number == 0x80 && user_exit.frame.cs == FLAT_USER_CS64 && user_exit.frame.rax == 1, "gets there: cs %lx",
          user_exit.frame.cs);
}

CASE(no_callbacks)
{
    /* A system call where the kernel has registered no callback: one fault for the kernel, no more. */
    static const u8 code[] = {
        /* +0: syscall */ 0x0f, 0x05, 0xcc, 0xcc, /* +4: sysenter */ 0x0f, 0x34, 0xcc, 0xcc,
        /* +8: pushf; orl $0x4000, (%rsp); popf; sysenter */ 0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0x0f, 0x34,
    };
    make_user(code, sizeof code);
    set_callback(CALLBACKTYPE_sysenter, 0, 0);
    run("sysenter", FLAT_USER_CS, 4);
    check(user_exit.number == 13, "without callback is a fault");
    run("sysenter with NT", FLAT_USER_CS, 8);
    check(user_exit.number == 13, "is a fault, too");
    u64 value;
    check(try_read((void *)8, &value) == 14, "a fault in the kernel is one of the kernel's");
    u64 flags;
    asm volatile("pushfq\n\tpopq %0" : "=r"(flags));
    check(!(flags & 0x4000), "NT is not kept");
}

CASE(iret)
{
    static const u8 code[] = {0xcd, 0x80, 0xcc};
    make_user(code, sizeof code);
    static const struct {
        const char *what;
        u64 rip, cs;
    } bad[] = {
        {"a non-canonical address", 0x0000800000000000, FLAT_USER_CS},
        {"another", 0xdeadbeef00000000, FLAT_USER_CS},
        {"the hypervisor's part", HYPERVISOR_VIRT_START + 0x1000, FLAT_USER_CS},
        {"the kernel", VIRT_BASE + 0x100000, FLAT_USER_CS},
        {"Xen's code segment", (u64)USER_CODE, 0xe008},
        {"a data segment", (u64)USER_CODE, 0xe02b},
        {"no segment", (u64)USER_CODE, 0},
        {"a segment behind the GDT", (u64)USER_CODE, 0x1233},
        {"a segment of no LDT", (u64)USER_CODE, 0x17},
    };
    for (unsigned each = 0; each < sizeof bad / sizeof *bad; each++) {
        user_exit.number = ~0ul;
        run_user(bad[each].rip, bad[each].cs, USER_FLAGS);
        check(user_exit.number == 13 || user_exit.number == 14 || user_exit.number == 11 ||
                  user_exit.number == ENTRY_FAILSAFE,
              "iret to %s: %lx, error %lx", bad[each].what, user_exit.number, user_exit.error);
    }
    static const u64 stacks[] = {0x0000800000000000, 0xdeadbeef00000000, HYPERVISOR_VIRT_START, 0, 7};
    for (unsigned each = 0; each < sizeof stacks / 8; each++) {
        struct iret_context frame = {.rip = (u64)USER_CODE, .cs = FLAT_USER_CS, .rflags = USER_FLAGS, .ss = FLAT_USER_SS,
                                     .rsp = stacks[each]};
        user_exit.number = ~0ul;
        events_off();
        enter_user(&frame);
        check(user_exit.number == 0x80 || user_exit.number == 13 || user_exit.number == ENTRY_FAILSAFE,
              "a user stack at %lx: %lx", stacks[each], user_exit.number);
    }
    static const u64 selectors[] = {0xe010, 0xe033, 0x1233, 0x17, 0xe023};
    for (unsigned each = 0; each < sizeof selectors / 8; each++) {
        struct iret_context frame = {.rip = (u64)USER_CODE, .cs = FLAT_USER_CS, .rflags = USER_FLAGS, .ss = selectors[each],
                                     .rsp = (u64)USER_STACK + PAGE};
        user_exit.number = ~0ul;
        events_off();
        enter_user(&frame);
        check(user_exit.number == 12 || user_exit.number == 13 || user_exit.number == ENTRY_FAILSAFE,
              "a stack segment %lx: %lx", selectors[each], user_exit.number);
    }
    /* Flags that are not the guest's: VM, IOPL, NT; TF steps one instruction. */
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS | 1ul << 17 | 3ul << 12 | 1ul << 14 | 0xffffffff00000000ul);
    check(user_exit.number == 0x80 && !(user_exit.frame.rflags & (1ul << 17 | 0xffffffff00000000ul)),
          "flags that user mode may not have: %lx, %lx", user_exit.number, user_exit.frame.rflags);
    run_user((u64)USER_CODE, FLAT_USER_CS, 2);
    check(user_exit.number == 0x80, "user mode with its events masked: %lx, rflags %lx", user_exit.number,
          user_exit.frame.rflags);
    static const u8 steps[] = {0x90, 0x90, 0xcd, 0x80};
    memcpy(user_data(), steps, sizeof steps);
    run_user((u64)USER_DATA, FLAT_USER_CS, USER_FLAGS | 0x100);
    check(user_exit.number == 1 && user_exit.frame.rip == (u64)USER_DATA + 1, "a single step: %lx, +%lx", user_exit.number,
          user_exit.frame.rip - (u64)USER_DATA);
    u64 flags;
    asm volatile("pushfq\n\tpopq %0" : "=r"(flags));
    check(!(flags & (0x100 | 1ul << 14 | 1ul << 17)), "none of it is kept: %lx", flags);
}
