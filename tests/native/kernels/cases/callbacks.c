/* Where a guest may ask Xen to enter it, and on which stack (XSA-193, 215, 259, 444). */
#include "../kernel.h"

CASE(callbacks)
{
    for (unsigned type = 0; type <= CALLBACKTYPE_syscall32; type++) {
        check(set_callback((u16)type, 0, 0x0000800000000000) < 0, "callback %u at a non-canonical address", type);
        check(set_callback((u16)type, 0, 0xdeadbeefdeadbeef) < 0, "callback %u at another", type);
    }
    check_refused(set_callback(6, 0, 0x1000), "a callback without name");
    check_refused(set_callback(99, 0, 0x1000), "another");
    check_refused(HYPERCALL(callback_op, 2, 0), "an operation without name");
    check_refused(set_trap(14, 0, 0x0000800000000000), "a handler at a non-canonical address");
    s64 result = HYPERCALL(set_callbacks, 0x0000800000000000, 0x0000800000000000, 0x0000800000000000);
    check(result <= 0, "set_callbacks with non-canonical addresses: %ld", result);
    u64 value;
    check(try_read((void *)8, &value) == 14, "the page fault handler is as it was");
    /* A handler with a selector of the hypervisor's is given the guest's. */
    trap_info_t table[2] = {{.vector = 6, .cs = 0xe008, .address = (u64)entries[6]}};
    HYPERCALL(set_trap_table, table);
    check(ATTEMPT("ud2", : :) == 6, "a handler with Xen's code segment");
    check_result(HYPERCALL(stack_switch, 0xe010, 0x1000), 0, "a stack segment of the hypervisor's");
    for (unsigned number = 0; number < 4; number++) {
        check(HYPERCALL(set_debugreg, number, 0xffff800000000000) < 0, "breakpoint %u in the hypervisor's part", number);
        check(HYPERCALL(set_debugreg, number, 0xffff830000000000) < 0, "another");
        check(HYPERCALL(set_debugreg, number, 0x0000800000000000) < 0, "breakpoint %u at a non-canonical address", number);
        check_result(HYPERCALL(set_debugreg, number, 0x1000 + number), 0, "a good breakpoint");
        check(HYPERCALL(get_debugreg, number) == 0x1000 + number, "is there");
    }
    check_refused(HYPERCALL(set_debugreg, 8, 0), "debug register 8");
    result = HYPERCALL(set_debugreg, 7, 1ul << 13 | 0xffffffff00000000);
    check(result <= 0 && !(HYPERCALL(get_debugreg, 7) & (1ul << 13 | 0xffffffff00000000ul)),
          "DR7 with general detection and high bits: %ld", result);
    result = HYPERCALL(vm_assist, VMASST_CMD_enable, 63);
    check_refused(result, "an assistance without name");
    check_refused(HYPERCALL(vm_assist, 2, VMASST_TYPE_architectural_iopl), "an assistance neither enabled nor disabled");
    check_result(HYPERCALL(vm_assist, VMASST_CMD_enable, VMASST_TYPE_architectural_iopl), 0, "architectural iopl");
}

/* Ends of the domain: it has left no way to be told what happened. */

CASE(stack_in_hole)
{
    static const u8 code[] = {0x0f, 0x0b}; /* ud2 */
    make_user(code, sizeof code);
    HYPERCALL(stack_switch, FLAT_KERNEL_SS, HYPERVISOR_VIRT_START + 0x40);
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    print("went on");
}

CASE(stack_above_hole)
{
    static const u8 code[] = {0x0f, 0x0b};
    make_user(code, sizeof code);
    HYPERCALL(stack_switch, FLAT_KERNEL_SS, HYPERVISOR_VIRT_END + 0x20);
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    print("went on");
}

CASE(stack_at_zero)
{
    static const u8 code[] = {0x0f, 0x05}; /* syscall */
    make_user(code, sizeof code);
    HYPERCALL(stack_switch, FLAT_KERNEL_SS, 0);
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    print("went on");
}

CASE(stack_in_table)
{
    static const u8 code[] = {0x0f, 0x0b};
    make_user(code, sizeof code);
    HYPERCALL(stack_switch, FLAT_KERNEL_SS, start_info->pt_base + PAGE);
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    print("went on");
}

CASE(no_handler)
{
    HYPERCALL(set_trap_table, 0);
    asm volatile("ud2");
    print("went on");
}

CASE(handler_in_hole)
{
    set_trap(6, 0, HYPERVISOR_VIRT_START + 0x1000);
    set_trap(14, 0, HYPERVISOR_VIRT_START + 0x1000);
    asm volatile("ud2");
    print("went on");
}

CASE(endless_faults)
{
    /* The handler itself is not mapped: each fault is met by another, further down the stack, to its end. */
    set_trap(14, 0, 0x123000);
    asm volatile("movq 8, %%rax" : : : "rax", "memory");
    print("went on");
}

CASE(iret_without_frame)
{
    asm volatile("movq %0, %%rsp\n\tsyscall" : : "r"(0x1000ul), "a"(__HYPERVISOR_iret));
    print("went on");
}

CASE(iret_frame_in_hole)
{
    asm volatile("movq %0, %%rsp\n\tsyscall" : : "r"(HYPERVISOR_VIRT_START), "a"(__HYPERVISOR_iret));
    print("went on");
}

CASE(user_without_root)
{
    run_user((u64)USER_CODE, FLAT_USER_CS, USER_FLAGS);
    print("went on");
}

CASE(bad_root_loaded)
{
    u64 empty = new_table();
    mmuext(MMUEXT_PIN_L4_TABLE, empty, 0);
    mmuext(MMUEXT_NEW_BASEPTR, empty, 0); /* nothing is mapped any more */
    print("went on");
}
