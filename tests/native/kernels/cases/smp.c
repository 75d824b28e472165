/* Two vCPUs over one memory. */
#include "../kernel.h"

#define ROUNDS 300000

static volatile u64 counter, exchanged;
static volatile unsigned arrived, rung, finished;

static void meet(unsigned count)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    while (arrived < count)
        ;
}

static void increment(void)
{
    for (unsigned each = 0; each < ROUNDS; each++) {
        asm volatile("lock incq %0" : "+m"(counter));
        __atomic_fetch_add(&exchanged, 1, __ATOMIC_SEQ_CST);
    }
}

static void second_increments(void)
{
    meet(2);
    increment();
    finished = 1;
}

static void wait_for_down(void)
{
    while (vcpu_op(VCPUOP_is_up, 1, 0) == 1)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
}

CASE(smp)
{
    check_result(vcpu_op(VCPUOP_is_up, 0, 0), 1, "vCPU 0 is up");
    check_result(vcpu_op(VCPUOP_is_up, 1, 0), 0, "vCPU 1 is not");
    check_refused(vcpu_op(VCPUOP_is_up, 2, 0), "vCPU 2 is none");
    check_refused(vcpu_op(VCPUOP_up, 1, 0), "it cannot go up before it is initialised");
    check_result(start_second(second_increments), 0, "starting it");
    meet(2);
    increment();
    while (!finished)
        ;
    check(counter == 2 * ROUNDS, "lock inc: %lu of %u", counter, 2 * ROUNDS);
    check(exchanged == 2 * ROUNDS, "lock xadd: %lu of %u", exchanged, 2 * ROUNDS);
    wait_for_down();
    vcpu_guest_context_t *context = new_page();
    new_page(); /* it is larger than one page */
    fill_context(context, (void (*)(void))second_start);
    check_refused(vcpu_op(VCPUOP_initialise, 1, context), "initialising it twice");
}

static volatile unsigned pinged;
static volatile unsigned to_first, to_second;

static void pinged_on(unsigned port)
{
    if (port == to_second) {
        pinged++;
        struct evtchn_send send = {.port = to_first};
        HYPERCALL(event_channel_op, EVTCHNOP_send, &send);
    } else {
        rung++;
    }
}

static void second_answers(void)
{
    shared->vcpu_info[1].evtchn_upcall_mask = 0;
    finished = 1;
    while (pinged < 100)
        HYPERCALL(sched_op, SCHEDOP_block, 0);
    finished = 2;
}

static unsigned bind_ipi(unsigned vcpu)
{
    struct evtchn_bind_ipi bind = {.vcpu = vcpu};
    check_result(HYPERCALL(event_channel_op, EVTCHNOP_bind_ipi, &bind), 0, "bind_ipi");
    __atomic_fetch_and(&shared->evtchn_mask[bind.port / 64], ~(1ul << bind.port % 64), __ATOMIC_SEQ_CST);
    return bind.port;
}

CASE(ipi)
{
    port_handler = pinged_on;
    to_first = bind_ipi(0);
    check_result(start_second(second_answers), 0, "starting vCPU 1");
    to_second = bind_ipi(1);
    events_on();
    while (!finished)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
    for (unsigned each = 0; each < 100; each++) {
        struct evtchn_send send = {.port = to_second};
        HYPERCALL(event_channel_op, EVTCHNOP_send, &send);
        while (rung == each) {
            events_off();
            if (rung == each)
                block();
        }
    }
    check(pinged == 100 && rung == 100, "%u interrupts there, %u back", pinged, rung);
    events_on();
    while (finished < 2)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
    wait_for_down();
    check_result(vcpu_op(VCPUOP_is_up, 1, 0), 0, "vCPU 1 is down");
    check_refused(HYPERCALL(vcpu_op, VCPUOP_down, 7, 0), "vCPU 7 cannot go down");
}

