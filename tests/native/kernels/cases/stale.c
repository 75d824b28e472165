/* A translation that the engine remembers outlives no right that it stands for
 * (XSA-292, 401 and 408). */
#include "../kernel.h"

CASE(stale_translations)
{
    u64 value;
    u64 *page = new_page();
    u64 mfn = mfn_of(page);
    protect(page, false);
    make_tables(FRESH);
    for (unsigned round = 0; round < 3; round++) {
        check_result(HYPERCALL(update_va_mapping, FRESH, pte(mfn, DATA), UVMF_NONE), 0, "a writable mapping");
        check(try_write(FRESH, 0) == -1, "it is used");
        s64 result = round == 0   ? HYPERCALL(update_va_mapping, FRESH, 0, UVMF_NONE)
                     : round == 1 ? HYPERCALL(update_va_mapping, FRESH, pte(mfn, READ_ONLY), UVMF_NONE)
                                  : mmu_update(entry_address(FRESH, 1), 0);
        check_result(result, 0, "it is taken back without a flush");
        check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), 0, "the page becomes a page table");
        check(try_write(FRESH, pte(root_mfn(), DATA)) == 14, "the old mapping is no way to write it");
        check(page[0] == 0, "indeed");
        check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0, "it is a page again");
        update_va(FRESH, 0);
    }
    /* The same through a table that is unlinked above. */
    u64 *table = new_page();
    u64 *data = new_page();
    table[0] = pte(mfn, DATA);
    table[1] = pte(mfn_of(data), DATA);
    protect(table, false);
    protect(data, false);
    u8 *there = FRESH + (1ul << 21);
    check_result(mmu_update(entry_address(there, 2), pte(mfn_of(table), TABLE)), 0, "a table with two pages");
    check(try_write(there, 0) == -1 && try_write(there + PAGE, 0) == -1, "they are used");
    check_result(mmu_update(entry_address(there, 2), 0), 0, "it is unlinked");
    check_result(mmuext(MMUEXT_PIN_L2_TABLE, mfn, 0), 0, "the first page becomes a table");
    check(try_write(there, pte(root_mfn(), TABLE)) == 14, "the old mapping is no way to write it");
    check_result(protect(table, true), 0, "the table is a page again");
    table[0] = pte(root_mfn(), DATA);
    check(try_read(there, &value) == 14, "what is written to it maps nothing");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0, "the first page is one again");
    /* A frame that the guest gives back is gone. */
    map_frame(FRESH, mfn, DATA);
    check(try_write(FRESH, 1) == -1, "a page is used");
    HYPERCALL(update_va_mapping, FRESH, 0, UVMF_NONE);
    HYPERCALL(update_va_mapping, page, 0, UVMF_NONE);
    u64 extent = mfn;
    struct xen_memory_reservation give = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(give.extent_start, &extent);
    check_result(HYPERCALL(memory_op, XENMEM_decrease_reservation, &give), 1, "it is given back");
    check(try_read(FRESH, &value) == 14 && try_write(FRESH, 2) == 14, "the old mapping leads nowhere");
    check(try_read(page, &value) == 14, "the other one neither");
    check_refused(update_va(FRESH, pte(mfn, READ_ONLY)), "mapping it");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), "pinning it");
    /* Another root, with other mappings at the same addresses. */
    u64 other_root = new_table();
    u64 *roots = virtual_of(other_root);
    check_result(mmuext(MMUEXT_PIN_L4_TABLE, other_root, 0), 0, "a second root");
    for (u64 slot = 0; slot < 512; slot++)
        if ((slot < 256 || slot > 271) && (((u64 *)start_info->pt_base)[slot] & PTE_P) && slot != (u64)FRESH >> 39)
            mmu_update(other_root << 12 | slot << 3, ((u64 *)start_info->pt_base)[slot]);
    check(roots[511] & PTE_P, "it has the kernel");
    map_frame(FRESH, mfn_of(data), READ_ONLY);
    check(try_read(FRESH, &value) == -1, "an address is used");
    check_result(mmuext(MMUEXT_NEW_BASEPTR, other_root, 0), 0, "loading the second root");
    check(try_read(FRESH, &value) == 14, "that does not have it");
    check_result(mmuext(MMUEXT_NEW_BASEPTR, root_mfn(), 0), 0, "loading the first");
    check(try_read(FRESH, &value) == -1, "that has it");
    check_result(mmuext(MMUEXT_UNPIN_TABLE, other_root, 0), 0, "unpinning the second");
    check_result(protect(roots, true), 0, "it is a page again");
}

