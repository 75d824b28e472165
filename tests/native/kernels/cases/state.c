/* What is a vCPU's own stays its own, while one engine executes both: and what the guest gives Xen to write to
 * (XSA-165 and 327). */
#include "../kernel.h"

static volatile unsigned stage;
static u64 seen_xmm[2], seen_control, seen_mxcsr, seen_fs, seen_debug;
static volatile u64 spins;

static void load_xmm(u64 value)
{
    asm volatile("movq %0, %%xmm0\n\tmovq %0, %%xmm15" : : "r"(value));
}

static u64 read_xmm(void)
{
    u64 low, high;
    asm volatile("movq %%xmm0, %0\n\tmovq %%xmm15, %1" : "=r"(low), "=r"(high));
    return low == high ? low : 0xbad;
}

static void second_state(void)
{
    u16 control;
    u32 mxcsr;
    asm volatile("movq %%xmm0, %0\n\tmovq %%xmm15, %1" : "=r"(seen_xmm[0]), "=r"(seen_xmm[1]));
    asm volatile("fnstcw %0\n\tstmxcsr %1" : "=m"(control), "=m"(mxcsr));
    seen_control = control;
    seen_mxcsr = mxcsr;
    asm volatile("movw %%fs, %w0" : "=r"(seen_fs));
    seen_debug = (u64)HYPERCALL(get_debugreg, 0);
    load_xmm(0x2222222222222222);
    HYPERCALL(set_debugreg, 0, 0x2000);
    HYPERCALL(set_segment_base, SEGBASE_FS, &spins);
    stage = 1;
    bool own = true;
    while (stage < 2) {
        spins++;
        own &= read_xmm() == 0x2222222222222222;
    }
    u64 at_fs;
    asm volatile("movq %%fs:0, %0" : "=r"(at_fs));
    seen_fs = at_fs == spins;
    seen_debug = (u64)HYPERCALL(get_debugreg, 0);
    stage = own ? 3 : 4;
}

CASE(vcpu_state)
{
    static u64 word = 0x1234;
    load_xmm(0x1111111111111111);
    u16 control = 0x027f;
    u32 mxcsr = 0x7f80;
    asm volatile("fldcw %0\n\tldmxcsr %1" : : "m"(control), "m"(mxcsr));
    HYPERCALL(set_debugreg, 0, 0x1000);
    HYPERCALL(set_segment_base, SEGBASE_FS, &word);
    check_result(start_second(second_state), 0, "starting vCPU 1");
    bool own = true;
    while (stage < 1)
        own &= read_xmm() == 0x1111111111111111;
    check(!seen_xmm[0] && !seen_xmm[1], "a new vCPU finds nothing in its registers: %lx %lx", seen_xmm[0], seen_xmm[1]);
    check(seen_control == 0x37f && seen_mxcsr == 0x1f80, "and the FPU reset: %lx %lx", seen_control, seen_mxcsr);
    check(!seen_fs && !seen_debug, "no selector and no breakpoint: %lx %lx", seen_fs, seen_debug);
    u64 until = system_time() + 20000000;
    while (system_time() < until)
        own &= read_xmm() == 0x1111111111111111;
    check(own, "registers are kept");
    u64 at_fs;
    asm volatile("movq %%fs:0, %0" : "=r"(at_fs));
    check(at_fs == 0x1234, "the base of FS, too: %lx", at_fs);
    check(HYPERCALL(get_debugreg, 0) == 0x1000, "and breakpoints");
    asm volatile("fnstcw %0\n\tstmxcsr %1" : "=m"(control), "=m"(mxcsr));
    check(control == 0x027f && mxcsr == 0x7f80, "and how the FPU computes");
    stage = 2;
    while (stage < 3)
        ;
    check(stage == 3 && seen_fs == 1 && seen_debug == 0x2000, "those of vCPU 1, too: %u %lx %lx", stage, seen_fs, seen_debug);
}

