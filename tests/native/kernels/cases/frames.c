/* A guest maps its own frames and those that the hypervisor shows it, and nothing else (XSA-32). Handles:
 * XSA-29 and 212. Upper levels that change: XSA-286; a failed update_va_mapping: XSA-279. */
#include "../kernel.h"

static const u64 NOT_OURS[] = {
    0, 1, 0xff, 0x101, 0x1000, 0x1234, 0xffff, 0x80000, 0xfffff, 0x100000, 0x100001, 0x10ffff, 0x110000,
    0xfffffff, 0x100000000, 0x8000000000, 0xffffffffff,
};

CASE(foreign_frames)
{
    u64 value;
    make_tables(FRESH);
    for (unsigned each = 0; each < sizeof NOT_OURS / 8; each++) {
        u64 mfn = NOT_OURS[each];
        check(update_va(FRESH, pte(mfn, DATA)) < 0, "mapping frame %lx writable", mfn);
        check(update_va(FRESH, pte(mfn, READ_ONLY)) < 0, "mapping frame %lx", mfn);
        check(mmu_update(entry_address(FRESH, 1), pte(mfn, READ_ONLY)) < 0, "mapping frame %lx by mmu_update", mfn);
        for (unsigned level = 2; level <= 4; level++)
            check(mmu_update(entry_address(FRESH, level) + 8, pte(mfn, TABLE)) < 0, "%lx as a table in level %u", mfn,
                  level);
        for (unsigned command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_NEW_BASEPTR; command++)
            check(mmuext(command, mfn, 0) < 0, "mmuext_op %u of frame %lx", command, mfn);
        if (mfn)
            check(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn, 0) < 0, "a user root at %lx", mfn);
        check(mmuext(MMUEXT_CLEAR_PAGE, mfn, 0) < 0, "clearing frame %lx", mfn);
        check(mmuext(MMUEXT_COPY_PAGE, mfn, mfn_of(start_info)) < 0, "copying to frame %lx", mfn);
        check(mmuext(MMUEXT_COPY_PAGE, mfn_of(new_page()), mfn) < 0, "copying from frame %lx", mfn);
        check(mmu_update(mfn << 12, 0) < 0, "writing an entry in frame %lx", mfn);
        check(mmu_update(mfn << 12 | MMU_MACHPHYS_UPDATE, 0) < 0, "its machphys entry %lx", mfn);
        check(HYPERCALL(update_descriptor, mfn << 12, 0) < 0, "a descriptor in frame %lx", mfn);
        u64 frames[1] = {mfn};
        check(HYPERCALL(set_gdt, frames, 512) < 0, "a GDT in frame %lx", mfn);
        struct vcpu_register_vcpu_info info = {.mfn = mfn};
        check(vcpu_op(VCPUOP_register_vcpu_info, 0, &info) < 0, "vcpu_info in frame %lx", mfn);
    }
    check(try_read(FRESH, &value) == 14, "nothing is mapped there");
    check(HYPERCALL(update_va_mapping_otherdomain, FRESH, pte(0x10000, DATA), UVMF_INVLPG, 0) < 0,
          "mapping dom0's frames");
    mmu_update_t update = {.ptr = entry_address(FRESH, 1), .val = pte(0x10000, DATA)};
    for (u64 domain = 0; domain < DOMID_FIRST_RESERVED; domain += DOMID_FIRST_RESERVED - 1)
        check(HYPERCALL(mmu_update, &update, 1, 0, domain) < 0, "mapping a frame of domain %lu", domain);
    check(HYPERCALL(mmu_update, &update, 1, 0, DOMID_XEN) < 0, "mapping a frame of the hypervisor's");
    check(HYPERCALL(mmu_update, &update, 1, 0, DOMID_IO) < 0, "mapping a device's");
    check(HYPERCALL(mmu_update, &update, 1, 0, DOMID_SELF | 1 << 16) < 0, "writing to dom0's page tables");
    check(try_read(FRESH, &value) == 14, "nothing is mapped there");
}

