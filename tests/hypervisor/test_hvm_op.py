"""HVM parameters: who may set and read which."""

import pytest

from hypervisor.abi import hvm_params as params
from hypervisor.abi.errno import XEN_EEXIST, XEN_EFAULT, XEN_EINVAL, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.hvm_op import HVMOP_get_param, HVMOP_set_param, xen_hvm_param
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_hvm_op as hvm_op
from hypervisor.hvm_op import DEPRECATED, READABLE, SET_ONCE, WRITABLE
from tests.hypervisor.fakes import Guest, new_machine

VALUE = 0x1122_3344_5566_7788


@pytest.fixture
def dom0() -> Guest:
    return Guest(new_machine()[0])


@pytest.fixture
def guest(dom0: Guest) -> Guest:
    return Guest(dom0.machine)


def put(caller: Guest, index: int, value: int, domid: int = DOMID_SELF) -> int:
    return caller.operate(hvm_op, HVMOP_set_param, xen_hvm_param(domid=domid, index=index, value=value))[0]


def get(caller: Guest, index: int, domid: int = DOMID_SELF) -> tuple[int, int]:
    result, param = caller.operate(hvm_op, HVMOP_get_param, xen_hvm_param(domid=domid, index=index))
    return result, param.value


def test_a_guest_finds_its_store_and_console(dom0: Guest, guest: Guest) -> None:
    for index in (
        params.HVM_PARAM_STORE_PFN,
        params.HVM_PARAM_STORE_EVTCHN,
        params.HVM_PARAM_CONSOLE_PFN,
        params.HVM_PARAM_CONSOLE_EVTCHN,
    ):
        assert get(guest, index) == (0, 0)
        assert put(dom0, index, VALUE + index, guest.domid) == 0
        assert get(guest, index) == get(dom0, index, guest.domid) == (0, VALUE + index)
        assert get(dom0, index) == (0, 0), "dom0's own is another"


@pytest.mark.parametrize("index", range(params.HVM_NR_PARAMS))
def test_what_a_guest_may_do_by_itself_is_xens_list(dom0: Guest, guest: Guest, index: int) -> None:
    if index in DEPRECATED:
        assert put(guest, index, 1) == put(dom0, index, 1, guest.domid) == -XEN_EINVAL
        assert get(guest, index)[0] == get(dom0, index, guest.domid)[0] == -XEN_EINVAL
        return
    assert put(guest, index, 0) == (0 if index in WRITABLE else -XEN_EPERM)
    assert get(guest, index)[0] == (0 if index in READABLE else -XEN_EPERM)
    assert put(dom0, index, 5, guest.domid) == 0
    assert get(dom0, index, guest.domid) == (0, 5)
    assert put(dom0, index, 6, guest.domid) == (-XEN_EEXIST if index in SET_ONCE else 0)


def test_others_parameters_are_their_own(dom0: Guest, guest: Guest) -> None:
    assert put(guest, params.HVM_PARAM_STORE_EVTCHN, 1, 0) == -XEN_EPERM
    assert get(guest, params.HVM_PARAM_STORE_PFN, 0)[0] == -XEN_EPERM
    assert get(guest, params.HVM_PARAM_STORE_PFN, 99)[0] == -XEN_ESRCH


@pytest.mark.parametrize("index", [params.HVM_NR_PARAMS, 1 << 31, 0xFFFF_FFFF])
def test_parameters_that_do_not_exist(dom0: Guest, index: int) -> None:
    assert put(dom0, index, 1) == -XEN_EINVAL
    assert get(dom0, index)[0] == -XEN_EINVAL
    assert dom0.domain.hvm_params == {}


def test_handles_are_checked(guest: Guest) -> None:
    for operation in (HVMOP_get_param, HVMOP_set_param):
        assert guest.hypercall(hvm_op, operation, (8 << 12) - 8) == -XEN_EFAULT
