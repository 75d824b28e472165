"""The page through which a native kernel may make hypercalls, if it asks for one: XEN_DOMCTL_hypercall_init.

Entry `number` is at 32 * number. As pv_ring3_init_hypercall_page of Xen 4.17 (xen/arch/x86/pv/hypercall.c) it saves
RCX and R11, which SYSCALL overwrites, puts the number into EAX and returns; that of iret, which does not return,
saves RAX, too. It is filled before the domain runs, so that no engine has translated what was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import HYPERVISOR_iret
from hypervisor.errors import BadGpfn, Busy, Unsupported
from hypervisor.extent import PAGE_SIZE
from hypervisor.lifecycle import Life

if TYPE_CHECKING:
    from hypervisor.domain import Domain

ENTRY_BYTES: Final = 32

_PUSH_RCX_R11: Final = b"\x51\x41\x53"
_PUSH_RAX: Final = b"\x50"
_MOV_EAX: Final = b"\xb8"
_SYSCALL: Final = b"\x0f\x05"
_POP_R11_RCX_RET: Final = b"\x41\x5b\x59\xc3"
_INT3: Final = b"\xcc"


def _entry(number: int) -> bytes:
    call = _MOV_EAX + number.to_bytes(4, "little") + _SYSCALL
    if number == HYPERVISOR_iret:
        return (_PUSH_RCX_R11 + _PUSH_RAX + call).ljust(ENTRY_BYTES, _INT3)
    return (_PUSH_RCX_R11 + call + _POP_R11_RCX_RET).ljust(ENTRY_BYTES, _INT3)


PAGE: Final = b"".join(_entry(number) for number in range(PAGE_SIZE // ENTRY_BYTES))


def fill_hypercall_page(domain: Domain, mfn: int) -> None:
    """Write it to the domain's frame. Unsupported, Busy, BadGpfn, and nothing has changed."""
    if not domain.traits.pv:
        raise Unsupported("the hypercall page of an auto-translated domain", known=True)
    if domain.life is not Life.CREATED:
        raise Busy(f"domain {domain.domid} has been started")
    page = domain.memory.ram_page(mfn)
    if page is None:
        raise BadGpfn(domain.domid, mfn, "no RAM of its own there")
    page[:] = PAGE
