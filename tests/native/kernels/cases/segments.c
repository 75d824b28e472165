/* Descriptors, segment bases and what a guest may load into a segment register
 * (XSA-193: bases, 298: selectors behind the end of a table). */
#include "../kernel.h"

#define PRESENT (1ul << 47)
#define LEVEL(dpl) ((u64)(dpl) << 45)
#define CODE_OR_DATA (1ul << 44)
#define TYPE(type) ((u64)(type) << 40)
#define LONG_MODE (1ul << 53)
#define SIZE_32 (1ul << 54)
#define PAGES (1ul << 55)
#define LIMIT (0xful << 48 | 0xffff)
#define DATA_SEGMENT (PRESENT | LEVEL(3) | CODE_OR_DATA | TYPE(3) | SIZE_32 | PAGES | LIMIT)

static u64 based(u64 descriptor, u32 base)
{
    return descriptor | (base & 0xfffffful) << 16 | ((u64)base >> 24) << 56;
}

static const u64 BAD[] = {
    /* system segments, of every level */
    PRESENT | LEVEL(0) | TYPE(2) | LIMIT, PRESENT | LEVEL(3) | TYPE(2) | LIMIT,   /* LDT */
    PRESENT | LEVEL(0) | TYPE(9) | LIMIT, PRESENT | LEVEL(3) | TYPE(9) | LIMIT,   /* TSS */
    PRESENT | LEVEL(0) | TYPE(11) | LIMIT, PRESENT | LEVEL(3) | TYPE(11) | LIMIT, /* busy TSS */
    PRESENT | LEVEL(0) | TYPE(12) | 0xe008ul << 16, PRESENT | LEVEL(2) | TYPE(12) | 0xe008ul << 16, /* call gates */
    PRESENT | LEVEL(3) | TYPE(12) | 0xe008ul << 16, PRESENT | LEVEL(3) | TYPE(12) | 0xe033ul << 16 | 1ul << 32,
    PRESENT | LEVEL(3) | TYPE(14) | 0xe008ul << 16, PRESENT | LEVEL(3) | TYPE(15) | 0xe008ul << 16, /* other gates */
    PRESENT | LEVEL(3) | TYPE(5) | 0xe008ul << 16,
};

