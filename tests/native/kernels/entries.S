/* Where Xen enters the kernel: exceptions, software interrupts, the callbacks. Each builds a `struct frame` above what
 * Xen has pushed (rcx, r11, an error code for some exceptions, then rip, cs, rflags, rsp, ss), calls entered(frame)
 * and goes back by the iret hypercall. */
#define __ASSEMBLY__
#include <xen/xen.h>
#include "entry_numbers.h"

    .text

.macro entry_without_error number
    .balign 16
    popq %rcx
    popq %r11
    pushq $0
    pushq $\number
    jmp enter
.endm

.macro entry_with_error number
    .balign 16
    popq %rcx
    popq %r11
    pushq $\number
    jmp enter
.endm

    .globl entries
    .balign 16
entries:    /* 16 bytes each: vector 0 to 255, then the callbacks */
.altmacro
.set vector, 0
.rept 256
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
        entry_with_error %vector
    .else
        entry_without_error %vector
    .endif
    .set vector, vector + 1
.endr
.noaltmacro

    .globl syscall_entry, syscall32_entry, sysenter_entry, event_entry, failsafe_entry
syscall_entry:      entry_without_error ENTRY_SYSCALL
syscall32_entry:    entry_without_error ENTRY_SYSCALL32
sysenter_entry:     entry_without_error ENTRY_SYSENTER
event_entry:        entry_without_error ENTRY_EVENT
    .balign 16
failsafe_entry:     /* ds, es, fs and gs lie between r11 and rip */
    popq %rcx
    popq %r11
    addq $32, %rsp
    pushq $0
    pushq $ENTRY_FAILSAFE

enter:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    call entered
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    pushq $0        /* flags: restore rcx and r11, too */
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $__HYPERVISOR_iret, %eax
    syscall
    ud2

    /* void enter_user(const struct iret_context *frame, struct user_registers *): comes back when leave_user() is
     * called from an entry. */
    .globl enter_user, leave_user
enter_user:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, left_at(%rip)
    pushq 64(%rdi)
    pushq 56(%rdi)
    pushq 48(%rdi)
    pushq 40(%rdi)
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq 8(%rdi)
    pushq (%rdi)
    movl $__HYPERVISOR_iret, %eax
    syscall
    ud2
leave_user:
    movq left_at(%rip), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .bss
    .balign 8
left_at: .quad 0

    .section .note.GNU-stack, "", @progbits