CASE(written_entries)
{
    /* Level 1 tables may be written by instructions: each is checked like a hypercall. */
    u64 value;
    u64 *page = new_page();
    u64 mfn = mfn_of(page);
    make_tables(FRESH);
    u64 at = entry_address(FRESH, 1);
    volatile u64 *entry = (u64 *)virtual_of(at >> 12) + ((at & 4095) >> 3);
    s64 result = try_write((void *)entry, pte(mfn, DATA));
    check(result == 14, "without asking for it, an entry cannot be written: %ld", result);
    check_result(HYPERCALL(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0, "asking for it");
    result = try_write((void *)entry, pte(mfn, DATA));
    check(result == -1, "an entry is written by mov: %ld", result);
    check(try_write(FRESH, 77) == -1 && page[0] == 77, "it is in force");
    check(try_write((void *)entry, pte(root_mfn(), DATA)) == 14, "one that maps the root writable is refused: %ld",
          probe.vector);
    check(try_write((void *)entry, pte(0xfffff, READ_ONLY)) == 14, "one that maps a foreign frame is refused: %ld",
          probe.vector);
    check(try_read(FRESH, &value) == -1 && value == 77, "the old one is in force");
    u64 old = pte(mfn, READ_ONLY);
    result = ATTEMPT("xchgq %0, (%1)", : "+r"(old) : "r"(entry) : "memory");
    forget(FRESH);
    check(result == -1 && (old & ~(PTE_A | PTE_D | PTE_G)) == (pte(mfn, DATA) & ~(PTE_A | PTE_D)), "xchg: %ld, %lx", result, old);
    check(try_write(FRESH, 1) == 14, "the page is read-only");
    u64 was = *entry;
    u64 expected = was;
    result = ATTEMPT("lock cmpxchgq %2, (%1)", : "+a"(expected) : "r"(entry), "r"(pte(mfn, DATA)) : "memory", "cc");
    check(result == -1 && expected == was, "cmpxchg: %ld", result);
    check(try_write(FRESH, 78) == -1 && page[0] == 78, "the page is writable");
    expected = 1;
    result = ATTEMPT("lock cmpxchgq %2, (%1)", : "+a"(expected) : "r"(entry), "r"(0ul) : "memory", "cc");
    check(result == -1 && expected != 1, "cmpxchg with another value than there is: %ld", result);
    result = ATTEMPT("lock andq $~2, (%0)", : : "r"(entry) : "memory", "cc");
    forget(FRESH);
    check(result == -1 && try_write(FRESH, 1) == 14, "and: %ld", result);
    result = ATTEMPT("lock orq $2, (%0)", : : "r"(entry) : "memory", "cc");
    check(result == -1 && try_write(FRESH, 79) == -1, "or: %ld", result);
    result = ATTEMPT("lock btrq $1, (%0)", : : "r"(entry) : "memory", "cc");
    forget(FRESH);
    check(result == -1 && try_write(FRESH, 1) == 14, "btr: %ld", result);
    u64 upper = entry_address(FRESH, 2);
    check(try_write((u8 *)virtual_of(upper >> 12) + (upper & 4095), 0) == 14, "a level 2 entry cannot be written");
    result = ATTEMPT("movl $0, (%0)", : : "r"(entry) : "memory");
    check(result == -1 || result == 14, "half an entry: %ld", result);
    result = ATTEMPT("movb $0, (%0)", : : "r"(entry) : "memory");
    check(result == -1 || result == 14, "an octet of one: %ld", result);
    result = ATTEMPT("movq $0, 1(%0)", : : "r"(entry) : "memory");
    check(result == 14, "an unaligned one is refused: %ld", result);
    result = try_write((void *)entry, 0);
    forget(FRESH);
    check(result == -1 && try_read(FRESH, &value) == 14, "an entry is cleared: %ld", result);
}