CASE(descriptors)
{
    u64 *table = new_page();
    u64 frames[15] = {mfn_of(table)};
    check_refused(HYPERCALL(set_gdt, frames, 512), "a GDT that is writable");
    for (unsigned each = 0; each < sizeof BAD / 8; each++) {
        table[7] = BAD[each];
        protect(table, false);
        check(HYPERCALL(set_gdt, frames, 512) < 0, "a GDT with %lx", BAD[each]);
        check(protect(table, true) == 0, "is no GDT");
    }
    table[7] = DATA_SEGMENT;
    table[511] = BAD[0];
    protect(table, false);
    check_refused(HYPERCALL(set_gdt, frames, 8), "a bad descriptor behind the limit");
    protect(table, true);
    table[511] = 0;
    table[8] = based(DATA_SEGMENT, 0x10) & ~LEVEL(3);
    table[9] = PRESENT | LEVEL(0) | CODE_OR_DATA | TYPE(11) | LONG_MODE | PAGES | LIMIT;
    table[12] = PRESENT | LEVEL(3) | TYPE(12) | 0xe033ul << 16; /* a gate to what is the guest's: it is disarmed */
    protect(table, false);
    check_refused(HYPERCALL(set_gdt, frames, 14 * 512 + 1), "a GDT that reaches into the hypervisor's part");
    check_refused(HYPERCALL(set_gdt, frames, 0xffffffff), "a huge GDT");
    frames[1] = 0xfffff;
    check_refused(HYPERCALL(set_gdt, frames, 513), "a GDT whose second frame is not ours");
    check_result(HYPERCALL(set_gdt, frames, 512), 0, "a good GDT");
    check_refused(protect(table, true), "making it writable");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, frames[0], 0), "pinning it as a page table");
    check(ATTEMPT("movw %w0, %%fs", : : "r"(7 << 3 | 3) : "memory") == -1, "a data segment of level 3 can be loaded");
    check(!(table[12] & LEVEL(3)), "the gate is closed: %lx", table[12]);
    struct __attribute__((packed)) {
        u32 offset;
        u16 selector;
    } far = {0, 12 << 3};
    s64 vector = ATTEMPT("lcall *(%0)", : : "r"(&far) : "memory");
    check(vector == 13, "a call through it: %ld, %lx", vector, probe.error);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(9 << 3) : "memory");
    check(vector == -1 || vector == 13, "a code segment of level 0: %ld", vector);
    for (unsigned selector = 13 << 3; selector < 0x10000; selector += 0x1238) {
        vector = ATTEMPT("movw %w0, %%fs", : : "r"((selector & ~7u) | 3) : "memory");
        check(vector == 13 || (selector & ~7u) >= 0xe000, "selector %x: %ld, %lx", selector, vector, probe.error);
    }
    /* The hypervisor's own descriptors cannot be used. */
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(0xe008) : "memory");
    check(vector == 13 && probe.error == 0xe008, "Xen's code: %ld, %lx", vector, probe.error);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(0xe010) : "memory");
    check(vector == 13 && probe.error == 0xe010, "Xen's data: %ld, %lx", vector, probe.error);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(0xe02b) : "memory");
    check(vector == -1, "the flat data segment: %ld", vector);
    for (unsigned each = 0; each < sizeof BAD / 8; each++)
        check(HYPERCALL(update_descriptor, frames[0] << 12 | 7 << 3, BAD[each]) < 0, "update_descriptor %lx", BAD[each]);
    check(table[7] == DATA_SEGMENT || (table[7] & ~TYPE(1)) == (DATA_SEGMENT & ~TYPE(1)), "the descriptor is as it was");
    check_result(HYPERCALL(update_descriptor, frames[0] << 12 | 7 << 3, based(DATA_SEGMENT, 0x2000)), 0, "a good one");
    check((table[7] & 0xffffff0000) >> 16 == 0x2000, "is there");
    check_refused(HYPERCALL(update_descriptor, (frames[0] << 12 | 7 << 3) + 4, 0), "an unaligned one");
    u64 *other = new_page();
    check_result(HYPERCALL(update_descriptor, mfn_of(other) << 12 | 8, DATA_SEGMENT), 0, "one in a page that is writable");
    check(other[1] == DATA_SEGMENT, "is there");
    check_result(HYPERCALL(set_gdt, frames, 0), 0, "no GDT");
    check_result(protect(table, true), 0, "it can be written again");
}

CASE(local_descriptors)
{
    u64 *table = new_page();
    table[2] = DATA_SEGMENT;
    table[3] = BAD[0];
    check_refused(mmuext(MMUEXT_SET_LDT, (u64)table + 8, 512), "an LDT that is not page aligned");
    check_refused(mmuext(MMUEXT_SET_LDT, (u64)table, 8193), "an LDT of 8193 entries");
    check_refused(mmuext(MMUEXT_SET_LDT, 0x0000800000000000, 512), "an LDT at a non-canonical address");
    s64 result = mmuext(MMUEXT_SET_LDT, HYPERVISOR_VIRT_START, 512);
    check(result <= 0, "an LDT in the hypervisor's part: %ld", result);
    s64 vector = ATTEMPT("movw %w0, %%fs", : : "r"(2 << 3 | 7) : "memory");
    check(vector == 13 || vector == 14, "a selector of it: %ld", vector);
    result = mmuext(MMUEXT_SET_LDT, (u64)table, 4);
    check(result <= 0, "an LDT that is writable: %ld", result);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(2 << 3 | 7) : "memory");
    check(vector == 13 || vector == 14, "a selector of it: %ld", vector);
    mmuext(MMUEXT_SET_LDT, 0, 0);
    protect(table, false);
    result = mmuext(MMUEXT_SET_LDT, (u64)table, 4);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(2 << 3 | 7) : "memory");
    check(vector == 13 || vector == 14, "a selector of a table with a bad descriptor: %ld, %ld", result, vector);
    mmuext(MMUEXT_SET_LDT, 0, 0);
    check_result(protect(table, true), 0, "it can be written again");
    table[3] = 0;
    protect(table, false);
    check_result(mmuext(MMUEXT_SET_LDT, (u64)table, 4), 0, "a good LDT");
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(2 << 3 | 7) : "memory");
    check(vector == -1, "a selector of it: %ld", vector);
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(5 << 3 | 7) : "memory");
    check(vector == 13, "a selector behind its end: %ld", vector);
    check_refused(protect(table, true), "making it writable");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), "pinning it as a page table");
    ATTEMPT("movw %w0, %%fs", : : "r"(0) : "memory");
    check_result(mmuext(MMUEXT_SET_LDT, 0, 0), 0, "no LDT");
    vector = ATTEMPT("movw %w0, %%fs", : : "r"(2 << 3 | 7) : "memory");
    check(vector == 13, "a selector of none: %ld", vector);
    check_result(protect(table, true), 0, "it can be written again");
}

