"""Typed hypercalls on the real core: values come back typed, refusals as errors with fields."""

import inspect

import pytest

from hypervisor.abi.domctl import XEN_DOMCTL_CDF_hap, XEN_DOMCTL_CDF_hvm, XEN_DOMINF_paused
from hypervisor.abi.errno import XEN_EPERM
from hypervisor.abi.event_channel import EVTCHNSTAT_ipi, EVTCHNSTAT_unbound
from hypervisor.abi.hvm_params import HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_STORE_PFN
from hypervisor.abi.memory import XENMAPSPACE_grant_table, XENMAPSPACE_shared_info
from hypervisor.abi.sched import SHUTDOWN_reboot
from hypervisor.machine import Machine
from kernel.hypercalls import (
    ArgumentsFull,
    Batch,
    HypercallError,
    HypercallExists,
    HypercallInvalid,
    HypercallNoSuchDomain,
    HypercallNotPermitted,
    Hypercalls,
)
from kernel.hypercalls.errors import refusal
from tests.kernel.guests import BareKernel, bare_machine

GUEST = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap


@pytest.fixture
def machine() -> Machine:
    return bare_machine()


@pytest.fixture
def dom0(machine: Machine) -> BareKernel:
    return BareKernel(machine)


@pytest.fixture
def guest(dom0: BareKernel, machine: Machine) -> BareKernel:
    return BareKernel(machine)


def operations(cls: type) -> set[str]:
    own = {"enter", "send", "forget", "batch"}
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if name[0] != "_"} - own


def test_what_can_be_called_can_be_queued() -> None:
    assert operations(Hypercalls) - operations(Batch) == {"sched_shutdown"}
    assert operations(Batch) - operations(Hypercalls) == set()
    for name in operations(Hypercalls):
        assert inspect.getdoc(getattr(Hypercalls, name))


def test_event_channels(dom0: BareKernel, guest: BareKernel) -> None:
    port = dom0.hypercalls.evtchn_alloc_unbound(guest.domid)
    status = dom0.hypercalls.evtchn_status(port)
    assert (status.status, status.u.unbound.dom) == (EVTCHNSTAT_unbound, guest.domid)
    local = guest.hypercalls.evtchn_bind_interdomain(dom0.domid, port)
    guest.hypercalls.evtchn_send(local)
    guest.hypercalls.evtchn_bind_vcpu(local, 0)
    guest.hypercalls.evtchn_unmask(local)
    guest.hypercalls.evtchn_close(local)
    ipi = guest.hypercalls.evtchn_bind_ipi()
    assert guest.hypercalls.evtchn_status(ipi).status == EVTCHNSTAT_ipi
    guest.hypercalls.evtchn_reset()
    with pytest.raises(HypercallInvalid):
        guest.hypercalls.evtchn_send(ipi)


def test_grant_table(dom0: BareKernel) -> None:
    status, size = dom0.hypercalls.grant_query_size()
    assert (status, size.max_frames) == (0, 64)
    assert dom0.hypercalls.grant_get_version() == 1
    dom0.hypercalls.grant_set_version(1)
    with pytest.raises(HypercallError):
        dom0.hypercalls.grant_set_version(2)


def test_memory(dom0: BareKernel, guest: BareKernel) -> None:
    gpfn = guest.pages.reserve_gpfns(1)
    guest.hypercalls.add_to_physmap(XENMAPSPACE_shared_info, 0, gpfn)
    guest.memory.page(gpfn)[100] = 1
    guest.hypercalls.remove_from_physmap(gpfn)
    with pytest.raises(LookupError):
        guest.memory.page(gpfn)
    assert guest.hypercalls.current_reservation() >= 64
    assert guest.hypercalls.decrease_reservation([60, 61]) == 2
    assert guest.hypercalls.populate_physmap([61, 60]) == 2
    assert guest.hypercalls.maximum_reservation() >= 64
    assert dom0.hypercalls.maximum_ram_page() > 0


def test_the_control_domain_maps_what_is_a_guests(dom0: BareKernel, guest: BareKernel) -> None:
    ours = dom0.pages.reserve_gpfns(3)
    guest.memory.page(5)[:4] = b"five"
    errors = dom0.hypercalls.map_foreign(guest.domid, [5, 1 << 20], [ours, ours + 1])
    assert errors[0] == 0
    assert errors[1] < 0
    assert bytes(dom0.memory.page(ours)[:4]) == b"five"
    assert guest.hypercalls.map_foreign(dom0.domid, [5], [ours]) == [-XEN_EPERM]
    with pytest.raises(LookupError):
        guest.memory.page(ours)


