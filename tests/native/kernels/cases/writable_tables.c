/* No frame is writable for the guest and a page table at once, whichever comes first and by whichever way.
 * What Xen has learnt of it: XSA-148 and 176 (large pages), 182 (only the writable bit), 240 and 309 (linear tables). */
#include "../kernel.h"

#define WINDOW FRESH

CASE(map_tables_writable)
{
    for (unsigned level = 1; level <= 4; level++) {
        u64 table = entry_address(start_info, level) >> 12;
        void *address = virtual_of(table);
        check_refused(update_va(address, pte(table, DATA)), "making a page table writable by update_va_mapping");
        check_refused(mmu_update(entry_address(address, 1), pte(table, DATA)), "the same by mmu_update");
        check_refused(mmu_update(entry_address(address, 1) | MMU_PT_UPDATE_PRESERVE_AD, pte(table, DATA)),
                      "the same, preserving A and D");
        check_refused(mmu_update(entry_address(address, 1) | MMU_PT_UPDATE_NO_TRANSLATE, pte(table, DATA)),
                      "the same, untranslated");
        check_refused(map_frame(WINDOW, table, DATA), "a second mapping of it, writable");
        check_refused(map_frame(WINDOW, table, DATA | PTE_NX), "the same without execution");
        check_result(map_frame(WINDOW, table, READ_ONLY), 0, "a second mapping of it, read-only");
        u64 value;
        check(try_read(WINDOW, &value) == -1, "it can be read");
        check(try_write(WINDOW, value) == 14, "it cannot be written");
        check_refused(mmu_update(entry_address(WINDOW, 1), pte(table, DATA)), "making that mapping writable");
        check_result(update_va(WINDOW, 0), 0, "unmapping it");
        check(try_read(WINDOW, &value) == 14, "it is not there any more");
    }
}

CASE(pin_writable_pages)
{
    u64 *page = new_page();
    u64 mfn = mfn_of(page);
    for (unsigned command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_PIN_L4_TABLE; command++)
        check_refused(mmuext(command, mfn, 0), "pinning a page that is mapped writable");
    check_refused(mmu_update(entry_address(FRESH, 4), pte(mfn, TABLE)), "linking it as a table");
    check_refused(mmuext(MMUEXT_NEW_BASEPTR, mfn, 0), "loading it as a root");
    check_refused(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn, 0), "loading it as a root for user mode");
    page[0] = PTE_P;
    check(page[0] == PTE_P, "it is as writable as before");
    check_result(protect(page, false), 0, "mapping it read-only");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), "it would map frame 0: pinning it");
    protect(page, true);
    page[0] = 0;
    protect(page, false);
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), 0, "empty, it can be pinned");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0, "and unpinned");
    check_result(protect(page, true), 0, "and be written again");
    page[0] = 2;
    check(page[0] == 2, "indeed");
}

CASE(pin_what_maps_tables)
{
    /* A table whose entries would break the rule is refused as a whole, and leaves no counts behind. */
    u64 *table = new_page();
    void *victim = new_page();
    table[5] = pte(mfn_of(victim), DATA);
    table[511] = pte(root_mfn(), DATA);
    protect(table, false);
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), "pinning a table with a writable mapping of the root");
    check_result(protect(table, true), 0, "it is no table");
    table[511] = pte(mfn_of(table), DATA);
    protect(table, false);
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), "pinning a table that maps itself writable");
    check_result(protect(table, true), 0, "it is no table");
    table[511] = pte(mfn_of(table), READ_ONLY);
    protect(table, false);
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), 0, "pinning a table that maps itself read-only");
    check_refused(protect(table, true), "making it writable while it is pinned");
    protect(victim, false);
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(victim), 0), "pinning what that table maps writable");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), "pinning it twice");
    check_refused(mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(table), 0), "pinning it with another type");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(table), 0), 0, "unpinning it");
    check_refused(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(table), 0), "unpinning it twice");
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(victim), 0), 0, "what it mapped can be pinned now");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(victim), 0), 0, "and unpinned");
    check_result(protect(table, true), 0, "the table can be written again");
}

CASE(wrong_types)
{
    u64 value;
    for (unsigned level = 1; level <= 4; level++) {
        u64 table = entry_address(start_info, level) >> 12;
        for (unsigned other = 1; other <= 4; other++)
            if (other != level)
                check_refused(mmuext(MMUEXT_PIN_L1_TABLE + other - 1, table, 0), "pinning a table with another type");
        if (level != 4) {
            check_refused(mmuext(MMUEXT_NEW_BASEPTR, table, 0), "loading it as a root");
            check_refused(mmuext(MMUEXT_NEW_USER_BASEPTR, table, 0), "loading it as a root for user mode");
        }
        check_refused(mmuext(MMUEXT_CLEAR_PAGE, table, 0), "clearing it as a page");
        check_refused(mmuext(MMUEXT_COPY_PAGE, table, mfn_of(new_page())), "copying a page to it");
        check_refused(HYPERCALL(update_descriptor, table << 12, 0), "writing a descriptor to it");
        u64 frames[1] = {table};
        check_refused(HYPERCALL(set_gdt, frames, 512), "making it a GDT");
        if (level > 2)
            check_refused(mmu_update(entry_address(FRESH, 4), pte(entry_address(start_info, level - 2) >> 12, TABLE)),
                          "linking a table two levels too high");
    }
    check(try_read(start_info, &value) == -1, "everything is still mapped");
}

