/* The kernel itself works. */
#include "../kernel.h"

CASE(hello)
{
    check(start_info->magic[0] == 'x', "start_info says %s", start_info->magic);
    check(start_info->nr_pages >= 1024, "%lu pages", start_info->nr_pages);
    check((u64)start_info->pt_base > VIRT_BASE, "page tables at %lx", start_info->pt_base);
    u64 value = 1;
    check(try_read((void *)0x10, &value) == 14 && probe.error == 0 && probe.address == 0x10,
          "reading an address without mapping faults: %ld, %lx, %lx", probe.vector, probe.error, probe.address);
    check(try_write((void *)start_info->pt_base, 0) != -1, "writing to the root faults");
    check(ATTEMPT("ud2", : :) == 6, "ud2 raises %ld", probe.vector);
    check(ATTEMPT("int3", : :) == 3, "int3 raises %ld", probe.vector);
    check(machine_to_phys_mapping[mfn_of(start_info)] == pfn_of(start_info), "M2P and P2M agree");
    check(argument(0) == 42 && argument(1) == 7, "arguments %lu %lu", argument(0), argument(1));
}
