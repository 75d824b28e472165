"""Event ports over real bitmaps: delivery, coalescing, masks, closing, drivers that fail."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from hypervisor.abi.event_channel import EVTCHNSTAT_unbound
from hypervisor.abi.xen import VIRQ_DEBUG
from hypervisor.machine import Machine
from kernel.errors import PortClosed
from kernel.events import EventPort
from kernel.hypercalls import HypercallError, HypercallInvalid
from tests.kernel.guests import BareKernel, bare_machine

Ends = tuple[EventPort, EventPort]


@pytest.fixture
def machine() -> Machine:
    return bare_machine()


@pytest.fixture
def pair(machine: Machine) -> tuple[BareKernel, BareKernel]:
    return BareKernel(machine), BareKernel(machine)


def connect(listener: BareKernel, binder: BareKernel) -> Ends:
    """A channel between two kernels, its events of birth taken."""
    ours = listener.events.alloc_unbound(binder.domid)
    theirs = binder.events.bind_interdomain(listener.domid, ours.port)
    listener.events.dispatch()
    binder.events.dispatch()
    return ours, theirs


def test_notifications_reach_the_other_end_once_each_pass(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    heard: list[str] = []
    theirs.on_event = lambda: heard.append("theirs")
    ours.on_event = lambda: heard.append("ours")
    for _ in range(5):
        ours.notify()
    assert second.events.dispatch() == 1
    assert second.events.dispatch() == 0
    theirs.notify()
    assert first.events.dispatch() == 1
    assert heard == ["theirs", "ours"]
    assert (ours.sent, theirs.sent) == (5, 1)
    assert first.platform.domain.vcpus[0].upcall_pending == 0


def test_ports_over_all_words_are_delivered_in_one_pass(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    heard: list[int] = []
    ends = [connect(first, second) for _ in range(200)]
    for number, (_, theirs) in enumerate(ends):
        theirs.on_event = lambda number=number: heard.append(number)
    for ours, _ in ends[::3]:
        ours.notify()
    assert second.events.dispatch() == len(ends[::3])
    assert heard == list(range(0, 200, 3))


def test_an_event_that_comes_during_delivery_is_not_lost(
    pair: tuple[BareKernel, BareKernel],
) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    rounds = 0

    def answer() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 4:
            ours.notify()

    theirs.on_event = answer
    ours.notify()
    passes = 0
    while second.platform.domain.vcpus[0].upcall_pending:
        second.events.dispatch()
        passes += 1
    assert rounds == passes == 4


def test_the_tables_of_two_kernels_are_apart(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    with pytest.raises(HypercallInvalid) as caught:
        second.events.bind_interdomain(first.domid, 77)
    assert caught.value.op == "EVTCHNOP_bind_interdomain"
    with pytest.raises(HypercallError):
        second.events.bind_interdomain(55, 1)


def test_a_closed_port_says_so(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    theirs.close()
    theirs.close()
    with pytest.raises(PortClosed) as caught:
        theirs.notify()
    assert caught.value.port == theirs.port
    ours.notify()
    assert second.events.dispatch() == 0
    assert first.hypercalls.evtchn_status(ours.port).status == EVTCHNSTAT_unbound


def test_events_for_ports_that_nobody_opened_are_counted(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    ours = first.events.alloc_unbound(second.domid)
    second.hypercalls.evtchn_bind_interdomain(first.domid, ours.port)
    ours.notify()
    assert second.events.dispatch() == 1
    assert second.events.spurious == 1


def test_a_port_number_used_again_has_no_old_events(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    ours.notify()
    theirs.close()
    fresh = second.events.alloc_unbound(first.domid)
    assert fresh.port == theirs.port
    second.events.dispatch()
    assert fresh.received == 0


def test_a_driver_that_raises_loses_its_port_and_nobody_elses(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    broken = [connect(first, second) for _ in range(3)]
    heard: list[int] = []

    def fail() -> None:
        raise RuntimeError("the ring lies")

    broken[0][1].on_event = lambda: heard.append(0)
    broken[1][1].on_event = fail
    broken[2][1].on_event = lambda: heard.append(2)
    for ours, _ in broken:
        ours.notify()
    second.events.dispatch()
    assert heard == [0, 2]
    ((port, error),) = second.failures
    assert port is broken[1][1]
    assert str(error) == "the ring lies"
    with pytest.raises(PortClosed):
        port.notify()


def test_a_masked_port_waits_for_unmask(pair: tuple[BareKernel, BareKernel]) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    other, _ = connect(first, second)
    second.events._mask[0] |= 1 << theirs.port
    ours.notify()
    assert second.events.dispatch() == 0
    other.notify()
    assert second.events.dispatch() == 1, "the masked one is in the same word"
    theirs.unmask()
    assert second.events.dispatch() == 1
    assert theirs.received >= 1


def test_virtual_interrupts(machine: Machine) -> None:
    kernel = BareKernel(machine)
    port = kernel.events.bind_virq(VIRQ_DEBUG)
    heard: list[bool] = []
    port.on_event = lambda: heard.append(True)
    kernel.platform.domain.events.raise_virq(VIRQ_DEBUG)
    kernel.events.dispatch()
    assert heard == [True]


@pytest.mark.anyio
async def test_waiting_sees_events_of_before_and_after(
    anyio_backend: str, pair: tuple[BareKernel, BareKernel]
) -> None:
    first, second = pair
    ours, theirs = connect(first, second)
    await theirs.wait()  # the event of birth
    with anyio.move_on_after(0) as scope:
        await theirs.wait()
    assert scope.cancelled_caught
    ours.notify()
    second.events.dispatch()
    await theirs.wait()
    woken = False

    async def wait() -> None:
        nonlocal woken
        await theirs.wait()
        woken = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await checkpoint()
        ours.notify()
        second.events.dispatch()
    assert woken


@pytest.mark.anyio
async def test_whoever_waits_at_a_port_that_closes_is_told(
    anyio_backend: str, pair: tuple[BareKernel, BareKernel]
) -> None:
    first, second = pair
    _, theirs = connect(first, second)
    await theirs.wait()
    errors: list[PortClosed] = []

    async def wait() -> None:
        try:
            await theirs.wait()
        except PortClosed as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await checkpoint()
        theirs.close()
    assert len(errors) == 1
    with pytest.raises(PortClosed):
        await theirs.wait()
