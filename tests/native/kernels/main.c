/* The case that the command line names, from power-on to power-off. */
#include "kernel.h"

start_info_t *start_info;
shared_info_t *shared;
extern const struct test_case *const cases_start[], *const cases_end[];
extern u8 entry_stack_top[];
static u8 shared_page[PAGE] __attribute__((aligned(4096)));
static unsigned checked, failed;

void check_counted(bool good)
{
    checked++;
    failed += !good;
}

static bool named(const char *line, const char *name)
{
    while (*name)
        if (*line++ != *name++)
            return false;
    return *line == 0 || *line == ' ';
}

u64 argument(unsigned index)
{
    const char *at = (const char *)start_info->cmd_line;
    for (index++; index; index--) {
        while (*at && *at != ' ')
            at++;
        if (!*at)
            return 0;
        at++;
    }
    u64 value = 0;
    while (*at >= '0' && *at <= '9')
        value = value * 10 + (u64)(*at++ - '0');
    return value;
}

void shut_down(unsigned reason)
{
    struct sched_shutdown how = {.reason = reason};
    HYPERCALL(sched_op, SCHEDOP_shutdown, &how);
    for (;;)
        HYPERCALL(sched_op, SCHEDOP_yield, 0);
}

void kernel_main(start_info_t *start)
{
    start_info = start;
    update_va(shared_page, start->shared_info | DATA);
    shared = (shared_info_t *)shared_page;
    memset(shared->evtchn_mask, 0xff, sizeof shared->evtchn_mask);
    set_traps();
    HYPERCALL(stack_switch, FLAT_KERNEL_SS, entry_stack_top);
    for (const struct test_case *const *each = cases_start; each < cases_end; each++)
        if (named((const char *)start->cmd_line, (*each)->name)) {
            (*each)->run();
            print("%u checks, %u failed", checked, failed);
            shut_down(SHUTDOWN_poweroff);
        }
    print("no case '%s'", (const char *)start->cmd_line);
    shut_down(SHUTDOWN_crash);
}