CASE(bases)
{
    static u64 words[2] = {0x1111, 0x2222};
    u64 value = 0;
    check_result(HYPERCALL(set_segment_base, SEGBASE_FS, &words[1]), 0, "a base for FS");
    s64 vector = ATTEMPT("movq %%fs:0, %0", : "+r"(value) : : "memory");
    check(vector == -1 && value == 0x2222, "is used: %lx", value);
    check_result(HYPERCALL(set_segment_base, SEGBASE_GS_KERNEL, &words[0]), 0, "a base for GS");
    vector = ATTEMPT("movq %%gs:8, %0", : "+r"(value) : : "memory");
    check(vector == -1 && value == 0x2222, "is used: %lx", value);
    check_result(HYPERCALL(set_segment_base, SEGBASE_GS_USER, 0x1000), 0, "one for GS of user mode");
    vector = ATTEMPT("movq %%gs:0, %0", : "+r"(value) : : "memory");
    check(vector == -1 && value == 0x1111, "leaves the kernel's: %lx", value);
    for (unsigned which = SEGBASE_FS; which <= SEGBASE_GS_KERNEL; which++) {
        check_refused(HYPERCALL(set_segment_base, which, 0x0000800000000000), "a base that is not canonical");
        check_refused(HYPERCALL(set_segment_base, which, 0x8000000000000000), "a base that is not canonical");
        check_refused(HYPERCALL(set_segment_base, which, 0xffff7fffffffffff), "a base that is not canonical");
    }
    check_refused(HYPERCALL(set_segment_base, 4, 0), "a fourth segment");
    check_refused(HYPERCALL(set_segment_base, 0xffffffff, 0), "a segment without name");
    vector = ATTEMPT("movq %%fs:0, %0", : "+r"(value) : : "memory");
    check(vector == -1 && value == 0x2222, "FS is as it was: %lx", value);
    for (unsigned register_number = 0xc0000100; register_number <= 0xc0000102; register_number++) {
        vector = ATTEMPT("wrmsr", : : "c"(register_number), "a"(0), "d"(0x00008000) : "memory");
        check(vector == 13, "MSR %x with an address that is not canonical: %ld", register_number, vector);
    }
    u32 low = 0, high = 0;
    vector = ATTEMPT("rdmsr", : "+a"(low), "+d"(high) : "c"(0xc0000100));
    check(vector == -1 && ((u64)high << 32 | low) == (u64)&words[1], "the MSR of FS: %ld, %x %x", vector, high, low);
    vector = ATTEMPT("wrmsr", : : "c"(0xc0000100), "a"((u32)(u64)&words[0]), "d"((u32)((u64)&words[0] >> 32)) : "memory");
    check(vector == -1, "writing it: %ld", vector);
    vector = ATTEMPT("movq %%fs:0, %0", : "+r"(value) : : "memory");
    check(vector == -1 && value == 0x1111, "FS follows: %lx", value);
}
