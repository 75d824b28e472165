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
