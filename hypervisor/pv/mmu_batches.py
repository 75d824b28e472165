"""What mmu_update and mmuext_op have in common: arrays of requests, done as far as the budget goes.

Follows do_mmu_update and do_mmuext_op of xen/arch/x86/mm.c of Xen 4.17 in how a call goes on: the count of the rest has
its highest bit set, and what was done so far is added to what the guest can read there.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import DOMID_SELF
from hypervisor.continuation import Continuation
from hypervisor.errors import GuestFault, NoSuchDomain, NotPermitted, XenError
from hypervisor.pv.entries import is_guest_address

if TYPE_CHECKING:
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu
    from hypervisor.pv.walks import Walks

PREEMPTED: Final = 1 << 31
"""in `count`: the call goes on (MMU_UPDATE_PREEMPTED)"""

_done = Codec("<I")


class Batches:
    """Of one domain, whose number is `domid`."""

    __slots__ = ("_domid", "_validation", "_walks")

    def __init__(self, validation: Validation, walks: Walks, domid: int) -> None:
        self._validation = validation
        self._walks = walks
        self._domid = domid

    def check_handle(self, address: int, size: int) -> None:
        """GuestFault unless an array there is the guest's."""
        if not is_guest_address(address) or not is_guest_address(address + max(size, 1) - 1):
            raise GuestFault(self._domid, address, size)

    def check_domain(self, domid: int) -> None:
        """NotPermitted: frames of other domains are not for this one. NoSuchDomain: its own number does not name
        it here, as with Xen; DOMID_SELF does.
        """
        if domid == self._domid:
            raise NoSuchDomain(domid)
        if domid != DOMID_SELF:
            raise NotPermitted(self._domid, f"map frames of domain {domid}")

    def check_tables_domain(self, domid: int) -> None:
        """NotPermitted: page tables of others are not for this one to change."""
        if domid != self._domid:
            raise NotPermitted(self._domid, f"change page tables of domain {domid}")

    def progress(self, vcpu: PvVcpu, pdone: int) -> int:
        """What earlier parts of the call have reported."""
        if not pdone:
            return 0
        try:
            done: int = _done.unpack(self._walks.read(vcpu.kernel_root, pdone, _done.size))[0]
        except GuestFault:
            return 0
        return done

    def report(self, vcpu: PvVcpu, pdone: int, done: int) -> None:
        """Say how many were done, if the guest wants to know and can be told."""
        if pdone:
            try:
                self._walks.write(vcpu.kernel_root, pdone, _done.pack(done & 0xFFFF_FFFF))
            except GuestFault:
                return

    def finish(self, vcpu: PvVcpu, number: int, error: XenError | None) -> int | Continuation:
        """The result, when no table is left to be demoted; until then a call that only waits for that."""
        if self._validation.held:
            self._validation.release(vcpu.id)
        if not self._validation.drain():
            result = 0 if error is None else -error.errno
            return Continuation(number, (0, PREEMPTED, 0, result & 0xFFFF_FFFF))
        if error is not None:
            raise error
        return 0


def as_result(foreigndom: int) -> int:
    """The result that a call which only waits carries there."""
    return foreigndom - (1 << 32) if foreigndom & PREEMPTED else foreigndom
