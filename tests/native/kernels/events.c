/* Event channels, the clock, and the second vCPU. */
#include "kernel.h"

extern u8 second_entry_stack_top[];
void (*second_program)(void);

u64 bind_virq(unsigned virq, unsigned vcpu)
{
    struct evtchn_bind_virq bind = {.virq = virq, .vcpu = vcpu};
    check_result(HYPERCALL(event_channel_op, EVTCHNOP_bind_virq, &bind), 0, "bind_virq");
    __atomic_fetch_and(&shared->evtchn_mask[bind.port / 64], ~(1ul << bind.port % 64), __ATOMIC_SEQ_CST);
    return bind.port;
}

void events_on(void)
{
    volatile vcpu_info_t *info = &shared->vcpu_info[0];
    info->evtchn_upcall_mask = 0;
    if (info->evtchn_upcall_pending)
        HYPERCALL(xen_version, XENVER_version, 0); /* any hypercall: Xen looks when it returns */
}

void events_off(void)
{
    ((volatile vcpu_info_t *)&shared->vcpu_info[0])->evtchn_upcall_mask = 1;
}

void block(void)
{
    HYPERCALL(sched_op, SCHEDOP_block, 0);
}

u64 system_time(void)
{
    volatile vcpu_time_info_t *time = &shared->vcpu_info[0].time;
    u32 version;
    u64 now;
    do {
        version = time->version & ~1u;
        asm volatile("" : : : "memory");
        u32 low, high;
        asm volatile("rdtsc" : "=a"(low), "=d"(high));
        u64 ticks = ((u64)high << 32 | low) - time->tsc_timestamp;
        ticks = time->tsc_shift >= 0 ? ticks << time->tsc_shift : ticks >> -time->tsc_shift;
        now = time->system_time + (u64)(((unsigned __int128)ticks * time->tsc_to_system_mul) >> 32);
        asm volatile("" : : : "memory");
    } while (time->version != version);
    return now;
}

s64 vcpu_op(unsigned command, unsigned vcpu, void *argument)
{
    return HYPERCALL(vcpu_op, command, vcpu, argument);
}

void fill_context(vcpu_guest_context_t *context, void (*entry)(void))
{
    memset(context, 0, sizeof *context);
    context->flags = VGCF_in_kernel;
    context->user_regs.rip = (u64)entry;
    context->user_regs.cs = FLAT_KERNEL_CS;
    context->user_regs.ss = FLAT_KERNEL_SS;
    context->user_regs.rflags = 2;
    context->kernel_ss = FLAT_KERNEL_SS;
    context->kernel_sp = (u64)second_entry_stack_top;
    context->ctrlreg[3] = xen_pfn_to_cr3(root_mfn());
    context->event_callback_eip = (u64)event_entry;
    context->failsafe_callback_eip = (u64)failsafe_entry;
    context->syscall_callback_eip = (u64)syscall_entry;
    for (unsigned vector = 0; vector < 256; vector++) {
        context->trap_ctxt[vector].vector = (u8)vector;
        context->trap_ctxt[vector].cs = FLAT_KERNEL_CS;
        context->trap_ctxt[vector].address = (u64)entries[vector];
    }
}

void second_main(void)
{
    second_program();
    vcpu_op(VCPUOP_down, 1, 0);
    for (;;)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
}

s64 start_second(void (*program)(void))
{
    static vcpu_guest_context_t context;
    second_program = program;
    fill_context(&context, (void (*)(void))second_start);
    s64 result = vcpu_op(VCPUOP_initialise, 1, &context);
    return result ? result : vcpu_op(VCPUOP_up, 1, 0);
}
