/* The notes by which a domain builder knows a Xen kernel, and the entry of the first vCPU and of any other one. */
#define __ASSEMBLY__
#include <xen/elfnote.h>

.macro note type kind value:vararg
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  \kind \value
2:  .balign 4
    .popsection
.endm

    note XEN_ELFNOTE_GUEST_OS .asciz "domzero-test"
    note XEN_ELFNOTE_GUEST_VERSION .asciz "1"
    note XEN_ELFNOTE_XEN_VERSION .asciz "xen-3.0"
    note XEN_ELFNOTE_LOADER .asciz "generic"
    note XEN_ELFNOTE_VIRT_BASE .quad 0xffffffff80000000
    note XEN_ELFNOTE_PADDR_OFFSET .quad 0
    note XEN_ELFNOTE_ENTRY .quad _start
    note XEN_ELFNOTE_HYPERCALL_PAGE .quad hypercall_page
    note XEN_ELFNOTE_FEATURES .asciz "!writable_page_tables|pae_pgdir_above_4gb"

    .section .hypercall_page, "ax", @progbits
    .globl hypercall_page
    .balign 4096
hypercall_page:
    .skip 4096, 0x90

    .text
    .globl _start
_start:
    cld
    leaq first_stack_top(%rip), %rsp
    movq %rsi, %rdi
    call kernel_main
1:  jmp 1b

    .globl second_start
second_start:
    cld
    leaq second_stack_top(%rip), %rsp
    call second_main
1:  jmp 1b

    .bss
    .balign 4096
    .globl first_stack_top, second_stack, second_stack_top, entry_stack_top, second_entry_stack, second_entry_stack_top
    .skip 16384
first_stack_top:
second_stack:
    .skip 16384
second_stack_top:
    /* The stacks that Xen switches to when a vCPU leaves its user mode. */
    .skip 16384
entry_stack_top:
second_entry_stack:
    .skip 16384
second_entry_stack_top:

    .section .note.GNU-stack, "", @progbits
