"""Event ports as a native domain's own process keeps them."""

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.xen import VIRQ_TIMER, shared_info
from hypervisor.pv.ports import PORTS, Ports
from hypervisor.pv.vcpu import UPCALL_MASK, UPCALL_PENDING, VCPU_INFO_SIZE, PvVcpu

SELECTOR = 1
_PORTS = st.integers(0, PORTS - 1)


class Bits:
    """Two vCPUs of a domain with nothing but a shared_info page."""

    def __init__(self) -> None:
        self.page = memoryview(bytearray(4096))
        infos = [self.page[at * VCPU_INFO_SIZE : (at + 1) * VCPU_INFO_SIZE] for at in range(2)]
        self.vcpus = [PvVcpu(None, at, info) for at, info in enumerate(infos)]  # type: ignore[arg-type]
        self.rung: list[int] = []
        self.routes: set[int] = set()
        self.sent: list[PvVcpu] = []
        self.ports = Ports(self.vcpus, self._ring, self.sent.append)
        self.ports.place_shared_info(self.page)
        self.words = self.page.cast("Q")

    def _ring(self, port: int) -> bool:
        self.rung.append(port)
        return port in self.routes

    def mask(self, port: int) -> None:
        self.words[shared_info.offsets["evtchn_mask"] // 8 + port // 64] |= 1 << port % 64

    def upcalls(self) -> list[bool]:
        return [bool(vcpu.info[UPCALL_PENDING]) for vcpu in self.vcpus]


@given(_PORTS)
def test_an_event_sets_its_bit_its_word_and_an_upcall(port: int) -> None:
    bits = Bits()
    bits.ports.set_pending(port)
    assert bits.ports.is_pending(port)
    assert bits.upcalls() == [True, False]
    assert bits.vcpus[0].info_words[SELECTOR] == 1 << port // 64
    assert (bits.ports.received, bits.ports.upcalls) == (1, 1)
    bits.ports.set_pending(port)
    assert (bits.ports.received, bits.ports.upcalls) == (1, 1)


@given(_PORTS)
def test_a_masked_event_waits_for_its_unmasking(port: int) -> None:
    bits = Bits()
    bits.mask(port)
    bits.ports.set_pending(port)
    assert bits.ports.is_pending(port)
    assert bits.upcalls() == [False, False]
    bits.ports.unmask(port)
    assert bits.upcalls() == [True, False]


@given(_PORTS)
def test_unmasking_what_is_not_masked_raises_nothing(port: int) -> None:
    bits = Bits()
    bits.ports.set_pending(port)
    bits.vcpus[0].info[UPCALL_PENDING] = 0
    bits.ports.unmask(port)
    assert bits.upcalls() == [False, False]


def test_events_go_to_the_vcpu_that_they_are_bound_to() -> None:
    bits = Bits()
    bits.ports.bound_vcpu(70, 1)
    bits.ports.set_pending(70)
    assert bits.upcalls() == [False, True]
    bits.ports.bound_virq(5, VIRQ_TIMER, 0)
    bits.ports.bound_virq(6, VIRQ_TIMER, 1)
    bits.ports.raise_virq(0, VIRQ_TIMER)
    assert bits.ports.is_pending(5)
    assert not bits.ports.is_pending(6)
    bits.ports.closed(6)
    bits.ports.raise_virq(1, VIRQ_TIMER)
    assert not bits.ports.is_pending(6)


def test_an_ipi_is_sent_here_and_others_ring() -> None:
    bits = Bits()
    bits.ports.bound_ipi(9, 1)
    assert bits.ports.send(9)
    assert bits.upcalls() == [False, True]
    assert bits.sent == [bits.vcpus[1]]
    assert bits.rung == []
    bits.routes.add(10)
    assert bits.ports.send(10)
    assert not bits.ports.send(11)
    assert bits.rung == [10, 11]
    bits.ports.reset()
    assert not bits.ports.send(9)


def test_an_event_wakes_a_blocked_vcpu_and_a_masked_one_only_a_poll() -> None:
    bits = Bits()
    blocked, polling = bits.vcpus
    blocked.blocked = polling.blocked = True
    polling.poll_ports = (40,)
    bits.mask(40)
    bits.mask(41)
    bits.ports.set_pending(41)
    assert (blocked.blocked, polling.blocked) == (True, True)
    bits.ports.set_pending(40)
    assert (blocked.blocked, polling.blocked, polling.poll_ports) == (True, False, ())
    bits.ports.set_pending(42)
    assert not blocked.blocked
    assert bits.sent == [blocked]


def test_an_upcall_ends_a_poll_unless_upcalls_are_masked() -> None:
    bits = Bits()
    polling = bits.vcpus[0]
    polling.blocked, polling.poll_ports = True, (40,)
    polling.info[UPCALL_MASK] = 1
    bits.ports.set_pending(7)
    assert polling.blocked
    polling.info[UPCALL_MASK] = polling.info[UPCALL_PENDING] = 0
    bits.ports.set_pending(8)
    assert not polling.blocked


def test_what_is_bound_can_be_moved() -> None:
    bits, other = Bits(), Bits()
    bits.ports.bound_vcpu(70, 1)
    bits.ports.bound_virq(6, VIRQ_TIMER, 1)
    bits.ports.bound_ipi(9, 1)
    other.ports.load(bits.ports.dump().model_validate_json(bits.ports.dump().model_dump_json()))
    for ports in (bits.ports, other.ports):
        ports.raise_virq(1, VIRQ_TIMER)
        assert ports.send(9)
        assert ports.is_pending(6)
    assert other.upcalls() == [False, True]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_answers_that_make_no_sense_are_not_believed(port: int, vcpu_id: int) -> None:
    bits = Bits()
    bits.ports.bound_virq(port, VIRQ_TIMER, vcpu_id)
    bits.ports.bound_ipi(port, vcpu_id)
    bits.ports.bound_vcpu(port, vcpu_id)
    for virq_of in (0, 1, vcpu_id):
        bits.ports.raise_virq(virq_of, VIRQ_TIMER)
    bits.ports.send(port)
    bits.ports.set_pending(port % PORTS)
