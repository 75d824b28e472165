/* Breakpoints, single steps of user mode, and NMIs. */
#include "../kernel.h"
#include <xen/nmi.h>

static unsigned stops;
static u64 stopped_at, why;

static bool note_stop(struct frame *frame)
{
    if (frame->number != 1)
        return false;
    stops++;
    stopped_at = frame->rip;
    why = (u64)HYPERCALL(get_debugreg, 6);
    HYPERCALL(set_debugreg, 6, 0);
    frame->rflags |= 1ul << 16; /* RF: go on at a breakpoint on an instruction */
    return true;
}

static __attribute__((noinline)) void stop_here(void)
{
    asm volatile(".globl stop_address\nstop_address: nop");
}
extern const u8 stop_address[];

CASE(breakpoints)
{
    entry_hook = note_stop;
    HYPERCALL(set_debugreg, 1, stop_address);
    check_result(HYPERCALL(set_debugreg, 7, 4), 0, "one on an instruction");
    stop_here();
    check(stops == 1 && why & 2 && stopped_at == (u64)stop_address, "is met before it: %u, %lx, %lx", stops, why,
          stopped_at - (u64)stop_address);
    stop_here();
    check(stops == 2, "and again: %u", stops);
    HYPERCALL(set_debugreg, 7, 0);
    stop_here();
    check(stops == 2, "and not any more");
}

static unsigned interrupts, nested;
static bool inside;

static bool note_interrupt(struct frame *frame)
{
    if (frame->number != 2)
        return false;
    interrupts++;
    nested += inside;
    inside = true;
    if (interrupts == 1)
        vcpu_op(VCPUOP_send_nmi, 0, 0);
    HYPERCALL(xen_version, XENVER_version, 0);
    inside = false;
    return true;
}

CASE(nmi)
{
    entry_hook = note_interrupt;
    check_refused(vcpu_op(VCPUOP_send_nmi, 7, 0), "an NMI for vCPU 7");
    check_refused(set_callback(CALLBACKTYPE_nmi, 0, 0x0000800000000000), "a handler at a non-canonical address");
    struct xennmi_callback callback = {.handler_address = 0x0000800000000000};
    check_refused(HYPERCALL(nmi_op, XENNMI_register_callback, &callback), "the same by nmi_op");
    check_result(set_callback(CALLBACKTYPE_nmi, 0, (u64)entries[2]), 0, "a handler");
    check_result(vcpu_op(VCPUOP_send_nmi, 0, 0), 0, "an NMI");
    HYPERCALL(xen_version, XENVER_version, 0);
    check(interrupts == 2 && !nested, "comes, and one that was sent meanwhile comes behind it: %u, %u nested", interrupts,
          nested);
    check_result(HYPERCALL(nmi_op, XENNMI_unregister_callback, 0), 0, "no handler");
    s64 result = vcpu_op(VCPUOP_send_nmi, 0, 0);
    HYPERCALL(xen_version, XENVER_version, 0);
    check(interrupts == 2, "none comes then: %ld", result);
}
