/* What a guest sees of the time that others had the processors. */
#include "../kernel.h"

CASE(stolen)
{
    /* Computes until argument 0 milliseconds were stolen from it. */
    static struct vcpu_runstate_info area;
    struct vcpu_register_runstate_memory_area request = {.addr.v = &area};
    check_result(vcpu_op(VCPUOP_register_runstate_memory_area, 0, &request), 0, "a place for the runstate");
    struct vcpu_runstate_info state;
    u64 wanted = argument(0) * 1000000, backwards = 0, before = 0;
    vcpu_op(VCPUOP_get_runstate_info, 0, &state);
    u64 began = system_time(), ran = state.time[RUNSTATE_running];
    wanted += state.time[RUNSTATE_runnable];
    do {
        vcpu_op(VCPUOP_get_runstate_info, 0, &state);
        backwards += state.time[RUNSTATE_runnable] < before;
        before = state.time[RUNSTATE_runnable];
    } while (before < wanted);
    u64 sum = state.time[RUNSTATE_running] + before + state.time[RUNSTATE_blocked] + state.time[RUNSTATE_offline];
    check(!backwards, "stolen time goes back %lu times", backwards);
    check(sum <= system_time(), "the states have lasted %lu of %lu us", sum / 1000, system_time() / 1000);
    check(state.time[RUNSTATE_running] > ran && state.state == RUNSTATE_running, "it has run, too");
    check(area.time[RUNSTATE_runnable] >= wanted / 2, "the copy says so: %lu us", area.time[RUNSTATE_runnable] / 1000);
    check(system_time() - began >= argument(0) * 1000000, "it took longer than that");
}