CASE(hypervisor_frames)
{
    u64 value;
    u64 frame = start_info->shared_info >> 12;
    check_result(map_frame(FRESH, frame, DATA), 0, "mapping shared_info a second time, writable");
    check(try_read(FRESH, &value) == -1 && try_write(FRESH + 4088, 1) == -1, "it can be read and written");
    for (unsigned command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_PIN_L4_TABLE; command++)
        check_refused(mmuext(command, frame, 0), "pinning it");
    check_result(update_va(FRESH, 0), 0, "unmapping it");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, frame, 0), "pinning it then");
    check_refused(mmu_update(entry_address(FRESH, 2), pte(frame, TABLE)), "linking it as a table");
    u64 frames[1] = {frame};
    check_refused(HYPERCALL(set_gdt, frames, 512), "making it a GDT");
    check_refused(mmuext(MMUEXT_NEW_BASEPTR, frame, 0), "loading it as a root");
    u64 extent = frame;
    struct xen_memory_reservation give = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(give.extent_start, &extent);
    check(HYPERCALL(memory_op, XENMEM_decrease_reservation, &give) <= 0, "giving it back");
    for (unsigned slot = 256; slot < 272; slot++) {
        u64 at = root_mfn() << 12 | slot << 3;
        check(mmu_update(at, 0) < 0, "clearing the hypervisor's slot %u", slot);
        check(mmu_update(at, pte(new_table(), TABLE)) < 0, "setting it");
    }
    u8 *hole = (u8 *)HYPERVISOR_VIRT_START;
    check(update_va(hole, pte(mfn_of(start_info), DATA)) < 0, "a mapping in the hypervisor's part");
    check(try_write(hole, 0) == 14, "writing to M2P faults");
    check(try_write((void *)(HYPERVISOR_VIRT_END - 8), 0) == 14, "the hypervisor's last word cannot be written");
    check(try_read((void *)(HYPERVISOR_VIRT_END - 8), &value) == 14, "nor read");
    check(try_read((void *)0x0000800000000000ul, &value) == 13, "a non-canonical address raises #GP: %ld", probe.vector);
    check(machine_to_phys_mapping[mfn_of(start_info)] == pfn_of(start_info), "M2P still works");
}

CASE(handles)
{
    /* Every handle that a hypercall follows lies in memory that the guest itself could read (and write). */
    static const u64 BAD[] = {
        0x1000, 0xffff800000000000, 0xffff804000000000 - 8, 0xffff840000000000, 0xffff87fffffffff8, 0x0000800000000000,
        0xfffffffffffffff8, 0x7ffffffffffffff8, 0xffff7ffffffffff8, 0xffff87ffffffffff,
    };
    for (unsigned each = 0; each < sizeof BAD / 8; each++) {
        u64 bad = BAD[each];
        check(HYPERCALL(mmu_update, bad, 1, 0, DOMID_SELF) < 0, "mmu_update with a handle %lx", bad);
        check(HYPERCALL(mmuext_op, bad, 1, 0, DOMID_SELF) < 0, "mmuext_op");
        check(HYPERCALL(set_gdt, bad, 512) < 0, "set_gdt");
        check(HYPERCALL(callback_op, CALLBACKOP_register, bad) < 0, "callback_op");
        check(HYPERCALL(vcpu_op, VCPUOP_set_singleshot_timer, 0, bad) < 0, "vcpu_op");
        check(HYPERCALL(vcpu_op, VCPUOP_initialise, 1, bad) < 0, "VCPUOP_initialise");
        check(HYPERCALL(multicall, bad, 1) < 0, "multicall");
        check(HYPERCALL(sched_op, SCHEDOP_poll, bad) < 0, "SCHEDOP_poll");
        check(HYPERCALL(sched_op, SCHEDOP_shutdown, bad) < 0, "SCHEDOP_shutdown");
        check(HYPERCALL(event_channel_op, EVTCHNOP_alloc_unbound, bad) < 0, "event_channel_op");
        check(HYPERCALL(memory_op, XENMEM_decrease_reservation, bad) < 0, "memory_op");
        check(HYPERCALL(grant_table_op, GNTTABOP_query_size, bad, 1) < 0, "grant_table_op");
        check(HYPERCALL(xen_version, XENVER_extraversion, bad) < 0, "xen_version");
        check(HYPERCALL(console_io, CONSOLEIO_write, 8, bad) < 0, "console_io");
        check(HYPERCALL(physdev_op, PHYSDEVOP_set_iopl, bad) < 0, "physdev_op");
        struct vcpu_register_runstate_memory_area area = {.addr.p = bad};
        s64 result = vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area);
        check(result <= 0, "a runstate area there: %ld", result);
    }
    /* A handle to memory that may be read, but not be written: a result does not go there. */
    void *page = new_page();
    protect(page, false);
    check(HYPERCALL(xen_version, XENVER_extraversion, page) < 0, "a version written to a read-only page");
    check(HYPERCALL(xen_version, XENVER_extraversion, start_info->pt_base) < 0, "a version written to the root");
    check(HYPERCALL(grant_table_op, GNTTABOP_query_size, start_info->pt_base, 1) < 0, "a result written to the root");
    unsigned *edge = (unsigned *)(FRESH + PAGE - 4);
    map_frame(FRESH, mfn_of(page), READ_ONLY);
    check(HYPERCALL(mmu_update, edge, 1, 0, DOMID_SELF) < 0, "a request that begins on a mapped page and ends behind it");
    u64 count = 0;
    check(HYPERCALL(mmu_update, FRESH, ~0ul, &count, DOMID_SELF) < 0, "too many requests");
    check_result(update_va(FRESH, 0), 0, "unmapping it");
}

