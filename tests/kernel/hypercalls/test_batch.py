"""Batches: one multicall, results in order, each with its own error, any number of entries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.xen import HYPERVISOR_multicall
from kernel.hypercalls import ArgumentsFull, HypercallError, HypercallInvalid, NotCalledYet
from kernel.hypercalls.batch import CAPACITY
from tests.kernel.guests import BareKernel, bare_machine


@pytest.fixture
def kernel() -> BareKernel:
    return BareKernel(bare_machine())


def test_a_batch_is_one_hypercall(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as batch:
        ports = [batch.evtchn_alloc_unbound(0) for _ in range(10)]
        version = batch.xen_version()
        kernel.platform.calls.clear()
    assert kernel.platform.calls == [HYPERVISOR_multicall]
    assert [port.result() for port in ports] == list(range(1, 11))
    assert version.result() == (4, 17)
    counters = kernel.platform.domain.counters
    assert (counters.multicall_batches, counters.multicall_entries) == (1, 11)


def test_entries_run_in_order_and_fail_alone(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as batch:
        first = batch.evtchn_alloc_unbound(0)
        wrong = batch.evtchn_close(999)
        last = batch.evtchn_alloc_unbound(0)
        closed = batch.evtchn_close(2)
        again = batch.evtchn_alloc_unbound(0)
    assert first.result() == 1
    assert last.result() == 2
    closed.result()
    assert again.result() == 2
    for _ in range(2):
        with pytest.raises(HypercallInvalid) as caught:
            wrong.result()
        assert caught.value.op == "EVTCHNOP_close"


def test_results_wait_for_the_end_of_the_block(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as batch:
        pending = batch.xen_version()
        with pytest.raises(NotCalledYet, match="XENVER_version"):
            pending.result()
    assert pending.result() == (4, 17)


def test_an_empty_batch_calls_nothing(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch():
        kernel.platform.calls.clear()
    assert kernel.platform.calls == []


@given(count=st.integers(0, 3 * CAPACITY + 1))
def test_any_number_of_entries_leaves_in_full_multicalls(count: int) -> None:
    kernel = BareKernel(bare_machine())
    with kernel.hypercalls.batch() as batch:
        kernel.platform.calls.clear()
        ports = [batch.evtchn_alloc_unbound(0) for _ in range(count)]
    assert kernel.platform.calls == [HYPERVISOR_multicall] * -(-count // CAPACITY)
    assert [port.result() for port in ports] == list(range(1, count + 1))


def test_notifications_alone_fill_a_multicall(kernel: BareKernel) -> None:
    port = kernel.hypercalls.evtchn_bind_ipi()
    with kernel.hypercalls.batch() as batch:
        kernel.platform.calls.clear()
        sent = [batch.evtchn_send(port) for _ in range(CAPACITY)]
        wrong = batch.evtchn_send(999)
    assert kernel.platform.calls == [HYPERVISOR_multicall] * 2
    for pending in sent:
        pending.result()
    with pytest.raises(HypercallInvalid, match="EVTCHNOP_send: EINVAL for 999"):
        wrong.result()


def test_arguments_that_fill_the_pages_leave_early(kernel: BareKernel) -> None:
    text = bytes(5000)
    with kernel.hypercalls.batch() as batch:
        kernel.platform.calls.clear()
        written = [batch.console_write(text) for _ in range(5)]
        ports = batch.evtchn_alloc_unbound(0)
    assert len(kernel.platform.calls) == 3
    assert ports.result() == 1
    for pending in written:
        pending.result()


def test_arguments_that_never_fit_are_refused(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as batch:
        before = batch.xen_version()
        with pytest.raises(ArgumentsFull):
            batch.console_write(bytes(1 << 16))
        after = batch.xen_version()
    assert before.result() == after.result() == (4, 17)


def test_a_block_that_raises_sends_nothing(kernel: BareKernel) -> None:
    def misbehave() -> None:
        with kernel.hypercalls.batch() as batch:
            batch.evtchn_alloc_unbound(0)
            raise LookupError

    with pytest.raises(LookupError):
        misbehave()
    with kernel.hypercalls.batch() as batch:
        port = batch.evtchn_alloc_unbound(0)
    assert port.result() == 1


def test_batches_inside_batches_and_single_calls_inside_them(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as outer:
        first = outer.evtchn_alloc_unbound(0)
        with kernel.hypercalls.batch() as inner:
            second = inner.evtchn_alloc_unbound(0)
            single = kernel.hypercalls.evtchn_alloc_unbound(0)
        third = outer.evtchn_alloc_unbound(0)
    assert [single, second.result(), first.result(), third.result()] == [1, 2, 3, 4]


def test_batches_are_used_again(kernel: BareKernel) -> None:
    with kernel.hypercalls.batch() as first:
        pass
    free = kernel.pages.free_pages
    with kernel.hypercalls.batch() as second:
        pass
    assert second is first
    assert kernel.pages.free_pages == free


def test_a_multicall_that_is_refused_as_a_whole(kernel: BareKernel) -> None:
    kernel.platform.domain.crash()
    with pytest.raises(HypercallError) as caught, kernel.hypercalls.batch() as batch:
        pending = batch.xen_version()
    assert caught.value.op == "multicall"
    with pytest.raises(NotCalledYet):
        pending.result()
