"""Event ports of a native domain, as its own process knows them: which bits stand for what, and whose they are.

The machine-wide core keeps the channels; it rings for ports (post), and this process enters them into shared_info,
where the guest's own atomic instructions change the same words: only a process that has stopped its engine may. What
is bound to which vCPU is learnt from the answers to the guest's own requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from hypervisor.abi.xen import shared_info

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

WORD_BITS: Final = 64
PORTS: Final = WORD_BITS * WORD_BITS
UPCALL_PENDING: Final = 0
UPCALL_MASK: Final = 1
SELECTOR_WORD: Final = 1

_PENDING: Final = shared_info.offsets["evtchn_pending"] // 8
_MASK: Final = shared_info.offsets["evtchn_mask"] // 8


class PortsState(BaseModel):
    """To be restored: port → vCPU where it is not 0, port → (VIRQ, vCPU), port → vCPU for IPIs."""

    vcpus: dict[int, int] = {}
    virqs: dict[int, tuple[int, int]] = {}
    ipis: dict[int, int] = {}


class Ports:
    """ring: sends the event of a port that is bound to another domain; False if that takes a hypercall.
    prefer: told of a vCPU that was sent an IPI, or is blocked no more. received,
    upcalls: events that were entered, and how often that raised an upcall.
    """

    def __init__(
        self, vcpus: Sequence[PvVcpu], ring: Callable[[int], bool], prefer: Callable[[PvVcpu], None]
    ) -> None:
        self.received = 0
        self.upcalls = 0
        self._vcpus = vcpus
        self._ring = ring
        self._prefer = prefer
        self._owner: dict[int, int] = {}
        self._virqs: dict[tuple[int, int], int] = {}
        self._ipis: dict[int, int] = {}

    def place_shared_info(self, page: memoryview) -> None:
        """The bits lie there."""
        words = page.cast("Q")
        self._pending = words[_PENDING : _PENDING + WORD_BITS]
        self._mask = words[_MASK : _MASK + WORD_BITS]

    # Events

    def set_pending(self, port: int) -> None:
        """An event for `port`: on a fresh edge that is not masked, raise an upcall; whoever polls it goes on."""
        word, offset = divmod(port, WORD_BITS)
        bit = 1 << offset
        if self._pending[word] & bit:
            return
        self._pending[word] |= bit
        self.received += 1
        if not self._mask[word] & bit:
            self._select(self._owner.get(port, 0), word)
        for vcpu in self._vcpus:
            if vcpu.poll_ports and port in vcpu.poll_ports:
                vcpu.unblock()

    def _select(self, vcpu_id: int, word: int) -> None:
        vcpu = self._vcpus[vcpu_id]
        info = vcpu.info
        vcpu.info_words[SELECTOR_WORD] |= 1 << word
        if not info[UPCALL_PENDING]:
            info[UPCALL_PENDING] = 1
            self.upcalls += 1
        if vcpu.blocked and not (vcpu.poll_ports and info[UPCALL_MASK]):
            vcpu.unblock()
            self._prefer(vcpu)

    def is_pending(self, port: int) -> bool:
        """Whether its bit is set."""
        return bool(self._pending[port // WORD_BITS] >> port % WORD_BITS & 1)

    def send(self, port: int) -> bool:
        """EVTCHNOP_send; False if it takes a hypercall."""
        target = self._ipis.get(port)
        if target is None:
            return self._ring(port)
        self.set_pending(port)
        self._prefer(self._vcpus[target])
        return True

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: what is pending raises an upcall now."""
        word, offset = divmod(port, WORD_BITS)
        bit = 1 << offset
        if self._mask[word] & bit:
            self._mask[word] &= ~bit
            if self._pending[word] & bit:
                self._select(self._owner.get(port, 0), word)

    def raise_virq(self, vcpu_id: int, virq: int) -> None:
        """An event for the port that this vCPU's VIRQ is bound to, if it is."""
        port = self._virqs.get((virq, vcpu_id))
        if port is not None:
            self.set_pending(port)

    # What is bound

    def bound_virq(self, port: int, virq: int, vcpu_id: int) -> None:
        """EVTCHNOP_bind_virq has answered."""
        if self._owned(port, vcpu_id):
            self._virqs[virq, vcpu_id] = port

    def bound_ipi(self, port: int, vcpu_id: int) -> None:
        """EVTCHNOP_bind_ipi has answered."""
        if self._owned(port, vcpu_id):
            self._ipis[port] = vcpu_id

    def bound_vcpu(self, port: int, vcpu_id: int) -> None:
        """EVTCHNOP_bind_vcpu has answered."""
        self._owned(port, vcpu_id)

    def _owned(self, port: int, vcpu_id: int) -> bool:
        """Note whose a port is. False: what is said of it makes no sense, as the answer lies in memory that others may
        have written to.
        """
        if not 0 <= port < PORTS or not 0 <= vcpu_id < len(self._vcpus):
            return False
        self._owner[port] = vcpu_id
        return True

    def closed(self, port: int) -> None:
        """EVTCHNOP_close has answered."""
        self._ipis.pop(port, None)
        self._owner.pop(port, None)
        self._virqs = {virq: at for virq, at in self._virqs.items() if at != port}

    def reset(self) -> None:
        """EVTCHNOP_reset has answered."""
        for known in (self._ipis, self._owner, self._virqs):
            known.clear()

    # State

    def dump(self) -> PortsState:
        """What is bound."""
        virqs = {port: key for key, port in self._virqs.items()}
        return PortsState(vcpus=dict(self._owner), virqs=virqs, ipis=dict(self._ipis))

    def load(self, state: PortsState) -> None:
        """The same, in another process."""
        self._owner = dict(state.vcpus)
        self._virqs = {key: port for port, key in state.virqs.items()}
        self._ipis = dict(state.ipis)