CASE(update_requests)
{
    u64 value;
    u64 *page = new_page();
    make_tables(FRESH);
    u64 at = entry_address(FRESH, 1);
    for (unsigned offset = 4; offset < 8; offset++)
        check(mmu_update(at + offset, pte(mfn_of(page), DATA)) <= 0, "an entry at an unaligned address");
    update_va(FRESH + PAGE, 0);
    update_va(FRESH, 0);
    mmu_update_t batch[4] = {
        {.ptr = at, .val = pte(mfn_of(page), DATA)},
        {.ptr = at + 8, .val = pte(mfn_of(page), READ_ONLY)},
        {.ptr = at + 16, .val = pte(root_mfn(), DATA)},
        {.ptr = at + 24, .val = pte(mfn_of(page), DATA)},
    };
    unsigned done = 99;
    check_refused(HYPERCALL(mmu_update, batch, 4, &done, DOMID_SELF), "a batch whose third request is bad");
    check(done == 2, "two of it are done: %u", done);
    check(try_write(FRESH, 7) == -1 && page[0] == 7, "the first is in force");
    check(try_read(FRESH + PAGE, &value) == -1 && value == 7, "the second, too");
    check(try_write(FRESH + PAGE, 1) == 14, "which is read-only");
    check(try_read(FRESH + 2 * PAGE, &value) == 14, "the third is not");
    check(try_read(FRESH + 3 * PAGE, &value) == 14, "the fourth is not");
    check_result(mmu_update(mfn_of(page) << 12 | 16, 55), 0, "a request for a page that is no table writes to it");
    check(page[2] == 55, "%lu", page[2]);
    u64 mfn = mfn_of(page);
    check_result(mmu_update(mfn << 12 | MMU_MACHPHYS_UPDATE, 12345), 0, "a frame's machphys entry");
    check(machine_to_phys_mapping[mfn] == 12345, "is as it was set");
    mmu_update(mfn << 12 | MMU_MACHPHYS_UPDATE, pfn_of(page));
    check_refused(update_va((void *)0x0000800000000000ul, 0), "update_va_mapping of a non-canonical address");
    check_refused(update_va((void *)0x0000600000000000ul, pte(mfn, DATA)), "of one without tables");
    multicall_entry_t calls[3];
    memset(calls, 0, sizeof calls);
    for (unsigned each = 0; each < 3; each++) {
        calls[each].op = __HYPERVISOR_update_va_mapping;
        calls[each].args[0] = (u64)FRESH + each * PAGE;
        calls[each].args[1] = each == 1 ? pte(root_mfn(), DATA) : pte(mfn, DATA);
        calls[each].args[2] = UVMF_INVLPG;
    }
    check_result(HYPERCALL(multicall, calls, 3), 0, "a multicall of three updates");
    check(!calls[0].result && (s64)calls[1].result < 0 && !calls[2].result, "each with its own result: %ld %ld %ld",
          (s64)calls[0].result, (s64)calls[1].result, (s64)calls[2].result);
    /* A change of an upper level counts for the next update at once. */
    u64 other = new_table();
    multicall_entry_t swap[2];
    memset(swap, 0, sizeof swap);
    mmu_update_t request = {.ptr = entry_address(FRESH, 2), .val = pte(other, TABLE)};
    swap[0].op = __HYPERVISOR_mmu_update;
    swap[0].args[0] = (u64)&request;
    swap[0].args[1] = 1;
    swap[0].args[3] = DOMID_SELF;
    swap[1].op = __HYPERVISOR_update_va_mapping;
    swap[1].args[0] = (u64)FRESH + 5 * PAGE;
    swap[1].args[1] = pte(mfn, READ_ONLY);
    check_result(HYPERCALL(multicall, swap, 2), 0, "another table, and an entry in it");
    check(!swap[0].result && !swap[1].result, "both are done: %ld %ld", (s64)swap[0].result, (s64)swap[1].result);
    check(((u64 *)virtual_of(other))[5] >> 12 == mfn, "the entry is in the new table");
    check(try_read(FRESH, &value) == 14, "what the old one had is gone");
    check(try_read(FRESH + 5 * PAGE, &value) == -1 && value == 7, "what the new one has is there");
}
