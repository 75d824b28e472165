/* A page that another domain (argument 0) grants by references (argument 1: writable, argument 2: read-only), in our own
 * page tables (XSA-227 and 234). */
#include "../kernel.h"

static struct gnttab_map_grant_ref map;
static struct gnttab_unmap_grant_ref unmap;

static s64 map_grant(u64 at, u32 flags, u32 reference)
{
    map = (struct gnttab_map_grant_ref){.host_addr = at, .flags = flags, .ref = reference, .dom = (domid_t)argument(0)};
    s64 result = HYPERCALL(grant_table_op, GNTTABOP_map_grant_ref, &map, 1);
    return result ? result : map.status;
}

static s64 unmap_grant(u64 at, u32 handle)
{
    unmap = (struct gnttab_unmap_grant_ref){.host_addr = at, .handle = handle};
    s64 result = HYPERCALL(grant_table_op, GNTTABOP_unmap_grant_ref, &unmap, 1);
    return result ? result : unmap.status;
}

CASE(grant_maps)
{
    u32 writable = (u32)argument(1), read_only = (u32)argument(2);
    u64 value;
    make_tables(FRESH);
    u64 at = entry_address(FRESH, 1);
    check_result(map_grant((u64)FRESH, GNTMAP_host_map, writable), GNTST_okay, "mapping a granted page");
    u32 handle = map.handle;
    u64 mfn = map.dev_bus_addr >> 12;
    check(mfn == (entry_value(FRESH, 1) & MFN_BITS) >> 12, "frame %lx is in the entry", mfn);
    check(try_read(FRESH, &value) == -1 && value == 0x6772616e74, "it says %lx", value);
    check(try_write(FRESH + 8, 0x616e73776572) == -1, "and is answered");
    check_refused(map_frame(FRESH + PAGE, mfn, DATA), "mapping its frame by update_va_mapping");
    check_refused(map_frame(FRESH + PAGE, mfn, READ_ONLY), "the same read-only");
    for (unsigned command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_NEW_BASEPTR; command++)
        check_refused(mmuext(command, mfn, 0), "a page table of it");
    check_refused(mmu_update(entry_address(FRESH, 2) + 8, pte(mfn, TABLE)), "linking it as a table");
    u64 frames[1] = {mfn};
    check_refused(HYPERCALL(set_gdt, frames, 512), "a GDT of it");
    check_refused(mmu_update(mfn << 12 | MMU_MACHPHYS_UPDATE, 1), "its machphys entry");
    check_refused(mmuext(MMUEXT_CLEAR_PAGE, mfn, 0), "clearing it");
    u64 extent = mfn;
    struct xen_memory_reservation give = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(give.extent_start, &extent);
    check(HYPERCALL(memory_op, XENMEM_decrease_reservation, &give) <= 0, "giving it back");
    check(unmap_grant((u64)FRESH + PAGE, handle) != GNTST_okay, "unmapping it elsewhere: %d", unmap.status);
    check(try_read(FRESH, &value) == -1, "it is still there");
    check_result(unmap_grant((u64)FRESH, handle), GNTST_okay, "unmapping it");
    check(try_read(FRESH, &value) == 14 && try_write(FRESH, 0) == 14, "it is gone at once");
    check(unmap_grant((u64)FRESH, handle) != GNTST_okay, "unmapping it twice: %d", unmap.status);
    check_refused(map_frame(FRESH, mfn, READ_ONLY), "mapping the frame after that");

    check_result(map_grant((u64)FRESH, GNTMAP_host_map | GNTMAP_readonly, read_only), GNTST_okay, "a read-only grant");
    handle = map.handle;
    check(try_read(FRESH, &value) == -1, "it can be read");
    check(try_write(FRESH, 0) == 14, "and not written");
    check_refused(mmu_update(at, entry_value(FRESH, 1) | PTE_W), "making its entry writable");
    check(try_write(FRESH, 0) == 14, "it still cannot be written");
    check_result(unmap_grant((u64)FRESH, handle), GNTST_okay, "unmapping it");
    check(map_grant((u64)FRESH, GNTMAP_host_map, read_only) < 0, "mapping it writable: %d", map.status);

    check_result(map_grant(at, GNTMAP_host_map | GNTMAP_contains_pte, writable), GNTST_okay, "by the address of the entry");
    handle = map.handle;
    check(try_read(FRESH, &value) == -1 && value == 0x6772616e74, "it says %lx", value);
    check(unmap_grant(at + 8, handle) != GNTST_okay, "unmapping another entry: %d", unmap.status);
    check_result(unmap_grant(at, handle), GNTST_okay, "unmapping it");
    check(try_read(FRESH, &value) == 14, "it is gone");
    for (unsigned offset = 1; offset < 8; offset++)
        check(map_grant(at + offset, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
              "an entry at an unaligned address: %d", map.status);
    check(map_grant(mfn_of(start_info) << 12, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
          "an entry in a page that is no table: %d", map.status);
    check(map_grant(root_mfn() << 12, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
          "an entry in the root: %d", map.status);
    check(map_grant(entry_address(FRESH, 2) + 16, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
          "an entry of level 2: %d", map.status);
    check(map_grant(0xfffff000, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
          "an entry in a frame that is not ours: %d", map.status);
    check(map_grant(start_info->shared_info, GNTMAP_host_map | GNTMAP_contains_pte, writable) != GNTST_okay,
          "an entry in shared_info: %d", map.status);
    static const u64 nowhere[] = {0x0000800000000000, HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END - PAGE, 0x0000600000000000,
                                  0xffff7ffffffff000};
    for (unsigned each = 0; each < 5; each++)
        check(map_grant(nowhere[each], GNTMAP_host_map, writable) != GNTST_okay, "at %lx: %d", nowhere[each], map.status);
    check(map_grant((u64)FRESH, GNTMAP_host_map, 0x7fffffff) != GNTST_okay, "a reference that is none: %d", map.status);

    /* An entry that the guest replaced, and one that it cleared, before it unmaps. */
    check_result(map_grant((u64)FRESH, GNTMAP_host_map, writable), GNTST_okay, "mapping it again");
    handle = map.handle;
    u64 *own = new_page();
    s64 result = update_va(FRESH, pte(mfn_of(own), DATA));
    check(result <= 0, "replacing its entry by hand: %ld", result);
    result = unmap_grant((u64)FRESH, handle);
    check(result <= 0, "unmapping it: %ld", result);
    check(try_write(FRESH, 9) == (own[0] == 9 ? -1 : 14), "what is mapped there is ours or nothing");
    update_va(FRESH, 0);
    /* Two mappings of one page: the end of one leaves the other. */
    check_result(map_grant((u64)FRESH + 8 * PAGE, GNTMAP_host_map, writable), GNTST_okay, "mapping it twice");
    u32 first = map.handle;
    check_result(map_grant((u64)FRESH + 9 * PAGE, GNTMAP_host_map, writable), GNTST_okay, "mapping it twice");
    u32 second = map.handle;
    check_result(unmap_grant((u64)FRESH + 8 * PAGE, first), GNTST_okay, "unmapping the first");
    check(try_read(FRESH + 8 * PAGE, &value) == 14 && try_read(FRESH + 9 * PAGE, &value) == -1, "the second is there");
    check_result(unmap_grant((u64)FRESH + 9 * PAGE, second), GNTST_okay, "unmapping the second");
    check(try_read(FRESH + 9 * PAGE, &value) == 14, "it is gone");
    /* A table that holds the entry of a grant cannot go from under it. */
    check_result(map_grant((u64)FRESH + 10 * PAGE, GNTMAP_host_map, writable), GNTST_okay, "mapping it");
    second = map.handle;
    result = mmu_update(entry_address(FRESH, 2), 0);
    check(result <= 0, "unlinking the table with its entry: %ld", result);
    result = unmap_grant((u64)FRESH + 10 * PAGE, second);
    check(result <= 0, "unmapping it: %ld", result);
}

CASE(grant_kept)
{
    /* The domain ends with a grant mapped: its owner gets it back. */
    make_tables(FRESH);
    check_result(map_grant((u64)FRESH, GNTMAP_host_map, (u32)argument(1)), GNTST_okay, "mapping a granted page");
}