static u64 *volatile shown;
static volatile unsigned stage;
static volatile s64 second_fault;

static void second_writes(void)
{
    second_fault = ATTEMPT_ON(1, "movq %0, (%1)", : : "r"(1ul), "r"(FRESH) : "memory");
    stage = 1;
    while (stage < 2)
        ;
    second_fault = ATTEMPT_ON(1, "movq %0, (%1)", : : "r"(pte(root_mfn(), DATA)), "r"(FRESH) : "memory");
    stage = 3;
}

CASE(smp_stale)
{
    /* What one vCPU remembers of a mapping is forgotten when the other one makes a page table of the page. */
    u64 *page = new_page();
    u64 mfn = mfn_of(page);
    protect(page, false);
    map_frame(FRESH, mfn, DATA);
    shown = page;
    check_result(start_second(second_writes), 0, "starting vCPU 1");
    while (stage < 1)
        ;
    check(second_fault == -1 && page[0] == 1, "it writes by a mapping");
    check_result(mmu_update((u64)mfn << 12, 0), 0, "the page is emptied");
    check_result(HYPERCALL(update_va_mapping, FRESH, 0, UVMF_NONE), 0, "unmapped without a flush");
    check_result(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), 0, "and made a page table");
    stage = 2;
    while (stage < 3)
        ;
    check(second_fault == 14 && page[0] == 0, "vCPU 1 cannot write any more: %ld", second_fault);
    wait_for_down();
}

CASE(bad_contexts)
{
    static vcpu_guest_context_t context;
    void (*entry)(void) = (void (*)(void))second_start;
    check_refused(vcpu_op(VCPUOP_initialise, 2, &context), "initialising vCPU 2");
    check_refused(vcpu_op(VCPUOP_initialise, 0xffffffff, &context), "one without number");
    static const u64 addresses[] = {0x0000800000000000, 0xffff7fffffffffff, 0x8000000000000000};
    for (unsigned each = 0; each < 3; each++) {
        u64 bad = addresses[each];
#define REFUSED(change, what)                                                                                      \
    fill_context(&context, entry);                                                                                 \
    change;                                                                                                        \
    check_refused(vcpu_op(VCPUOP_initialise, 1, &context), what)
        REFUSED(context.user_regs.rip = bad, "rip that is not canonical");
        REFUSED(context.event_callback_eip = bad, "an event callback that is not");
        REFUSED(context.failsafe_callback_eip = bad, "a failsafe callback that is not");
        REFUSED(context.syscall_callback_eip = bad, "a syscall callback that is not");
        REFUSED(context.fs_base = bad, "a base of FS that is not");
        REFUSED(context.gs_base_kernel = bad, "a base of GS that is not");
        REFUSED(context.gs_base_user = bad, "a base of the user's GS that is not");
        REFUSED(context.ldt_base = bad; context.ldt_ents = 1, "an LDT that is not");
    }
    REFUSED(context.ctrlreg[3] = 0xfffff000, "a root that is not ours");
    REFUSED(context.ctrlreg[3] = xen_pfn_to_cr3(mfn_of(start_info)), "a root that is a page");
    REFUSED(context.ctrlreg[3] = xen_pfn_to_cr3(entry_address(start_info, 2) >> 12), "a root that is a table of level 2");
    REFUSED(context.ctrlreg[3] = start_info->shared_info, "a root in shared_info");
    REFUSED(context.gdt_ents = 512; context.gdt_frames[0] = root_mfn(), "a GDT that is the root");
    REFUSED(context.gdt_ents = 14 * 512 + 1, "a GDT that is too large");
    REFUSED(context.ldt_base = 0x1000; context.ldt_ents = 8193, "an LDT that is too large");
    check_result(vcpu_op(VCPUOP_is_up, 1, 0), 0, "vCPU 1 is not up");
    check_refused(vcpu_op(VCPUOP_up, 1, 0), "nor can be");
}