def test_scheduling_version_console_and_parameters(dom0: BareKernel, guest: BareKernel) -> None:
    guest.hypercalls.sched_yield()
    assert guest.hypercalls.xen_version() == (4, 17)
    assert guest.hypercalls.get_features() > 0
    guest.hypercalls.set_timer(10**9)
    guest.hypercalls.console_write(b"hello")
    assert guest.platform.machine.host.console_output == [b"hello"]  # type: ignore[attr-defined]
    dom0.hypercalls.hvm_set_param(HVM_PARAM_STORE_PFN, 42, guest.domid)
    assert guest.hypercalls.hvm_get_param(HVM_PARAM_STORE_PFN) == 42
    guest.hypercalls.hvm_set_param(HVM_PARAM_CALLBACK_IRQ, 3)
    with pytest.raises(HypercallNotPermitted):
        guest.hypercalls.hvm_set_param(HVM_PARAM_STORE_PFN, 1)
    dom0.hypercalls.sched_remote_shutdown(guest.domid, SHUTDOWN_reboot)
    assert guest.platform.domain.shutdown_reason == SHUTDOWN_reboot


def test_the_control_domain_makes_and_ends_others(dom0: BareKernel) -> None:
    control = dom0.hypercalls
    domid = control.createdomain(b"0123456789abcdef", flags=GUEST)
    control.max_vcpus(domid, 1)
    control.max_mem(domid, 1024)
    assert control.populate_physmap(range(8), domid=domid) == 8
    info = control.getdomaininfo(domid)
    assert (info.domain, info.handle, info.tot_pages) == (domid, b"0123456789abcdef", 8)
    assert info.flags & XEN_DOMINF_paused
    control.scheduler_op_put(domid, weight=512)
    control.scheduler_op_put(domid, cap=50)
    share = control.scheduler_op_get(domid)
    assert (share.weight, share.cap) == (512, 50)
    control.unpausedomain(domid)
    control.pausedomain(domid)
    assert [found.domain for found in control.getdomaininfolist(0, 16)] == [0, domid]
    assert control.physinfo().total_pages > 0
    control.destroydomain(domid)
    assert [found.domain for found in control.getdomaininfolist(0, 16)] == [0]
    with pytest.raises(HypercallNoSuchDomain) as caught:
        control.unpausedomain(domid)
    assert caught.value.op == "XEN_DOMCTL_unpausedomain"
    assert caught.value.arguments == (domid,)


def test_a_certain_domid(dom0: BareKernel) -> None:
    assert dom0.hypercalls.createdomain(bytes(16), flags=GUEST, domid=77) == 77
    with pytest.raises(HypercallExists):
        dom0.hypercalls.createdomain(bytes(16), flags=GUEST, domid=77)


def test_others_may_not(guest: BareKernel) -> None:
    with pytest.raises(HypercallNotPermitted) as caught:
        guest.hypercalls.getdomaininfo(0)
    assert caught.value.errno_name == "EPERM"
    with pytest.raises(HypercallNotPermitted):
        guest.hypercalls.physinfo()


def test_refusals_name_operation_errno_and_arguments(guest: BareKernel) -> None:
    with pytest.raises(HypercallInvalid) as caught:
        guest.hypercalls.evtchn_close(999)
    error = caught.value
    assert (error.op, error.errno, error.errno_name) == ("EVTCHNOP_close", 22, "EINVAL")
    assert str(error) == "EVTCHNOP_close: EINVAL for evtchn_close(port=999)"


def test_an_errno_without_a_type_of_its_own() -> None:
    error = refusal("op", -5, None)
    assert type(error) is HypercallError
    assert error.errno_name == "EIO"
    assert refusal("op", -9999, None).errno_name == "9999"


def test_arguments_that_do_not_fit_are_refused_before_the_call(guest: BareKernel) -> None:
    calls = len(guest.platform.calls)
    with pytest.raises(ArgumentsFull) as caught:
        guest.hypercalls.console_write(bytes(1 << 20))
    assert caught.value.wanted == 1 << 20
    assert len(guest.platform.calls) == calls
    guest.hypercalls.console_write(b"fits")


def test_grant_frames_are_mapped_once(guest: BareKernel) -> None:
    gpfn = guest.pages.reserve_gpfns(1)
    guest.hypercalls.add_to_physmap(XENMAPSPACE_grant_table, 0, gpfn)
    assert guest.hypercalls.grant_query_size()[1].frames >= 1
