# A 32-bit program without a C library: each way into and out of the kernel, TLS and LDT segments, signals, a visit to
# 64-bit mode, forks. It prints a line for each thing that works, and stops at the first that does not.

        .intel_syntax noprefix
        .globl  _start

        .macro  system number
        mov     eax, \number
        int     0x80
        .endm

        .macro  say text
        jmp     8f
9:      .ascii  "\text\n"
7:
8:      mov     ebx, 1
        lea     ecx, [9b]
        mov     edx, 7b - 9b
        system  4                       # write
        .endm

        .text
_start:
        mov     ebp, esp
        say     "int 0x80"

        # AT_SYSINFO of the auxiliary vector: the vDSO's entry, by SYSENTER or SYSCALL
        mov     eax, [ebp]
        lea     esi, [ebp + eax * 4 + 8]
environment:
        cmp     dword ptr [esi], 0
        lea     esi, [esi + 4]
        jne     environment
auxiliary:
        mov     eax, [esi]
        add     esi, 8
        cmp     eax, 0
        je      bad
        cmp     eax, 32
        jne     auxiliary
        mov     edi, [esi - 4]
        system  20                      # getpid
        mov     [process], eax
        mov     dword ptr [count], 1000
through_vdso:
        mov     eax, 20
        call    edi
        cmp     eax, [process]
        jne     bad
        dec     dword ptr [count]
        jnz     through_vdso
        say     "1000 calls through the vDSO"

        lea     ebx, [tls_descriptor]
        system  243                     # set_thread_area
        test    eax, eax
        jnz     bad
        mov     eax, [tls_descriptor]
        lea     eax, [eax * 8 + 3]
        mov     gs, ax
        call    sleep
        mov     eax, gs:[0]
        cmp     eax, [datum]
        jne     bad
        say     "TLS"

        mov     ebx, 1
        lea     ecx, [ldt_descriptor]
        mov     edx, 16
        system  123                     # modify_ldt
        test    eax, eax
        jnz     bad
        mov     eax, 7
        mov     fs, ax
        call    sleep
        mov     eax, fs:[0]
        cmp     eax, [datum]
        jne     bad
        mov     eax, gs:[0]
        cmp     eax, [datum]
        jne     bad
        say     "LDT"

        mov     ebx, 10                 # SIGUSR1
        lea     ecx, [on_signal]
        call    set_handler
        mov     ebx, [process]
        mov     ecx, 10
        system  37                      # kill
        cmp     dword ptr [seen], 1
        jne     bad
        mov     eax, fs:[0]
        cmp     eax, [datum]
        jne     bad
        say     "a signal"

        mov     ebx, 11                 # SIGSEGV
        lea     ecx, [on_fault]
        call    set_handler
        hlt                             # a general protection fault
        cmp     dword ptr [seen], 2
        jne     bad
        int     0x81                    # another
        nop
        cmp     dword ptr [seen], 3
        jne     bad
        say     "faults"

        push    cs
        lea     eax, [returned]
        push    eax
        lea     esi, [visited]
        ljmp    0x33, offset long_mode
        .code64
long_mode:
        mov     dword ptr [rsi], 64
        mov     rax, -1
        lretd
        .code32
returned:
        cmp     dword ptr [visited], 64
        jne     bad
        say     "64-bit mode and back"

        mov     dword ptr [count], 20
again:
        system  2                       # fork
        test    eax, eax
        jz      leave
        mov     ebx, eax
        xor     ecx, ecx
        xor     edx, edx
        system  7                       # waitpid
        dec     dword ptr [count]
        jnz     again
        say     "20 forks"
leave:
        xor     ebx, ebx
        system  1                       # exit
bad:
        say     "and then it failed"
        mov     ebx, 1
        system  1

sleep:
        lea     ebx, [duration]
        xor     ecx, ecx
        system  162                     # nanosleep
        ret

set_handler:                            # ebx: signal, ecx: struct sigaction
        xor     edx, edx
        mov     esi, 8
        system  174                     # rt_sigaction
        test    eax, eax
        jnz     bad
        ret

signalled:
        inc     dword ptr [seen]
        ret
faulted:                                # EIP of sigcontext: behind the return address and the signal's number
        inc     dword ptr [seen]
        inc     dword ptr [esp + 8 + 56]
        cmp     dword ptr [seen], 3
        jne     one_byte
        inc     dword ptr [esp + 8 + 56]
one_byte:
        ret
restore:
        pop     eax
        system  119                     # sigreturn

        .data
process:        .long   0
count:          .long   0
seen:           .long   0
visited:        .long   0
datum:          .long   0x1234abcd
tls_descriptor: .long   -1, datum, 0xfffff, 0x51
ldt_descriptor: .long   0, datum, 0xfffff, 0x51
duration:       .long   0, 5000000
on_signal:      .long   signalled, 0x04000000, restore, 0, 0
on_fault:       .long   faulted, 0x04000000, restore, 0, 0
