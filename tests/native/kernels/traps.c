/* What enters the kernel: attempts go on behind the instruction that faulted, user mode is left, events are handed
 * to port_handler; everything else ends the domain. */
#include "kernel.h"

struct attempt probes[2];
struct user_exit user_exit;
bool (*entry_hook)(struct frame *);
void (*port_handler)(unsigned port);
extern u8 second_stack[], second_stack_top[];

static void take_events(unsigned vcpu)
{
    vcpu_info_t *info = &shared->vcpu_info[vcpu];
    info->evtchn_upcall_pending = 0;
    u64 words = __atomic_exchange_n(&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    while (words) {
        unsigned word = (unsigned)__builtin_ctzl(words);
        words &= words - 1;
        u64 ports = shared->evtchn_pending[word] & ~shared->evtchn_mask[word];
        while (ports) {
            unsigned bit = (unsigned)__builtin_ctzl(ports);
            ports &= ports - 1;
            __atomic_fetch_and(&shared->evtchn_pending[word], ~(1ul << bit), __ATOMIC_SEQ_CST);
            if (port_handler)
                port_handler(word * 64 + bit);
        }
    }
}

void entered(struct frame *frame)
{
    u8 *stack = (u8 *)frame;
    unsigned vcpu = stack >= second_stack && stack < second_stack_top;
    if (entry_hook && entry_hook(frame))
        return;
    if (frame->number == ENTRY_EVENT) {
        take_events(vcpu);
        return;
    }
    if (probes[vcpu].resume && (frame->cs & 3) != 3) {
        probes[vcpu].vector = (s64)frame->number;
        probes[vcpu].error = frame->error;
        probes[vcpu].address = shared->vcpu_info[vcpu].arch.cr2;
        probes[vcpu].rip = frame->rip;
        frame->rip = probes[vcpu].resume;
        frame->rflags &= ~FLAG_TF;
        probes[vcpu].resume = 0;
        return;
    }
    if ((frame->cs & 3) == 3) {
        user_exit.number = frame->number;
        user_exit.error = frame->error;
        user_exit.address = shared->vcpu_info[vcpu].arch.cr2;
        user_exit.frame = *frame;
        leave_user();
    }
    print("unexpected entry %lx, error %lx, rip %lx, cs %lx, rflags %lx, rsp %lx, cr2 %lx", frame->number,
          frame->error, frame->rip, frame->cs, frame->rflags, frame->rsp, shared->vcpu_info[vcpu].arch.cr2);
    shut_down(SHUTDOWN_crash);
}

s64 set_trap(u8 vector, u8 flags, u64 address)
{
    trap_info_t table[2] = {{.vector = vector, .flags = flags, .cs = FLAT_KERNEL_CS, .address = address}};
    return HYPERCALL(set_trap_table, table);
}

s64 set_callback(u16 type, u16 flags, u64 address)
{
    struct callback_register callback = {.type = type, .flags = flags, .address = address};
    return HYPERCALL(callback_op, CALLBACKOP_register, &callback);
}

void set_traps(void)
{
    trap_info_t table[22];
    memset(table, 0, sizeof table);
    for (u8 vector = 0; vector < 20; vector++) {
        table[vector].vector = vector;
        table[vector].flags = vector == 3 || vector == 4 ? 3 : 0;
        table[vector].cs = FLAT_KERNEL_CS;
        table[vector].address = (u64)entries[vector];
    }
    table[20].vector = 0x80;
    table[20].flags = 3;
    table[20].cs = FLAT_KERNEL_CS;
    table[20].address = (u64)entries[0x80];
    check_result(HYPERCALL(set_trap_table, table), 0, "set_trap_table");
    set_callback(CALLBACKTYPE_event, 0, (u64)event_entry);
    set_callback(CALLBACKTYPE_failsafe, CALLBACKF_mask_events, (u64)failsafe_entry);
    set_callback(CALLBACKTYPE_syscall, CALLBACKF_mask_events, (u64)syscall_entry);
    set_callback(CALLBACKTYPE_syscall32, CALLBACKF_mask_events, (u64)syscall32_entry);
    set_callback(CALLBACKTYPE_sysenter, CALLBACKF_mask_events, (u64)sysenter_entry);
}

s64 try_read(const void *address, u64 *value)
{
    u64 read = 0;
    s64 vector = ATTEMPT("movq (%1), %0", : "+r"(read) : "r"(address) : "memory");
    *value = read;
    return vector;
}

s64 try_write(void *address, u64 value)
{
    return ATTEMPT("movq %0, (%1)", : : "r"(value), "r"(address) : "memory");
}
