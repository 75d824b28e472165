/* What entered the kernel, beside the vectors 0 to 255. */
#define ENTRY_SYSCALL 0x100
#define ENTRY_SYSCALL32 0x101
#define ENTRY_SYSENTER 0x102
#define ENTRY_EVENT 0x103
#define ENTRY_FAILSAFE 0x104
