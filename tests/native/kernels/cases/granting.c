/* Pages that we grant to a domain (argument 0): while it may write to one, that is no page table, and the other way
 * round. References: 100 a page, 101 a page table, 102 a page that is given back. */
#include "../kernel.h"

#define PAGE_REFERENCE 100
#define TABLE_REFERENCE 101
#define LEFT_REFERENCE 102
#define IN_USE (GTF_reading | GTF_writing)

static volatile grant_entry_v1_t *entries_of_ours;

static void grant(unsigned reference, u64 mfn)
{
    entries_of_ours[reference].domid = (domid_t)argument(0);
    entries_of_ours[reference].frame = (u32)mfn;
    asm volatile("" : : : "memory");
    entries_of_ours[reference].flags = GTF_permit_access;
}

CASE(granting)
{
    static u64 frames[1];
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(setup.frame_list, frames);
    s64 result = HYPERCALL(grant_table_op, GNTTABOP_setup_table, &setup, 1);
    check(!result && !setup.status, "setup_table: %ld, %d, frame %lx", result, setup.status, frames[0]);
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, frames[0], 0), "the grant table as a page table");
    check_result(map_frame(FRESH, frames[0], DATA), 0, "mapping the grant table");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, frames[0], 0), "the grant table as a page table");
    entries_of_ours = (grant_entry_v1_t *)FRESH;
    volatile u64 *page = new_page();
    volatile u64 *left = new_page();
    u64 mfn = mfn_of((void *)page), table = new_table();
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, table, 0), 0, "pinning a table");
    grant(PAGE_REFERENCE, mfn);
    grant(TABLE_REFERENCE, table);
    grant(LEFT_REFERENCE, mfn_of((void *)left));
    print("granted");
    while (page[0] != 1) /* the other domain has mapped the page, and tried to map the table */
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
    check(entries_of_ours[PAGE_REFERENCE].flags & GTF_writing, "the page is in use: %x",
          entries_of_ours[PAGE_REFERENCE].flags);
    check(!(entries_of_ours[TABLE_REFERENCE].flags & GTF_writing), "the table is not: %x",
          entries_of_ours[TABLE_REFERENCE].flags);
    page[0] = 0;
    check_result(protect((void *)page, false), 0, "mapping the page read-only ourselves");
    for (unsigned command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_PIN_L4_TABLE; command++)
        check_refused(mmuext(command, mfn, 0), "pinning it while another domain may write to it");
    check_refused(mmu_update(entry_address(FRESH, 2) + 8, pte(mfn, TABLE)), "linking it");
    u64 gdt[1] = {mfn};
    check_refused(HYPERCALL(set_gdt, gdt, 512), "a GDT of it");
    check_result(update_va((void *)page, pte(mfn, DATA)), 0, "mapping it writable again");
    /* A page that is given back while the other domain has it: what comes in its place is another one. */
    u64 extent = mfn_of((void *)left);
    update_va((void *)left, 0);
    struct xen_memory_reservation request = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(request.extent_start, &extent);
    check_result(HYPERCALL(memory_op, XENMEM_decrease_reservation, &request), 1, "giving another page back");
    extent = pfn_of((void *)left);
    check_result(HYPERCALL(memory_op, XENMEM_populate_physmap, &request), 1, "a page in its place");
    check_result(update_va((void *)left, pte(extent, DATA)), 0, "mapping it");
    check(!left[0] && !left[1], "it is empty: %lx %lx", left[0], left[1]);
    left[1] = 7;
    page[1] = 1; /* the other domain may unmap it */
    while (entries_of_ours[PAGE_REFERENCE].flags & IN_USE)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
    entries_of_ours[PAGE_REFERENCE].flags = 0;
    page[0] = page[1] = 0;
    check_result(protect((void *)page, false), 0, "mapping it read-only");
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), 0, "now it can be pinned");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0, "and unpinned");
}
