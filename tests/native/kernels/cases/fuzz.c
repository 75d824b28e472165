/* Requests without sense, drawn by a generator whose seed is argument 0; argument 1 says how many. Whatever comes of
 * them, it is this domain alone that it comes to: it may crash. Afterwards the page tables are audited from outside. */
#include "../kernel.h"

extern u8 second_stack[], second_stack_top[];

static u64 states[2]; /* by vCPU */

static u64 draw(void)
{
    u64 here, *state = &states[(u64)&here >= (u64)second_stack && (u64)&here < (u64)second_stack_top];
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static u64 below(u64 limit)
{
    return draw() % limit;
}

#define PAGES 24
static u64 some[PAGES];
static u8 *pages[PAGES];

static void begin(void)
{
    states[0] = argument(0) * 0x9e3779b97f4a7c15 + 1;
    states[1] = argument(0) * 0xc2b2ae3d27d4eb4f + 2;
    for (unsigned each = 0; each < PAGES; each++) {
        pages[each] = new_page();
        some[each] = mfn_of(pages[each]);
    }
}

static u64 frame(void)
{
    switch (below(24)) {
    case 0: {
        /* none of the kernel's own, which it would only harm itself with */
        u64 drawn = below(0x110000);
        return drawn < 0x10000 ? drawn : drawn + start_info->nr_pages;
    }
    case 1:
        return start_info->shared_info >> 12;
    case 2:
        return 0x1000 + below(16);
    case 3:
        return draw();
    default:
        return some[below(PAGES)];
    }
}

static u64 flags(void)
{
    static const u64 common[] = {DATA, READ_ONLY, TABLE, 0, PTE_P, PTE_P | PTE_W, DATA | PTE_NX, DATA | PTE_PSE};
    return below(30) ? common[below(below(3) ? 3 : 8)] : draw() & 0xfff0000000000fff;
}

static u64 slot(void)
{
    static const u64 common[] = {0, 1, 2, 3, 255, 256, 271, 272, 511};
    return common[below(9)];
}

static u64 word(void)
{
    switch (below(8)) {
    case 0:
        return draw();
    case 1:
        return (u64)FRESH + below(4) * PAGE;
    case 2:
        return HYPERVISOR_VIRT_START + below(1ul << 43);
    case 3:
        return (u64)pages[below(PAGES)] + below(PAGE);
    case 4:
        return frame() << 12 | below(4096);
    case 5:
        return ~0ul << below(64);
    default:
        return below(64);
    }
}

static void update_tables(void)
{
    u64 done = 0, refused = 0;
    for (u64 count = argument(1); count; count--) {
        s64 result = 0;
        unsigned index = (unsigned)below(PAGES);
        u64 chosen = some[index];
        switch (below(12)) {
        case 0:
            result = update_va(pages[index], pte(chosen, below(3) ? READ_ONLY : DATA));
            break;
        case 1:
        case 2:
            result = mmuext((unsigned)below(4), frame(), 0);
            break;
        case 3:
            result = mmuext(MMUEXT_UNPIN_TABLE, chosen, 0);
            break;
        case 4:
            result = below(3) ? (s64)below(22) : MMUEXT_NEW_USER_BASEPTR;
            if (result == MMUEXT_NEW_BASEPTR)
                continue; /* that would be its end */
            result = mmuext((unsigned)result, frame(), frame());
            break;
        case 5:
            result = update_va(FRESH + below(4) * PAGE, pte(frame(), flags()));
            break;
        case 6: {
            u64 at = entry_address(FRESH, 2 + (unsigned)below(3));
            result = at ? mmu_update(at, pte(frame(), flags())) : 0;
            break;
        }
        case 7: {
            u64 frames[1] = {chosen};
            result = HYPERCALL(set_gdt, frames, below(2) * 512);
            break;
        }
        default:
            result = mmu_update(frame() << 12 | slot() << 3 | (below(4) ? 0 : 2 + below(2)), pte(frame(), flags()));
        }
        done += result >= 0;
        refused += result < 0;
    }
    check(done && refused, "%lu done, %lu refused", done, refused);
}

static void take_pages(void)
{
    begin();
    for (unsigned each = 0; each < PAGES; each++)
        if (each % 8)
            protect(pages[each], false);
}

CASE(fuzz_tables)
{
    take_pages();
    update_tables();
}

static volatile bool finished;

static void update_too(void)
{
    update_tables();
    finished = true;
}

CASE(fuzz_both)
{
    /* Two vCPUs, each with the same pages: what one has begun, the other one finds. */
    take_pages();
    check_result(start_second(update_too), 0, "starting vCPU 1");
    update_tables();
    while (!finished)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
}

CASE(fuzz_hypercalls)
{
    begin();
    u64 done = 0, refused = 0;
    for (u64 count = argument(1); count; count--) {
        u64 number = below(60);
        u64 first = below(4) ? below(40) : word();
        u32 operation = (u32)first;
        switch (number) {
        case __HYPERVISOR_iret:
        case __HYPERVISOR_console_io:
        case __HYPERVISOR_set_trap_table:
        case __HYPERVISOR_set_callbacks:
        case __HYPERVISOR_sched_op_compat:
            continue; /* these end it, or its report */
        case __HYPERVISOR_sched_op:
            if (operation != SCHEDOP_yield)
                continue;
            break;
        case __HYPERVISOR_vcpu_op:
            if (operation == VCPUOP_down)
                continue;
        }
        s64 result = hypercall(number, first, word(), word(), below(2) ? DOMID_SELF : word(), word());
        events_off();
        done += result >= 0;
        refused += result < 0;
    }
    check(done && refused, "%lu done, %lu refused", done, refused);
}

/* A number that may mean something as a field: a port, a reference, a domain, a frame, an address. */
static u64 field(void)
{
    switch (below(10)) {
    case 0:
        return below(12);
    case 1:
        return DOMID_SELF;
    case 2:
        return below(3) | 1ul << 32 | (u64)DOMID_SELF << 16;
    case 3:
        return frame();
    case 4:
        return pfn_of(pages[below(PAGES)]);
    case 5:
        return (u64)pages[below(PAGES)] + below(64) * 8;
    case 6:
        return (u64)FRESH + below(8) * PAGE;
    case 7:
        return below(2) ? system_time() + below(3000000) : word();
    case 8:
        return 8 + below(16);
    default:
        return below(0x200);
    }
}

static u64 chosen_operation(void)
{
    static const u8 common[] = {
        __HYPERVISOR_memory_op,        __HYPERVISOR_event_channel_op, __HYPERVISOR_grant_table_op,
        __HYPERVISOR_vcpu_op,          __HYPERVISOR_physdev_op,       __HYPERVISOR_multicall,
        __HYPERVISOR_update_descriptor, __HYPERVISOR_mmuext_op,       __HYPERVISOR_mmu_update,
        __HYPERVISOR_set_gdt,          __HYPERVISOR_update_va_mapping, __HYPERVISOR_xen_version,
    };
    return common[below(sizeof common)];
}

CASE(fuzz_operations)
{
    /* Arguments that look right: structs whose fields are drawn, among them addresses of other such structs. */
    begin();
    events_off();
    make_tables(FRESH);
    static u64 frames[1];
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(setup.frame_list, frames);
    HYPERCALL(grant_table_op, GNTTABOP_setup_table, &setup, 1);
    u64 done = 0, refused = 0;
    for (u64 count = argument(1); count; count--) {
        u64 number = chosen_operation(), operation = below(24), *first = (u64 *)pages[0];
        for (unsigned each = 0; each < PAGES; each++)
            if (each == 0 || !below(8))
                for (unsigned at = 0; at < 64; at++)
                    ATTEMPT("movq %0, (%1)", : : "r"(field()), "r"(pages[each] + at * 8) : "memory");
        u64 arguments[5] = {operation, (u64)first, 1 + below(3), below(2) ? DOMID_SELF : field(), field()};
        switch (number) {
        case __HYPERVISOR_vcpu_op:
            if (operation == VCPUOP_down || operation == VCPUOP_initialise || operation == VCPUOP_register_vcpu_info)
                continue; /* its events would be elsewhere, and come for ever */
            arguments[1] = below(2);
            arguments[2] = (u64)first;
            break;
        case __HYPERVISOR_multicall:
            for (unsigned each = 0; each < 4; each++) {
                multicall_entry_t *entry = (multicall_entry_t *)first + each;
                u64 chosen = chosen_operation();
                if (chosen == __HYPERVISOR_vcpu_op)
                    chosen = __HYPERVISOR_vm_assist;
                ATTEMPT("movq %0, (%1)", : : "r"(chosen), "r"(&entry->op) : "memory");
                ATTEMPT("movq %0, (%1)", : : "r"(below(24)), "r"(&entry->args[0]) : "memory");
            }
            arguments[0] = (u64)first;
            arguments[1] = 1 + below(4);
            break;
        case __HYPERVISOR_mmuext_op:
        case __HYPERVISOR_mmu_update:
            ATTEMPT("movl %0, (%1)", : : "r"((u32)below(22)), "r"(first) : "memory");
            if (number == __HYPERVISOR_mmuext_op && *first == MMUEXT_NEW_BASEPTR)
                continue;
            arguments[0] = (u64)first;
            arguments[1] = 1;
            arguments[2] = below(2) ? 0 : (u64)pages[1];
            break;
        case __HYPERVISOR_update_va_mapping:
            arguments[0] = (u64)FRESH + below(8) * PAGE;
            arguments[1] = pte(frame(), flags());
            arguments[2] = below(8);
            break;
        case __HYPERVISOR_set_gdt:
            arguments[0] = (u64)first;
            arguments[1] = below(1024);
            break;
        case __HYPERVISOR_update_descriptor:
            arguments[0] = frame() << 12 | below(512) << 3;
            arguments[1] = draw();
            break;
        }
        s64 result = hypercall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]);
        events_off();
        done += result >= 0;
        refused += result < 0;
    }
    check(done && refused, "%lu done, %lu refused", done, refused);
}
