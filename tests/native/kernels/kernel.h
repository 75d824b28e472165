/* What the cases are written with: hypercalls, checks, attempts that may fault, page tables, user mode, events.
 *
 * A case is a function of this kernel: the domain's command line names it. It prints a line for each check, and the
 * kernel powers off after it. Addresses, frames and values are u64 throughout. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <xen/xen.h>
#include <xen/callback.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#include "entry_numbers.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

/* Cases */

struct test_case {
    const char *name;
    void (*run)(void);
};

#define CASE(title)                                                                                                \
    static void case_##title(void);                                                                                \
    static const struct test_case entry_##title = {#title, case_##title};                                          \
    static const struct test_case *const listed_##title __attribute__((section(".cases"), used)) = &entry_##title; \
    static void case_##title(void)

extern start_info_t *start_info;
extern shared_info_t *shared;
u64 argument(unsigned index); /* the number after the case's name on the command line, 0 if there is none */

void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void check(bool good, const char *what, ...) __attribute__((format(printf, 2, 3)));
void check_refused(s64 result, const char *what); /* a negative errno */
void check_result(s64 result, s64 expected, const char *what);
_Noreturn void shut_down(unsigned reason);
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);

/* Hypercalls */

static inline s64 hypercall(u64 number, u64 a, u64 b, u64 c, u64 d, u64 e)
{
    register u64 r10 asm("r10") = d;
    register u64 r8 asm("r8") = e;
    u64 result = number;
    asm volatile("syscall" : "+a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8) : : "rcx", "r11", "memory");
    return (s64)result;
}

#define HYPERCALL(name, ...) HYPERCALL_(name, ##__VA_ARGS__, 0, 0, 0, 0, 0)
#define HYPERCALL_(name, a, b, c, d, e, ...)                                                                       \
    hypercall(__HYPERVISOR_##name, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e))

s64 mmu_update(u64 pointer, u64 value); /* of one entry: machine address and command, value */
s64 mmuext(unsigned command, u64 mfn, u64 second);
s64 update_va(void *address, u64 entry); /* with UVMF_INVLPG */
void forget(const void *address);        /* its translation */
s64 vcpu_op(unsigned command, unsigned vcpu, void *argument);

/* Attempts: an instruction that may fault, and what came of it */

struct attempt {
    volatile u64 resume; /* where to go on when it faults; 0 between attempts */
    volatile s64 vector; /* -1: it did not fault */
    volatile u64 error;
    volatile u64 address; /* of a page fault */
    volatile u64 rip;
};
extern struct attempt probes[2]; /* by vCPU */
#define probe (probes[0])

#define ATTEMPT_ON(vcpu, instruction, ...)                                                                         \
    ({                                                                                                             \
        probes[vcpu].vector = -1;                                                                                  \
        asm volatile("movq $771f, probes+" #vcpu "*40(%%rip)\n\t" instruction                                      \
                     "\n771:\tmovq $0, probes+" #vcpu "*40(%%rip)" __VA_ARGS__);                                   \
        probes[vcpu].vector;                                                                                       \
    })
#define ATTEMPT(instruction, ...) ATTEMPT_ON(0, instruction, __VA_ARGS__)

s64 try_read(const void *address, u64 *value); /* vector or -1 */
s64 try_write(void *address, u64 value);

/* Entries */

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 number, error;
    u64 rip, cs, rflags, rsp, ss;
};

extern const u8 entries[][16];
extern const u8 syscall_entry[], syscall32_entry[], sysenter_entry[], event_entry[], failsafe_entry[];
extern bool (*entry_hook)(struct frame *); /* sees every entry first; true: has dealt with it */
void set_traps(void);
s64 set_trap(u8 vector, u8 flags, u64 address);
s64 set_callback(u16 type, u16 flags, u64 address);

/* Page tables. Memory that the kernel allocates lies in its own image: mapped writable, one page each. */

#define PAGE 4096ul
#define VIRT_BASE 0xffffffff80000000ul
#define PTE_P 1ul
#define PTE_W 2ul
#define PTE_U 4ul
#define PTE_A 0x20ul
#define PTE_D 0x40ul
#define PTE_PSE 0x80ul
#define PTE_NX (1ul << 63)
#define TABLE (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define DATA (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define READ_ONLY (PTE_P | PTE_U | PTE_A | PTE_D)
#define PTE_G 0x100ul /* Xen sets it where it likes */
#define MFN_BITS 0x000ffffffffff000ul

static inline u64 pte(u64 mfn, u64 flags)
{
    return mfn << 12 | flags;
}

extern u8 image_end[];
void *new_page(void);                        /* zeroed, page aligned */
u64 pfn_of(const void *address);             /* of memory in the initial mapping */
u64 mfn_of(const void *address);
void *virtual_of(u64 mfn);                   /* where the initial mapping has a frame of ours */
u64 root_mfn(void);
u64 entry_address(const void *address, unsigned level); /* machine address of the entry of level 1 to 4; 0: none */
u64 entry_value(const void *address, unsigned level);
s64 protect(void *page, bool writable);      /* in the initial mapping */
u64 new_table(void);                         /* mfn of a zeroed page that is mapped read-only */
void make_tables(void *address);             /* so that level 1 has an entry for it */
s64 map_frame(void *address, u64 mfn, u64 flags);

#define FRESH ((u8 *)0x0000500000000000ul)   /* an L4 slot that the builder leaves alone */

/* User mode */

extern struct user_exit {
    u64 number; /* the entry by which it was left */
    u64 error, address;
    struct frame frame;
} user_exit;
void enter_user(const struct iret_context *);
_Noreturn void leave_user(void);
void make_user(const void *code, size_t size); /* a user root with this code and a stack, loaded */
void run_user(u64 rip, u64 cs, u64 rflags);    /* until it enters the kernel: see user_exit */
extern u64 user_root;
#define USER_CODE ((u8 *)0x400000ul)
#define USER_DATA ((u8 *)0x600000ul)           /* a page */
#define USER_STACK ((u8 *)0x700000ul)          /* a page */
void *user_data(void);                         /* the same page for the kernel */

#define FLAG_TF 0x100ul
#define FLAG_IF 0x200ul
#define USER_FLAGS (FLAG_IF | 2)

/* Events and time */

extern void (*port_handler)(unsigned port);
u64 bind_virq(unsigned virq, unsigned vcpu);
void events_on(void);
void events_off(void);
u64 system_time(void); /* ns, by pvclock */
void block(void);

/* The second vCPU executes second_main, which does what this says. */
extern void (*second_program)(void);
s64 start_second(void (*program)(void));
void fill_context(vcpu_guest_context_t *, void (*entry)(void));
extern const u8 second_start[];