CASE(large_pages)
{
    u64 value;
    make_tables(FRESH);
    u64 entry = entry_value(FRESH, 2);
    u64 at = entry_address(FRESH, 2);
    check_refused(mmu_update(at + 8, pte(0x10000, DATA | PTE_PSE)), "a new superpage at level 2");
    check_refused(mmu_update(at, entry | PTE_PSE), "a table's entry made a superpage");
    check_refused(mmu_update(at | MMU_PT_UPDATE_PRESERVE_AD, entry | PTE_PSE), "the same, preserving A and D");
    check_refused(mmu_update(entry_address(FRESH, 3), entry_value(FRESH, 3) | PTE_PSE), "the same at level 3");
    check_refused(mmu_update(entry_address(FRESH, 4), entry_value(FRESH, 4) | PTE_PSE), "the same at level 4");
    check(entry_value(FRESH, 2) == entry || (entry_value(FRESH, 2) & ~(PTE_A | PTE_D)) == (entry & ~(PTE_A | PTE_D)),
          "the entry is as before");
    u64 *table = new_page();
    table[3] = pte(0x10000, DATA | PTE_PSE);
    protect(table, false);
    check_refused(mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(table), 0), "pinning a level 2 table with a superpage");
    check_refused(mmuext(MMUEXT_PIN_L3_TABLE, mfn_of(table), 0), "pinning it at level 3");
    check_refused(mmuext(MMUEXT_MARK_SUPER, 0x10000, 0), "marking a superpage");
    check_refused(mmuext(MMUEXT_UNMARK_SUPER, 0x10000, 0), "unmarking one");
    check(try_read(start_info, &value) == -1, "everything is still mapped");
}

CASE(linear_tables)
{
    /* A table that refers to one of its own level: read-only and one deep, or not at all. */
    u64 value;
    u64 slot = root_mfn() << 12 | 300 << 3;
    u8 *linear = (u8 *)(0xffff000000000000ul | 300ul << 39);
    check_refused(mmu_update(slot, pte(root_mfn(), TABLE)), "a writable linear entry of the root");
    s64 result = mmu_update(slot, pte(root_mfn(), READ_ONLY));
    check(result <= 0, "a read-only one: %s", result ? "refused" : "granted");
    if (!result) {
        u8 *seen = linear + (300ul << 30) + (300ul << 21) + (300ul << 12);
        check(try_read(seen, &value) == -1, "the root is seen through it");
        check(try_write(seen, value) == 14, "and cannot be written");
        check_refused(mmu_update(slot, pte(root_mfn(), READ_ONLY) | PTE_W), "adding only the writable bit");
        check(try_write(seen, value) == 14, "it still cannot be written");
        check_result(mmu_update(slot, 0), 0, "taking it back");
    }
    u64 chain[4];
    for (unsigned each = 0; each < 4; each++)
        chain[each] = new_table();
    unsigned linked = 0;
    for (unsigned each = 0; each < 4; each++)
        check_result(mmuext(MMUEXT_PIN_L4_TABLE, chain[each], 0), 0, "pinning a link of a chain");
    for (unsigned each = 0; each < 3; each++)
        linked += !mmu_update(chain[each] << 12, pte(chain[each + 1], READ_ONLY));
    check(linked <= 2, "a chain of %u links is the longest", linked);
    check_refused(mmu_update(chain[3] << 12, pte(chain[0], READ_ONLY)) | mmu_update(chain[2] << 12, pte(chain[0], READ_ONLY)) |
                      mmu_update(chain[1] << 12, pte(chain[0], READ_ONLY)),
                  "closing it to a ring");
    for (unsigned each = 0; each < 4; each++)
        check_result(mmuext(MMUEXT_UNPIN_TABLE, chain[each], 0), 0, "unpinning a link");
    for (unsigned level = 1; level < 4; level++) {
        u64 *table = new_page();
        table[0] = pte(mfn_of(table), TABLE);
        protect(table, false);
        result = mmuext(MMUEXT_PIN_L1_TABLE + level - 1, mfn_of(table), 0);
        check_refused(result, "a table of level 1 to 3 with a writable entry for itself");
    }
}

CASE(deep_recursion)
{
    /* Chains of tables of the same level, each entry filled: teardown and validation have to end. */
    static u64 tables[64];
    for (unsigned each = 0; each < 64; each++) {
        u64 *table = new_page();
        for (unsigned entry = 0; each && entry < 512; entry++)
            table[entry] = pte(tables[each - 1], READ_ONLY);
        protect(table, false);
        tables[each] = mfn_of(table);
    }
    unsigned pinned[3] = {0};
    for (unsigned level = 2; level <= 4; level++)
        for (unsigned each = 0; each < 64; each++)
            if (!mmuext(MMUEXT_PIN_L1_TABLE + level - 1, tables[each], 0))
                pinned[level - 2] |= 1u << (each % 32);
    check(pinned[0] != ~0u && pinned[1] != ~0u && pinned[2] != ~0u, "not all can be pinned: %x %x %x", pinned[0], pinned[1],
          pinned[2]);
    for (unsigned each = 0; each < 64; each++)
        mmuext(MMUEXT_UNPIN_TABLE, tables[each], 0);
    unsigned writable = 0;
    for (unsigned each = 0; each < 64; each++)
        writable += !protect(virtual_of(tables[each]), true);
    check(writable == 64, "all %u can be written again", writable);
}
