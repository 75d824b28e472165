/* Page tables as a paravirtualized guest has them: machine frames in the entries, tables read-only, every change a
 * hypercall. Pages come from a pool in the kernel's image, so that the initial mapping has them all. */
#include "kernel.h"

#define POOL_PAGES 256
static u8 pool[POOL_PAGES][PAGE] __attribute__((aligned(4096)));
static unsigned taken;

s64 mmu_update(u64 pointer, u64 value)
{
    mmu_update_t update = {.ptr = pointer, .val = value};
    return HYPERCALL(mmu_update, &update, 1, 0, DOMID_SELF);
}

s64 mmuext(unsigned command, u64 mfn, u64 second)
{
    struct mmuext_op op = {.cmd = command, .arg1.mfn = mfn};
    op.arg2.src_mfn = second;
    return HYPERCALL(mmuext_op, &op, 1, 0, DOMID_SELF);
}

s64 update_va(void *address, u64 entry)
{
    return HYPERCALL(update_va_mapping, address, entry, UVMF_INVLPG);
}

void forget(const void *address)
{
    mmuext(MMUEXT_INVLPG_LOCAL, (u64)address, 0);
}

void *new_page(void)
{
    if (taken == POOL_PAGES) {
        print("out of pages");
        shut_down(SHUTDOWN_crash);
    }
    return pool[taken++];
}

u64 pfn_of(const void *address)
{
    return ((u64)address - VIRT_BASE) >> 12;
}

u64 mfn_of(const void *address)
{
    return ((const u64 *)start_info->mfn_list)[pfn_of(address)];
}

void *virtual_of(u64 mfn)
{
    return (void *)(VIRT_BASE + (machine_to_phys_mapping[mfn] << 12));
}

u64 root_mfn(void)
{
    return mfn_of((void *)start_info->pt_base);
}

u64 entry_address(const void *address, unsigned level)
{
    u64 table = root_mfn();
    for (unsigned at = 4;; at--) {
        u64 index = (u64)address >> (12 + 9 * (at - 1)) & 511;
        if (at == level)
            return table << 12 | index << 3;
        u64 entry = ((u64 *)virtual_of(table))[index];
        if (!(entry & PTE_P))
            return 0;
        table = (entry & MFN_BITS) >> 12;
    }
}

u64 entry_value(const void *address, unsigned level)
{
    u64 at = entry_address(address, level);
    return at ? ((u64 *)virtual_of(at >> 12))[(at & 4095) >> 3] : 0;
}

s64 protect(void *page, bool writable)
{
    return update_va(page, pte(mfn_of(page), writable ? DATA : READ_ONLY));
}

u64 new_table(void)
{
    void *page = new_page();
    if (protect(page, false)) {
        print("a page cannot be made read-only");
        shut_down(SHUTDOWN_crash);
    }
    return mfn_of(page);
}

void make_tables(void *address)
{
    for (unsigned level = 4; level > 1; level--) {
        u64 at = entry_address(address, level);
        if (entry_value(address, level) & PTE_P)
            continue;
        s64 result = mmu_update(at, pte(new_table(), TABLE));
        if (result) {
            print("no table of level %u for %lx: %ld", level - 1, (u64)address, result);
            shut_down(SHUTDOWN_crash);
        }
    }
}

s64 map_frame(void *address, u64 mfn, u64 flags)
{
    make_tables(address);
    return update_va(address, pte(mfn, flags));
}
