/* A user mode: a root of its own, which shares nothing with the kernel's but the frames of its three pages. */
#include "kernel.h"

u64 user_root;
static void *data_page;

static void map_user(u64 *tables, u8 *address, void *page, u64 flags)
{
    /* One table of each level suffices: code, data and stack lie in the first 2 * 512 pages, in two L1s. */
    u64 level_1 = tables[(u64)address >> 21];
    u64 *level_2 = virtual_of(tables[0]);
    if (!level_2[(u64)address >> 21])
        mmu_update(tables[0] << 12 | ((u64)address >> 21) << 3, pte(level_1, TABLE));
    s64 result = mmu_update(level_1 << 12 | ((u64)address >> 12 & 511) << 3, pte(mfn_of(page), flags));
    check_result(result, 0, "mapping a page for user mode");
}

void make_user(const void *code, size_t size)
{
    u64 level_3 = new_table();
    u64 tables[4] = {new_table(), 0, new_table(), new_table()};
    void *code_page = new_page();
    memcpy(code_page, code, size);
    data_page = new_page();
    user_root = new_table();
    check_result(mmuext(MMUEXT_PIN_L4_TABLE, user_root, 0), 0, "pinning a root for user mode");
    mmu_update(user_root << 12, pte(level_3, TABLE));
    mmu_update(level_3 << 12, pte(tables[0], TABLE));
    map_user(tables, USER_CODE, code_page, READ_ONLY);
    map_user(tables, USER_DATA, data_page, DATA);
    map_user(tables, USER_STACK, new_page(), DATA);
    check_result(mmuext(MMUEXT_NEW_USER_BASEPTR, user_root, 0), 0, "loading it");
}

void *user_data(void)
{
    return data_page;
}

void run_user(u64 rip, u64 cs, u64 rflags)
{
    struct iret_context frame = {.rip = rip, .cs = cs | 3, .rflags = rflags, .ss = FLAT_USER_SS | 3};
    frame.rsp = (u64)USER_STACK + PAGE;
    events_off();
    enter_user(&frame);
    events_off();
}
