/* Code that is written by another mapping than it is executed by is executed as it was written last. */
#include "../kernel.h"

static u8 *written;

static void write_code(u32 value, unsigned how)
{
    /* Three blocks: the first two jump, the third one returns `value`. */
    u8 code[48];
    memset(code, 0x90, sizeof code);
    memcpy(code, (const u8[]){0xeb, 14}, 2);
    memcpy(code + 16, (const u8[]){0xeb, 14}, 2);
    code[32] = 0xb8;
    memcpy(code + 33, &value, 4);
    code[37] = 0xc3;
    switch (how) {
    case 0: /* octet by octet, from the front */
        memcpy(written, code, sizeof code);
        break;
    case 1: /* eight at a time */
        for (unsigned each = 0; each < sizeof code / 8; each++)
            ((volatile u64 *)written)[each] = ((u64 *)code)[each];
        break;
    case 2: /* from the back */
        for (unsigned each = sizeof code; each--;)
            ((volatile u8 *)written)[each] = code[each];
        break;
    case 3: /* only what differs */
        *(volatile u32 *)(written + 33) = value;
        break;
    case 4: /* in the page's other half first */
        ((volatile u8 *)written)[2048] = (u8)value;
        *(volatile u32 *)(written + 33) = value;
        break;
    }
}

CASE(code)
{
    written = new_page();
    u32 (*function)(void) = (u32(*)(void))FRESH;
    check_result(map_frame(FRESH, mfn_of(written), READ_ONLY), 0, "a page to execute");
    unsigned value = 0;
    for (unsigned executable = 0; executable < 2; executable++) {
        update_va(written, pte(mfn_of(written), DATA | (executable ? 0 : PTE_NX)));
        write_code(++value, 0);
        for (unsigned how = 0; how < 5; how++)
            for (unsigned round = 0; round < 30; round++) {
                write_code(++value, how);
                u32 got = function();
                if (got != value || round == 29)
                    check(got == value, "written by way %u, %s: %u of %u", how, executable ? "executable" : "not executable",
                          got, value);
            }
    }
}
