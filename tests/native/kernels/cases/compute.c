/* Work with a known result, of a length that argument 0 says, in registers, memory and system calls of the kernel. */
#include "../kernel.h"

CASE(compute)
{
    static u64 words[8192];
    u64 sum = 0x243f6a8885a308d3;
    for (u64 round = 0; round < argument(0); round++) {
        for (unsigned each = 0; each < 8192; each++) {
            sum = (sum << 7 | sum >> 57) ^ (words[each] + each);
            words[each] += sum * 0x9e3779b97f4a7c15;
        }
        if (round % 64 == 0)
            HYPERCALL(xen_version, XENVER_version, 0);
    }
    print("result %lx", sum);
}

CASE(spin)
{
    print("spinning");
    for (;;)
        ;
}

CASE(reboot)
{
    shut_down(SHUTDOWN_reboot);
}

CASE(crash)
{
    shut_down(SHUTDOWN_crash);
}
