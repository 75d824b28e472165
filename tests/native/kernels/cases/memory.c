/* Frames come and go, and none goes that is in use
 * (XSA-31, 100, 158, 222, 252, 287). */
#include "../kernel.h"

static s64 reservation(unsigned command, u64 *extents, unsigned count, unsigned order)
{
    struct xen_memory_reservation request = {.nr_extents = count, .extent_order = order, .domid = DOMID_SELF};
    set_xen_guest_handle(request.extent_start, extents);
    return HYPERCALL(memory_op, command, &request);
}

CASE(memory)
{
    u64 value;
    void *page = new_page();
    u64 mfn = mfn_of(page), pfn = pfn_of(page);
    u64 extent = mfn;
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "a page that is mapped is not given back");
    check(try_write(page, 1) == -1, "it is there");
    extent = new_table();
    mmuext(MMUEXT_PIN_L2_TABLE, extent, 0);
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "a pinned page is not given back");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, extent, 0), 0, "it is still pinned");
    extent = root_mfn();
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "the root is not given back");
    extent = 0xfffff;
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "what is not ours is not given back");
    extent = 0x200;
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "the grant table is not given back");
    s64 before = HYPERCALL(memory_op, XENMEM_current_reservation, &(domid_t){DOMID_SELF});
    check(before == (s64)start_info->nr_pages, "%ld pages", before);
    update_va(page, 0);
    extent = mfn;
    check_result(reservation(XENMEM_decrease_reservation, &extent, 1, 0), 1, "a page without mapping is given back");
    check_result(HYPERCALL(memory_op, XENMEM_current_reservation, &(domid_t){DOMID_SELF}), before - 1, "one less");
    check(reservation(XENMEM_decrease_reservation, &extent, 1, 0) <= 0, "not twice");
    check_refused(update_va(page, pte(mfn, DATA)), "it cannot be mapped");
    extent = pfn;
    check_result(reservation(XENMEM_populate_physmap, &extent, 1, 0), 1, "a new one");
    check(machine_to_phys_mapping[extent] == pfn, "frame %lx is page %lx", extent, pfn);
    check_result(update_va(page, pte(extent, DATA)), 0, "is mapped");
    check(try_read(page, &value) == -1 && value == 0, "and empty: %lx", value);
    check(try_write(page, 5) == -1, "it can be written");
    check_result(HYPERCALL(memory_op, XENMEM_current_reservation, &(domid_t){DOMID_SELF}), before, "as many as before");
    ((u64 *)start_info->mfn_list)[pfn] = extent;
    /* More than the domain may have. The toolstack may have left it a little room. */
    static u64 extra[4096];
    unsigned room = 0;
    do
        extra[room] = start_info->nr_pages + room;
    while (reservation(XENMEM_populate_physmap, &extra[room], 1, 0) == 1 && ++room < 4096);
    check(room < 4096, "there is room for %u more, and no end", room);
    check_result(reservation(XENMEM_decrease_reservation, extra, room, 0), room, "they are given back");
    static const unsigned orders[] = {9, 18, 31, 63, 0xffffffff};
    for (unsigned each = 0; each < 5; each++) {
        extent = pfn;
        check(reservation(XENMEM_populate_physmap, &extent, 1, orders[each]) <= 0, "2^%u pages", orders[each]);
        check(reservation(XENMEM_decrease_reservation, &extent, 1, orders[each]) <= 0, "2^%u pages back", orders[each]);
        check(reservation(XENMEM_increase_reservation, &extent, 1, orders[each]) <= 0, "2^%u more", orders[each]);
    }
    check(reservation(XENMEM_populate_physmap, (u64 *)HYPERVISOR_VIRT_START, 1, 0) <= 0, "extents in M2P");
    check(reservation(XENMEM_populate_physmap, (u64 *)start_info->pt_base, 1, 0) <= 0, "extents in the root");
    check(reservation(XENMEM_decrease_reservation, (u64 *)0x0000800000000000, ~0u, 0) <= 0, "extents nowhere");
    check_result(HYPERCALL(memory_op, XENMEM_current_reservation, &(domid_t){DOMID_SELF}), before, "as many as before");
    check(HYPERCALL(memory_op, XENMEM_maximum_ram_page, 0) > 0, "the last frame is %ld",
          HYPERCALL(memory_op, XENMEM_maximum_ram_page, 0));
    struct xen_add_to_physmap add = {.domid = DOMID_SELF, .space = XENMAPSPACE_grant_table, .gpfn = pfn};
    check(HYPERCALL(memory_op, XENMEM_add_to_physmap, &add) < 0, "what only translated guests may");
    check(HYPERCALL(memory_op, 99, &add) < 0, "an operation without name");
    /* Many pages, there and back: what one has seen is not in another. */
    static u64 extents[64];
    static u8 *pages[64];
    for (unsigned each = 0; each < 64; each++) {
        pages[each] = new_page();
        *(u64 *)pages[each] = 0x5ec2e7;
        extents[each] = mfn_of(pages[each]);
        update_va(pages[each], 0);
    }
    check_result(reservation(XENMEM_decrease_reservation, extents, 64, 0), 64, "64 pages are given back");
    for (unsigned each = 0; each < 64; each++)
        extents[each] = pfn_of(pages[each]);
    check_result(reservation(XENMEM_populate_physmap, extents, 64, 0), 64, "64 new ones");
    unsigned empty = 0;
    for (unsigned each = 0; each < 64; each++) {
        update_va(pages[each], pte(extents[each], DATA));
        empty += !try_read(pages[each], &value) || !value;
    }
    check(empty == 64, "%u of them are empty", empty);
}
