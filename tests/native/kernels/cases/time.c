/* System time never goes back; timers come, and not early (XSA-20, 221). */
#include "../kernel.h"

static volatile unsigned ticks;
static volatile u64 last_tick;

static void tick(unsigned port)
{
    (void)port;
    ticks++;
    last_tick = system_time();
}

CASE(clock)
{
    u64 last = system_time();
    unsigned backwards = 0, moved = 0;
    for (unsigned each = 0; each < 200000; each++) {
        u64 now = system_time();
        backwards += now < last;
        moved += now > last;
        last = now;
        if (each % 50000 == 0)
            HYPERCALL(sched_op, SCHEDOP_yield, 0);
    }
    check(!backwards, "%u steps back", backwards);
    check(moved > 100, "the clock moves");
    struct vcpu_runstate_info state;
    check_result(vcpu_op(VCPUOP_get_runstate_info, 0, &state), 0, "runstate");
    check(state.state == RUNSTATE_running, "is running");
    check(state.state_entry_time <= system_time(), "since %lu", state.state_entry_time);
    static struct vcpu_runstate_info area;
    struct vcpu_register_runstate_memory_area request = {.addr.v = &area};
    check_result(vcpu_op(VCPUOP_register_runstate_memory_area, 0, &request), 0, "a place for the runstate");
    u64 before;
    unsigned tries = 0;
    do { /* who is executed too late has nothing to wait for */
        before = system_time();
        struct sched_poll poll = {.timeout = before + 2000000};
        HYPERCALL(sched_op, SCHEDOP_poll, &poll);
    } while (!area.time[RUNSTATE_blocked] && ++tries < 1000);
    check(system_time() >= before + 2000000, "a poll of no port takes until its timeout");
    check(area.state == RUNSTATE_running && area.state_entry_time >= before && area.time[RUNSTATE_blocked] > 0,
          "the runstate is kept up to date: %lu us blocked", area.time[RUNSTATE_blocked] / 1000);
    check(shared->wc_sec > 1600000000, "wallclock %u", shared->wc_sec);
}

CASE(timers)
{
    port_handler = tick;
    bind_virq(VIRQ_TIMER, 0);
    events_off();
    u64 due = system_time() + 3000000;
    check_result(HYPERCALL(set_timer_op, due), 0, "set_timer_op");
    while (!ticks) {
        block();
        events_off();
    }
    check(ticks == 1 && last_tick >= due, "a timer ends a block, %ld us late", (s64)(last_tick - due) / 1000);
    ticks = 0;
    struct vcpu_set_singleshot_timer shot = {.timeout_abs_ns = due, .flags = VCPU_SSHOTTMR_future};
    s64 result = vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    check(result == -62 || !result, "a timer in the past: %ld", result); /* Xen may ignore the flag */
    events_on();
    events_off();
    ticks = 0;
    shot = (struct vcpu_set_singleshot_timer){.timeout_abs_ns = due};
    check_result(vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot), 0, "without the flag");
    while (!ticks) {
        block();
        events_off();
    }
    check(ticks == 1, "comes at once");
    ticks = 0;
    shot.timeout_abs_ns = due = system_time() + 2000000;
    vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    events_on();
    while (!ticks)
        ; /* the upcall interrupts this loop */
    check(last_tick >= due, "a timer interrupts a busy loop");
    ticks = 0;
    shot.timeout_abs_ns = system_time() + 3000000;
    vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    check_result(vcpu_op(VCPUOP_stop_singleshot_timer, 0, 0), 0, "a timer is stopped");
    bool late = system_time() >= shot.timeout_abs_ns; /* this vCPU has not been executed for as long */
    u64 until = shot.timeout_abs_ns + 3000000;
    while (system_time() < until)
        ;
    check(!ticks || late, "and does not come");
    struct vcpu_set_periodic_timer period = {.period_ns = 1000000};
    check_result(vcpu_op(VCPUOP_set_periodic_timer, 0, &period), 0, "a periodic timer");
    u64 began = system_time();
    while (ticks < 5) {
        events_off();
        if (ticks < 5)
            block();
    }
    events_on();
    check(system_time() - began >= 4000000, "5 ticks take %lu us", (system_time() - began) / 1000);
    check_result(vcpu_op(VCPUOP_stop_periodic_timer, 0, 0), 0, "it is stopped");
    ticks = 0;
    until = system_time() + 5000000;
    while (system_time() < until)
        ;
    check(ticks <= 1, "and does not come");
    static const u64 strange[] = {0, 1, 99999, 1ul << 62, (1ul << 63) - 1, 1ul << 63, ~0ul, ~0ul - 1};
    for (unsigned each = 0; each < sizeof strange / 8; each++) {
        period.period_ns = strange[each];
        result = vcpu_op(VCPUOP_set_periodic_timer, 0, &period);
        check(result <= 0, "a period of %lu ns: %ld", strange[each], result);
        shot.timeout_abs_ns = strange[each];
        result = vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
        check(result <= 0, "a timer at %lu ns: %ld", strange[each], result);
        result = HYPERCALL(set_timer_op, strange[each]);
        check(result <= 0, "the same by set_timer_op: %ld", result);
    }
    vcpu_op(VCPUOP_stop_periodic_timer, 0, 0);
    HYPERCALL(set_timer_op, 0);
    check_refused(vcpu_op(VCPUOP_set_singleshot_timer, 1, &shot), "a timer of another vCPU");
    events_off();
    ticks = 0;
    until = system_time() + 2000000;
    evtchn_port_t ports[1] = {4095};
    struct sched_poll poll = {.nr_ports = 1, .timeout = until};
    set_xen_guest_handle(poll.ports, ports);
    check_result(HYPERCALL(sched_op, SCHEDOP_poll, &poll), 0, "a poll");
    check(system_time() >= until, "ends at its timeout, %ld us late", (s64)(system_time() - until) / 1000);
    ports[0] = 4096;
    check_refused(HYPERCALL(sched_op, SCHEDOP_poll, &poll), "a poll of a port that cannot be");
    ports[0] = 0xffffffff;
    check_refused(HYPERCALL(sched_op, SCHEDOP_poll, &poll), "of another");
    poll.nr_ports = 129;
    check_refused(HYPERCALL(sched_op, SCHEDOP_poll, &poll), "of too many");
}
