"""Makes it cheap to look, at the beginning of each block of translated code, whether the engine is to stop.

The engine calls a function there, which in a kernel that boots takes as long as all the rest of the translated code.
Now the function, when a block calls it for the first time, rewrites the call where it stands: the block compares the
word itself from then on, and calls only if it is negative. Both forms have 17 bytes:

    48 bf <uc, 8 bytes>   mov rdi, uc                    83 7d f0 00     cmp dword [rbp - 16], 0
    33 f6                 xor esi, esi                   7d 0b           jge, behind all this
    e8 <4 bytes>          call the function              e8 <4 bytes>    call our function
                                                         66 0f 1f 44 00 00   nop

(rbp is the engine's env; 16 bytes below is its countdown.) To be rewritten, the block's code must look as on the left;
to be replaced, the function's must be that of the one build that we know. Otherwise nothing is changed, and the
engine is a third slower.
"""

from __future__ import annotations

from typing import Final

from hypervisor.vcpu.native.library import Library
from hypervisor.vcpu.native.machine_code import MachineCode, address
from hypervisor.vcpu.native.replaced import is_known, jump_to

_KNOWN: Final = bytes.fromhex(
    "4c 8b 87 b8 01 00 00"  # mov r8, [rdi + 440]: the CPU
    "41 8b 80 40 8a 00 00"  # mov eax, [r8 + 35392]: its countdown
    "85 c0 79 04 85 f6 74 0a c3"  # neither negative nor in a delay slot: return
)
_LEAVE_OFFSET: Final = 0x20
"""of what the function does to stop, which looks at its return address and stays as it is"""

_OURS: Final = bytes.fromhex(
    "48 8b 04 24"  # rax = where the call returns to
    "66 81 78 ef 48 bf  75 50"  # does the block's code look as we know it? Otherwise to the known
    "66 81 78 f9 33 f6  75 48"
    "80 78 fb e8  75 42"
    "48 8d 0d 32 00 00 00  48 29 c1  48 83 c1 06"  # rcx = how far `again` is from there
    "48 63 d1  48 39 ca  75 2c"  # too far for a call: to the known
    "c7 40 ef 83 7d f0 00  66 c7 40 f3 7d 0b  c6 40 f5 e8  89 48 f6"  # rewrite
    "c7 40 fa 66 0f 1f 44  66 c7 40 fe 00 00  eb 09"
    "48 8b bd 58 1b 00 00  31 f6"  # again: rdi = [rbp + 7000], uc; esi = 0
    "4c 8b 87 b8 01 00 00  41 8b 80 40 8a 00 00"  # known: as above
    "85 c0  78 01  c3"
    "85 f6  75 0c"
    "48 b8"  # leave: rax = the known function's rest, go there
)
_OURS_END: Final = bytes.fromhex("ff e0 c3")

_replaced: list[MachineCode] = []


def make_cheap(library: Library) -> bool:
    """Once a process, for all engines in it. Whether it was done."""
    if _replaced:
        return True
    start = address(library.held.helper_check_exit_request_x86_64)
    if not is_known(start, _KNOWN):
        return False
    code = MachineCode()
    jump_to(start, code.add(_OURS + (start + _LEAVE_OFFSET).to_bytes(8, "little") + _OURS_END))
    _replaced.append(code)
    return True