CASE(places)
{
    /* Memory that Xen is to keep vcpu_info and others in. */
    u8 *page = new_page();
    struct vcpu_register_vcpu_info info = {.mfn = mfn_of(page)};
    for (unsigned offset = 1; offset < 64; offset++)
        if (offset % 8) {
            info.offset = offset;
            check(vcpu_op(VCPUOP_register_vcpu_info, 0, &info) < 0, "vcpu_info at %u", offset);
        }
    info.offset = 4096 - 56;
    check_refused(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), "vcpu_info that does not fit");
    info.offset = 0xfffffff8;
    check_refused(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), "nor there");
    info.offset = 0;
    info.mfn = root_mfn();
    check_refused(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), "in a page table");
    info.mfn = 0xfffff;
    check_refused(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), "in a frame that is not ours");
    info.mfn = mfn_of(page);
    info.offset = 128;
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
    check_result(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), 0, "vcpu_info in a page of ours");
    vcpu_info_t *own = (vcpu_info_t *)(page + 128);
    check(own->evtchn_upcall_mask == 1 && own->time.tsc_to_system_mul, "has what it had");
    check_refused(vcpu_op(VCPUOP_register_vcpu_info, 0, &info), "a second time");
    check_result(protect(page, false), 0, "mapping the page read-only");
    check_refused(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), "pinning it");
    u64 extent = mfn_of(page);
    update_va(page, 0);
    struct xen_memory_reservation give = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(give.extent_start, &extent);
    check(HYPERCALL(memory_op, XENMEM_decrease_reservation, &give) <= 0, "giving it back");
    check_result(update_va(page, pte(extent, DATA)), 0, "mapping it again");
    /* Upcalls go by the new place. */
    struct vcpu_set_singleshot_timer shot = {.timeout_abs_ns = 1};
    bind_virq(VIRQ_TIMER, 0);
    vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    HYPERCALL(sched_op, SCHEDOP_yield, 0);
    check(own->evtchn_upcall_pending, "an event is pending there");
    own->evtchn_upcall_pending = 0;
    /* A runstate area and a time area that are unmapped later, or that are a page table, or nowhere. */
    u64 *data = new_page();
    struct vcpu_register_runstate_memory_area area = {.addr.p = (u64)data + 8};
    check_result(vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), 0, "a runstate area");
    update_va(data, 0);
    HYPERCALL(sched_op, SCHEDOP_yield, 0);
    u64 until = system_time() + 10000000;
    while (system_time() < until)
        ;
    update_va(data, pte(mfn_of(data), DATA));
    area.addr.p = start_info->pt_base + 64;
    u64 before = ((u64 *)start_info->pt_base)[8];
    s64 result = vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area);
    HYPERCALL(sched_op, SCHEDOP_yield, 0);
    check(((u64 *)start_info->pt_base)[8] == before, "one in the root writes nothing there: %ld", result);
    area.addr.p = HYPERVISOR_VIRT_START + 0x1000;
    before = machine_to_phys_mapping[0x200];
    result = vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area);
    HYPERCALL(sched_op, SCHEDOP_yield, 0);
    check(machine_to_phys_mapping[0x200] == before, "one in M2P writes nothing there: %ld", result);
    struct vcpu_register_time_memory_area time = {.addr.p = start_info->pt_base};
    result = vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &time);
    check(result <= 0, "a time area in the root: %ld", result);
    struct physdev_set_iobitmap bitmap = {.nr_ports = 0x10001};
    check_refused(HYPERCALL(physdev_op, PHYSDEVOP_set_iobitmap, &bitmap), "an I/O bitmap of too many ports");
    bitmap.nr_ports = 65536;
    set_xen_guest_handle(bitmap.bitmap, (u8 *)HYPERVISOR_VIRT_START);
    result = HYPERCALL(physdev_op, PHYSDEVOP_set_iobitmap, &bitmap);
    check(result <= 0, "an I/O bitmap in M2P: %ld", result);
    s64 vector = ATTEMPT("outb %%al, $0x80", : : "a"(0));
    check(vector == 13 || vector == -1, "out then: %ld", vector);
}

CASE(batches)
{
    /* Batches in batches, and what does not return in one. */
    static multicall_entry_t calls[64];
    for (unsigned each = 0; each < 64; each++) {
        calls[each].op = __HYPERVISOR_multicall;
        calls[each].args[0] = (u64)calls;
        calls[each].args[1] = 64;
    }
    s64 result = HYPERCALL(multicall, calls, 64);
    unsigned refused = 0;
    for (unsigned each = 0; each < 64; each++)
        refused += (s64)calls[each].result < 0;
    check(result < 0 || refused == 64, "batches in a batch: %ld, %u refused", result, refused);
    memset(calls, 0, sizeof calls);
    calls[0].op = __HYPERVISOR_xen_version;
    calls[1].op = 999;
    calls[2].op = ~0ul;
    calls[3].op = __HYPERVISOR_xen_version;
    check_result(HYPERCALL(multicall, calls, 4), 0, "a batch with two that are none");
    check((s64)calls[0].result > 0 && (s64)calls[1].result < 0 && (s64)calls[2].result < 0 && calls[3].result == calls[0].result,
          "has the results of the others");
    result = HYPERCALL(multicall, calls, 0xffffffff);
    check(result < 0, "a batch without end: %ld", result);
    /* The results are written by the guest's rights: not into a read-only page. */
    multicall_entry_t *page = new_page();
    page[0].op = __HYPERVISOR_xen_version;
    page[0].result = 77;
    protect(page, false);
    result = HYPERCALL(multicall, page, 1);
    check(result < 0 && page[0].result == 77, "a batch in a read-only page: %ld", result);
    /* A batch that takes its own page away. */
    protect(page, true);
    page[0] = (multicall_entry_t){.op = __HYPERVISOR_update_va_mapping, .args = {(u64)page, 0, UVMF_INVLPG}};
    page[1].op = __HYPERVISOR_xen_version;
    result = HYPERCALL(multicall, page, 2);
    u64 value;
    check(result < 0 && try_read(page, &value) == 14, "a batch that unmaps itself: %ld", result);
    check_result(update_va(page, pte(mfn_of(page), DATA)), 0, "mapping it again");
}

CASE(strict_m2p)
{
    static const u8 code[] = {
        /* mov 0xffff800000080000, %rax; int $0x80 */
        0x48, 0xa1, 0, 0, 0x08, 0, 0, 0x80, 0xff, 0xff, 0xcd, 0x80,
    };
    make_user(code, sizeof code);
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    check(user_exit.number == 0x80 || user_exit.number == 14, "M2P from user mode: %lx", user_exit.number);
    check_result(HYPERCALL(vm_assist, VMASST_CMD_enable, VMASST_TYPE_m2p_strict), 0, "hiding it");
    check_result(mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0, "unloading the root");
    check_result(mmuext(MMUEXT_NEW_USER_BASEPTR, user_root, 0), 0, "loading it again");
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    check(user_exit.number == 14, "M2P from user mode then: %lx", user_exit.number);
    check(machine_to_phys_mapping[root_mfn()] == pfn_of((void *)start_info->pt_base), "the kernel still has it");
}
